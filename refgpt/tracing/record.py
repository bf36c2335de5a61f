"""Recording activations, replacing them, and reading the residual stream as if the model ended there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from refgpt.engine import Engine
from refgpt.errors import RefgptError
from refgpt.params import Params
from refgpt.spec import Recorder, layer_norm, linear, tap_names


def record(engine: Engine, ids: Sequence[int], prefix_len: int = 0,
           names: Collection[str] | None = None) -> dict[str, np.ndarray]:  # fmt: skip
    """Activations of one forward pass, in the order they were computed.

    Parameters
    ----------
    engine : Engine
    ids : sequence of int [t]
    prefix_len : int
        So many leading positions see one another.
    names : collection of str, optional
        Which ones (of ``refgpt.spec.tap_names``); by default all.

    Raises
    ------
    RefgptError
        If a name does not exist or the ids cannot be used.
    """
    _check_names(names or (), engine)
    recorder = Recorder(names)
    engine.logits(ids, prefix_len, recorder)
    return recorder.trace


def patch(engine: Engine, ids: Sequence[int], patches: Mapping[str, np.ndarray], prefix_len: int = 0) -> np.ndarray:
    """Logits of a forward pass in which some activations are replaced by others: what depends on them follows.

    Parameters
    ----------
    engine : Engine
    ids : sequence of int [t]
    patches : mapping of str to ndarray
        From names to what is used instead, of the same shape.
    prefix_len : int
        So many leading positions see one another.

    Returns
    -------
    ndarray [t, v]

    Raises
    ------
    RefgptError
        If a name does not exist, a shape is wrong or the ids cannot be used.
    """
    _check_names(patches, engine)
    return engine.logits(ids, prefix_len, lambda name, value: patches.get(name, value))


def logit_lens(engine: Engine, params: Params, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
    """What the model would answer if it ended after each block: its final LayerNorm and head on every residual stream.

    Parameters
    ----------
    engine : Engine
    params : Params
        The engine's weights, of which the final LayerNorm and the head are used.
    ids : sequence of int [t]
    prefix_len : int
        So many leading positions see one another.

    Returns
    -------
    ndarray [n_layer + 1, t, v]
        The first from the embeddings alone, the last the model's own logits.
    """
    names = ["embed", *(f"blocks.{i}.resid_post" for i in range(engine.config.n_layer))]
    streams = record(engine, ids, prefix_len, names)
    normed = (layer_norm(streams[name], params.ln_w, params.ln_b, engine.config.ln_eps) for name in names)
    return np.stack([linear(x, params.w_head, params.b_head) for x in normed])


def _check_names(names: Collection[str], engine: Engine) -> None:
    unknown = set(names) - set(tap_names(engine.config))
    if unknown:
        raise RefgptError("there is no such activation", where="names", got=", ".join(sorted(unknown)),
                          wanted="names of refgpt.spec.tap_names(config)")  # fmt: skip
