"""Bounds for the rounding errors of a float32 engine: one for each op, and one file per family that combines them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from refgpt._common.arguments import one_of
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.numbers.dtypes import COMPUTES, KV_DTYPES, Compute, KVDtype
from refgpt.numbers.tree import ParamTree
from refgpt.spec.bounds import gpt2, gpt_neo, gpt_neox, gptj
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
    compute: Compute = "f32",
) -> np.ndarray:
    """The bound of one named activation of a float32 engine, given the activations it was computed from.

    Replay the spec in float64 with every tap forced to the engine's value: the spec's value at ``name`` is then
    computed from the engine's own inputs, and differs from the engine's value by at most this bound.

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
    kv_dtype : "f32", "f16" or "q8"
        Dtype of the engine's attention cache; taps receive "k_rot" and "v" before they are stored in it.
    chunk : int, optional
        The engine's ``sum_chunk``, the number of terms in a partial sum; None allows any order.
    compute : "f32" or "bf16"
        The dtype to which the engine's linear layers round their rows.

    Returns
    -------
    ndarray
        Of the activation's shape; for "embed" and "pos_embed", copies of stored numbers, zeros that broadcast to it.

    Raises
    ------
    RefgptError
        If there is no activation ``name``, or ``trace`` lacks one that it depends on.
    """
    if kv_dtype not in KV_DTYPES:
        raise RefgptError("unknown cache dtype", where="kv_dtype", got=shown(kv_dtype), wanted=" or ".join(KV_DTYPES))
    one_of("compute", compute, COMPUTES, RefgptError)
    if name not in tap_names(config):
        raise RefgptError("there is no such activation", where="name", got=shown(name))
    try:
        return BOUNDS[config.model_type](name, trace, params, config, prefix_len, kv_dtype, chunk, compute)
    except KeyError as lacking:
        raise RefgptError("the trace lacks an activation", where=name, wanted=str(lacking.args[0])) from None
