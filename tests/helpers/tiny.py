"""Small models for the tests: a configuration and weights that are the same, to the bit, on every machine."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from refgpt import ModelConfig
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.spec import family_of, leaf_shapes


def tiny_config(**changes: Any) -> ModelConfig:
    """A GPT-J of two blocks, small enough to run in a millisecond and odd enough to catch a swapped axis."""
    shape = {"n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 80, "d_rotary": 4, "n_vocab": 61, "n_ctx": 64}
    return ModelConfig(**(shape | {"bos_id": None, "eos_id": None} | changes))


def random_params(config: Any, seed: int, dtype: Literal["f32", "f16", "bf16"] = "f32") -> Any:
    """Weights of a size that keeps activations near 1 and attention uneven, rounded to ``dtype``.

    ``RandomState`` because its stream is frozen for ever, and uniform numbers because they need no library function:
    goldens are recorded for these weights without storing them.
    """
    stream = np.random.RandomState(seed)
    divided = getattr(config, "scale_attn_weights", config.model_type != "gpt_neo")
    leaves = {name: _round(_leaf(stream, name, shape, divided), dtype) for name, shape in leaf_shapes(config).items()}
    return family_of(config).Params.from_leaves(leaves, config.n_layer)


def _leaf(stream: np.random.RandomState, name: str, shape: tuple[int, ...], divided: bool) -> np.ndarray:
    kind = name.rpartition(".")[2]
    uniform = (stream.random_sample(shape) * 2 - 1) * math.sqrt(3)  # mean 0, variance 1
    if kind in ("ln_w", "ln1_w", "ln2_w"):
        return 1 + 0.3 * uniform
    if len(shape) == 1:
        return 0.3 * uniform
    if kind in ("wte", "wpe"):
        return uniform
    gain = 2 if kind in ("wq", "wk") and divided else 1  # undivided scores would leave each query one key
    return uniform * (gain / math.sqrt(shape[1]))


def _round(x: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "f16":
        return x.astype(np.float16)
    x = x.astype(np.float32)
    if dtype == "f32":
        return x
    bits = x.view(np.uint32)
    nearest_even = bits + 0x7FFF + ((bits >> 16) & 1)
    return (nearest_even >> 16).astype(np.uint16).view(BFLOAT16)
