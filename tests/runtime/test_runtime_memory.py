"""What a pass allocates: a prompt that sees itself both ways goes through in one piece, and still fits."""

import tracemalloc

import numpy as np
import pytest

from refgpt.runtime import Runtime
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(n_layer=1, d_model=16, n_head=4, d_ff=32, d_rotary=2, n_vocab=11, n_ctx=4096)


def peak_bytes(n, prefix_len):
    """The most memory in use at once while a session is made and fed ``n`` tokens."""
    engine = Runtime(random_params(CONFIG, 1), CONFIG, threads=2)
    ids = np.arange(n) % CONFIG.n_vocab
    tracemalloc.start()
    try:
        engine.session(1, n).prefill(0, ids, prefix_len)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("whole", [False, True])
def test_a_prompt_takes_memory_by_the_row_and_never_by_the_pair_of_rows(whole):
    """Attention is cut into tiles, so that no [t, s] of scores exists, though every row sees all others."""
    n = CONFIG.n_ctx
    peak, half = (peak_bytes(rows, rows if whole else 0) for rows in (n, n // 2))
    assert peak < n * n * 4 / 4  # a quarter of one head's scores; there are four heads
    assert peak < 2.2 * half
