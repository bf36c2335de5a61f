"""How far a float32 engine may stray from the spec: bounds op by op, and one file a family that says what feeds what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.tree import ParamTree
from refgpt.spec.bounds import gpt2, gpt_neo, gpt_neox, gptj
from refgpt.spec.bounds.ops import KV_ROUNDING
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import tap_names

#: By family, as ``refgpt.spec.FAMILIES``.
BOUNDS: dict[str, Callable[..., np.ndarray]] = {
    "gpt2": gpt2.tap_bound,
    "gpt_neo": gpt_neo.tap_bound,
    "gptj": gptj.tap_bound,
    "gpt_neox": gpt_neox.tap_bound,
}


def tap_bound(
    name: str,
    trace: Mapping[str, np.ndarray],
    params: ParamTree,
    config: AnyConfig,
    prefix_len: int = 0,
    kv_dtype: KVDtype = "f32",
    chunk: int | None = None,
) -> np.ndarray:
    """The bound of one named activation of a float32 engine, given the activations it was computed from.

    Replay the spec in float64 with every tap forced to the engine's value: what the spec shows at ``name`` then comes
    from the engine's own inputs, and differs from the engine's value by no more than this.

    Parameters
    ----------
    name : str
        One of ``tap_names(config)``.
    trace : mapping of str to ndarray
        The engine's activations up to ``name``.
    params : Params
        The weights as the engine holds them.
    config : Config
    prefix_len : int
        As given to the engine.
    kv_dtype : "f32" or "f16"
        What the engine's cache keeps keys and values in; "k_rot" and "v" are shown before they go there.
    chunk : int, optional
        The engine's ``sum_chunk``: how many terms it adds up to a partial sum; None allows any order.

    Returns
    -------
    ndarray
        Of the activation's shape; for "embed" and "pos_embed", copies of stored numbers, zeros that broadcast to it.

    Raises
    ------
    RefgptError
        If there is no activation ``name``, or ``trace`` lacks one that it depends on.
    """
    if kv_dtype not in KV_ROUNDING:
        raise RefgptError("unknown cache dtype", where="kv_dtype", got=shown(kv_dtype), wanted=" or ".join(KV_ROUNDING))
    if name not in tap_names(config):
        raise RefgptError("there is no such activation", where="name", got=shown(name))
    try:
        return BOUNDS[config.model_type](name, trace, params, config, prefix_len, kv_dtype, chunk)
    except KeyError as lacking:
        raise RefgptError("the trace lacks an activation", where=name, wanted=str(lacking.args[0])) from None
