"""A batch of texts to learn from, and the tokens of each that are to be predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import GenerationError
from refgpt.spec.config import AnyConfig
from refgpt.spec.gradients import Text, check_labels
from refgpt.spec.ids import check_ids


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts of one length, or padded to one length.

    Attributes
    ----------
    ids : ndarray of int [b, t]
        The texts; lists of lists are accepted.
    labels : ndarray of int [b, t]
        The token to predict at each position, as in Hugging Face's models: not shifted, usually the ids themselves, and
        -100 where nothing is to be predicted. The first token of a text is never predicted.
    prefix_lens : ndarray of int [b], optional
        How many leading tokens of each text see one another, as GPT-JT's prompts do. The default is none.
    lens : ndarray of int [b], optional
        The length of each text without its padding, which is on the right. Ids and labels of padding are never read.
        The default is ``t``.

    Raises
    ------
    GenerationError
        If the shapes do not fit, or the numbers are not whole. Whether ids exist is checked later, by the model.
    """

    ids: np.ndarray
    labels: np.ndarray
    prefix_lens: np.ndarray | None = None
    lens: np.ndarray | None = None

    def __post_init__(self) -> None:
        ids = _whole("ids", self.ids, 2)
        b, t = ids.shape
        if not b or not t:
            raise GenerationError("holds no tokens", where="ids", got=f"an array {[b, t]}", wanted="[b, t]")
        labels = _whole("labels", self.labels, 2)
        if labels.shape != (b, t):
            raise GenerationError(
                "there must be one for each id", where="labels", got=f"an array {list(labels.shape)}", wanted=[b, t]
            )
        lens, prefix_lens = (
            np.full(b, default) if given is None else _whole(name, given, 1)
            for name, given, default in (("lens", self.lens, t), ("prefix_lens", self.prefix_lens, 0))
        )
        for name, found in (("lens", lens), ("prefix_lens", prefix_lens)):
            if len(found) != b:
                raise GenerationError("there must be one for each text", where=name, got=len(found), wanted=b)
        for i in range(b):
            whole_number(f"lens[{i}]", int(lens[i]), 1, t, GenerationError)
            whole_number(f"prefix_lens[{i}]", int(prefix_lens[i]), 0, int(lens[i]), GenerationError)
        for name, array in (("ids", ids), ("labels", labels), ("prefix_lens", prefix_lens), ("lens", lens)):
            object.__setattr__(self, name, array)

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts together."""
        assert self.lens is not None
        return int(self.lens.sum())

    def texts(self, config: AnyConfig) -> Iterator[Text]:
        """The texts one by one, without their padding, after a check that the model has their ids.

        Raises
        ------
        GenerationError
            Naming the first id or label that does not exist.
        """
        assert self.lens is not None and self.prefix_lens is not None
        for i, (n, prefix_len) in enumerate(zip(self.lens.tolist(), self.prefix_lens.tolist(), strict=True)):
            try:
                ids = check_ids(self.ids[i, :n], config, prefix_len)
                yield Text(ids, check_labels(self.labels[i, :n], n, config), prefix_len)
            except GenerationError as fault:
                raise fault.within(f"text {i} of the batch") from None


def _whole(name: str, value: Any, ndim: int) -> np.ndarray:
    """Copy whole numbers to an array of int64."""
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0, object)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        axes = "[b, t]" if ndim == 2 else "[b]"
        got = f"an array {list(array.shape)} of {array.dtype}"
        raise GenerationError("cannot be used", where=name, got=got, wanted=f"whole numbers {axes}")
    return array.astype(np.int64)
