"""The residual stream between blocks: its predictions if the model ended there, and its norms."""

from __future__ import annotations

import numpy as np

from refgpt.numbers.leaves import row_slices
from refgpt.numbers.tree import ParamTree
from refgpt.spec import layer_norm, linear
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import taps_of
from refgpt.tracing.memory import check_fits, dtype_of
from refgpt.tracing.places import Indices, find_indices
from refgpt.tracing.recording import record, visit
from refgpt.tracing.subjects import Subject, Text, engine_of, ids_of


def stream_names(config: AnyConfig) -> list[str]:
    """The residual stream before the first block and after each."""
    return [taps_of(config).stream(i) for i in range(config.n_layer + 1)]


def logit_lens(model: Subject, ids: Text, prefix_len: int = 0, positions: Indices = None) -> np.ndarray:
    """Predictions if the model ended after each block: its final LayerNorm and head applied to every residual stream.

    After nostalgebraist 2020, "interpreting GPT: the logit lens"
    (https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens).

    Parameters
    ----------
    model : Model or Engine
    ids, prefix_len, positions
        As for ``record``.

    Returns
    -------
    ndarray [n_layer + 1, t, v]
        The first uses the embeddings alone, the last gives the model's own logits. They have the engine's dtype and are
        summed in NumPy's order, so the last may differ from the engine's logits by rounding.

    Raises
    ------
    RefgptError
        As for ``record``; also if the result would take more memory than there is.
    """
    engine, tokens = engine_of(model), ids_of(model, ids, prefix_len)
    config, names, params = engine.config, stream_names(engine.config), engine.kept()
    rows = find_indices(positions, len(tokens), "positions")
    n_rows, n_layers = len(tokens) if rows is None else len(rows), len(names)
    n_bytes = n_layers * n_rows * config.n_vocab * dtype_of(engine).itemsize
    what = f"{n_layers} x {n_rows} rows of {config.n_vocab} logits"
    check_fits(n_bytes, what, "ask for fewer positions (positions=-1)")
    streams = record(engine, tokens, prefix_len, names, positions)
    normed = np.concatenate([layer_norm(x, params.ln_w, params.ln_b, config.ln_eps) for x in streams.values()])
    return _head(normed, params).reshape(n_layers, n_rows, config.n_vocab)


def _head(x: np.ndarray, params: ParamTree) -> np.ndarray:
    """Logits, for which the head is widened some rows at a time. x [t, c] -> [t, v]."""
    logits = np.empty((len(x), params.w_head.shape[0]), x.dtype)
    start = 0
    for w in row_slices(params.w_head):
        stop = start + len(w)
        logits[:, start:stop] = linear(x, w, None if params.b_head is None else params.b_head[start:stop])
        start = stop
    return logits


def residual_norms(model: Subject, ids: Text, prefix_len: int = 0) -> np.ndarray:
    """Euclidean norm of each position's vector in the residual stream, before the first block and after each block.

    It tends to grow from block to block (Heimersheim and Turner 2023, "Residual stream norms grow exponentially over
    the forward pass"), and so does the smallest change by a block that has an effect.

    Parameters and errors are those of ``record``. -> float64 [n_layer + 1, t]
    """
    names = stream_names(engine_of(model).config)
    found = visit(model, ids, names, lambda _, x: np.linalg.norm(x.astype(np.float64), axis=-1), prefix_len)
    return np.stack(list(found.values()))
