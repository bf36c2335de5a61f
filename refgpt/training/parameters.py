"""What of a model is trained: all its weights, or the adapters that it was given; and their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.checkpoints import Checkpoint
from refgpt.checkpoints.adapters import peft_key
from refgpt.checkpoints.families import gptj
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import Leaf
from refgpt.runtime.engine import Engine
from refgpt.runtime.gradients import MatrixGradient
from refgpt.spec.gradients import Gradient, gradients_of


class TrainedModel(Protocol):
    """A loaded model, as far as it matters here."""

    @property
    def engine(self) -> Engine: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def tokenizer(self) -> Any: ...


def check_model(model: Any) -> TrainedModel:
    """A model, once it is known to be one whose family has gradients; raises a RefgptError."""
    if not hasattr(model, "engine") or not hasattr(model, "checkpoint"):
        raise RefgptError("cannot be used", where="model", got=shown(model), wanted="a Model, as refgpt.load gives it")
    gradients_of(model.engine.config)
    found: TrainedModel = model
    return found


class Parameters:
    """The names under which weights are trained: those they have in files.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    adapted : dict of str to Adapted
        The matrices that have an adapter, by leaf. Where there are any, only the adapters are trained.
    """

    def __init__(self, model: TrainedModel) -> None:
        params, stored = model.engine.kept(), model.checkpoint.params
        self.leaves: dict[str, Leaf] = dict(params.items())
        self.adapted = {name: leaf for name, leaf in self.leaves.items() if isinstance(leaf, Adapted)}
        self._product = model.engine.product
        self._tied = stored.w_head is stored.wte

    @property
    def wanted(self) -> list[str]:
        """The leaves whose gradients are needed."""
        return list(self.adapted or self.leaves)

    def name(self, leaf: str) -> str:
        """What a leaf is called in files; a tied head is called as the embeddings that it is."""
        return gptj.HUGGING_FACE.names("wte" if leaf == "w_head" and self._tied else leaf)

    def split(self, leaf: str, gradient: Gradient) -> Iterator[tuple[str, Gradient]]:
        """The gradient of a leaf as those of what is trained of it, by their names in files."""
        if not self.adapted:
            yield self.name(leaf), gradient
            return
        adapted = self.adapted[leaf]
        if isinstance(gradient, MatrixGradient):
            of_a, of_b = gradient.of_adapter(adapted.a, adapted.b, adapted.scale)
            yield peft_key(leaf, "A"), of_a  # [rank, n_in]
            yield peft_key(leaf, "B"), of_b  # [n_out, rank]
            return
        assert isinstance(gradient, np.ndarray)
        dtype = gradient.dtype
        scaled = gradient * dtype.type(adapted.scale)  # [n_out, n_in]
        yield peft_key(leaf, "A"), self._product(adapted.b.astype(dtype).T, scaled.T)  # [rank, n_in]
        yield peft_key(leaf, "B"), self._product(scaled, adapted.a.astype(dtype))  # [n_out, rank]

    def adapter_arrays(self) -> dict[str, np.ndarray]:
        """The matrices of the adapters themselves, by their names in files."""
        return {peft_key(leaf, side): x for leaf, w in self.adapted.items() for side, x in (("A", w.a), ("B", w.b))}

    def names(self) -> list[str]:
        """All names, in the order of the leaves."""
        if self.adapted:
            return list(self.adapter_arrays())
        return list(dict.fromkeys(map(self.name, self.leaves)))
