"""Texts as vectors: hidden states, pooled over the positions of each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refgpt._common.arguments import collected, one_of, whole_number
from refgpt._common.errors import GenerationError
from refgpt._common.float_state import default_float_state
from refgpt.generation.prompts import BYTES, Prompt, fault_of, prompt_ids, telling_fault
from refgpt.generation.sequence import Generates, prefix_of
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_ids
from refgpt.tokenizers import Tokenizer
from refgpt.tracing.lens import stream_names

#: Rows of one pass: enough for the kernels to work at full speed.
ROWS = 512
POOLINGS = ("mean", "last", "first", "max")


def embed(
    model: Generates, texts: Prompt | Sequence[Prompt] | np.ndarray, layer: int = -1, pooling: str = "mean"
) -> np.ndarray:
    """One vector a text.

    Parameters
    ----------
    model : Model
    texts : list of str or of list of int
        One text alone is a list of one.
    layer : int
        Which hidden states, as transformers counts them: 0 is the embedding, i the residual stream after the i-th
        block, but the last one (n_layer, or -1) the final LayerNorm's output. Negative numbers count from the end.
    pooling : "mean", "last", "first" or "max"
        What becomes of the positions of a text. With causal attention only the last has seen all of it.

    Returns
    -------
    ndarray [n, c], float32
        Each row depends on its text alone, to the last bit. With the prefix mask a text sees itself both ways.

    Raises
    ------
    GenerationError
        If a text or an argument cannot be used; before anything is computed.
    """
    with telling_fault(fault_of(model)):
        encoded = encode_texts(texts, model.engine.config, model.tokenizer)
    vectors = np.empty((len(encoded), model.engine.config.d_model), np.float32)
    for vector, found in zip(vectors, embeddings(model, encoded, layer, pooling), strict=True):
        vector[:] = found
    return vectors


def embeddings(
    model: Generates, encoded: Sequence[Sequence[int]], layer: int = -1, pooling: str = "mean"
) -> Iterator[np.ndarray]:
    """The vectors of texts one by one: ``embed`` for many texts, given as ids. Short ones share a pass.

    Yields
    ------
    ndarray [c], float32
    """
    config = model.engine.config
    one_of("pooling", pooling, POOLINGS, GenerationError)
    layer = whole_number("layer", layer, -config.n_layer - 1, config.n_layer, GenerationError) % (config.n_layer + 1)
    name = "ln_final" if layer == config.n_layer else stream_names(config)[layer]
    return (
        _pooled(states, pooling).astype(np.float32)
        for some in _passes(encoded)
        for states in model.engine.states(some, [prefix_of(model, ids) for ids in some], name)
    )


def _passes(encoded: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Texts that follow one another, as many as have ``ROWS`` ids together, or one that has more."""
    some: list[Sequence[int]] = []
    for ids in encoded:
        if some and sum(map(len, some)) + len(ids) > ROWS:
            yield some
            some = []
        some.append(ids)
    if some:
        yield some


def encode_texts(
    texts: Prompt | Sequence[Prompt] | np.ndarray, config: AnyConfig, tokenizer: Tokenizer | None
) -> list[list[int]]:
    """One text or several as ids.

    Raises
    ------
    GenerationError
        Naming the first text that cannot be used.
    """
    one = isinstance(texts, str)
    many: list[Any] = [texts] if one else collected("texts", texts, "a list of texts", GenerationError)
    encoded = []
    for i, text in enumerate(many):
        if isinstance(text, BYTES) or not isinstance(text, (str, Sequence, np.ndarray)):
            raise GenerationError(
                "cannot be used", where=f"texts[{i}]", got=type(text).__name__, wanted="a text or a list of ids"
            )
        try:
            encoded.append(check_ids(prompt_ids(text, config, tokenizer), config).tolist())
        except GenerationError as error:
            raise error.within(f"texts[{i}]") from None
    return encoded


@default_float_state()
def _pooled(states: np.ndarray, pooling: str) -> np.ndarray:
    """Hidden states [t, c] -> [c]. A mean is summed from the first position to the last, in float64."""
    if pooling == "mean":
        pooled: np.ndarray = np.cumsum(states, axis=0, dtype=np.float64)[-1] / len(states)
        return pooled
    return states.max(axis=0) if pooling == "max" else states[-1 if pooling == "last" else 0]
