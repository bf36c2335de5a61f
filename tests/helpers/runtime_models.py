"""Small models of odd shapes, and how the runtime tests run them."""

from __future__ import annotations

from functools import cache

import numpy as np

from refgpt.numbers.panels import BLOCK_BYTES
from refgpt.runtime import Runtime
from tests.helpers.tiny import random_params, tiny_config

SHAPES = {
    "plain": tiny_config(),
    "three heads of twelve": tiny_config(d_model=36, n_head=3, d_rotary=6, d_ff=50, n_vocab=97),
    "one head": tiny_config(d_model=24, n_head=1, d_rotary=24, d_ff=96, n_vocab=33),
    "two wide heads": tiny_config(d_model=160, n_head=2, d_rotary=64, d_ff=30, n_vocab=50),
    "ten heads of two": tiny_config(d_model=20, n_head=10, d_rotary=2, d_ff=7, n_vocab=17),
    "as small as can be": tiny_config(n_layer=1, n_head=1, d_model=2, d_rotary=2, d_ff=1, n_vocab=2),
}
#: For the tests of equal bits: a prompt of 200 tokens fits, and every inner sum has several chunks.
LONG = tiny_config(d_model=144, n_head=3, d_rotary=10, d_ff=300, n_vocab=211, n_ctx=260)
PROMPT = np.random.default_rng(200).integers(0, LONG.n_vocab, 200)


@cache
def runtime(dtype: str | None = "f32", kv_dtype: str = "f32", threads: int = 2) -> Runtime:
    """The long model with weights stored as ``dtype``, or quantised to it; "bf16 dots" computes in bfloat16 too."""
    compute = "bf16" if dtype == "bf16 dots" else "f32"
    stored, dtype = ("f32", dtype) if dtype in BLOCK_BYTES else (dtype and dtype.split()[0], None)
    options = {"threads": threads, "kv_dtype": kv_dtype, "compute": compute}
    return Runtime(random_params(LONG, 11, stored), LONG, dtype=dtype, **options)


def fed(engine: Runtime, ids: np.ndarray, chunk: int, prefix_len: int = 0) -> np.ndarray:
    """Logits of every row of a prompt that was fed in chunks."""
    return engine.session(1, len(ids)).feed(0, ids, prefix_len, every_row=True, rows_per_pass=chunk)
