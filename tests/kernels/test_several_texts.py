"""Kernels that sum over the rows of texts: those of several in one call, with the bits of a call for each."""

from itertools import pairwise

import numpy as np
import pytest

from refgpt import kernels
from refgpt._common.errors import KernelError
from tests.helpers.buffers import RUNNABLE, assert_same_bits

#: Rows of each text: more than go together, none, few, and whole chunks.
LENS = (150, 0, 7, 64)
STARTS = np.array([0, *np.cumsum(LENS)], np.int64)
N, N_OUT, HEADS, D = int(STARTS[-1]), 45, 3, 21


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def weight(part, into, **how):
    kernels.linear_weight_backward(numbers(0, N, N_OUT)[part], numbers(1, N, 213)[part], into, **how)


def weight_dots(part, into, **how):
    weight(part, into, compute="bf16", **how)


def columns(part, into, **how):
    kernels.column_sum(numbers(0, N, N_OUT)[part], into, **how)


def norm(part, into, **how):
    dy, x, moments = numbers(0, N, N_OUT), numbers(1, N, N_OUT), np.abs(numbers(2, N, 2)) + np.float32(0.5)
    kernels.layer_norm_weight_backward(dy[part], x[part], moments[part], into, **how)


SUMS = {
    "linear_weight_backward": (weight, (N_OUT, 213)),
    "linear_weight_backward_dots": (weight_dots, (N_OUT, 213)),
    "column_sum": (columns, (N_OUT,)),
    "layer_norm_weight_backward": (norm, (N_OUT,)),
}
EVERYTHING = slice(None)
TEXTS = [slice(start, stop) for start, stop in pairwise(STARTS)]


def rows_of(op):
    return [kernel for kernel in RUNNABLE if kernel.op == op]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kernel", [kernel for op in SUMS for kernel in rows_of(op)], ids=str)
def test_sums_of_several_texts_are_added_one_after_the_other(kernel, threads):
    call, shape = SUMS[kernel.op]
    together, apart = numbers(3, *shape), numbers(3, *shape)
    call(EVERYTHING, together, starts=STARTS, kernel=kernel, threads=threads)
    for part in TEXTS:
        call(part, apart, kernel=kernel, threads=1)
    assert_same_bits(together, apart)
    as_one = numbers(3, *shape)
    call(EVERYTHING, as_one, kernel=kernel, threads=1)
    assert (as_one != apart).any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("kernel", rows_of("attention_backward"), ids=str)
def test_texts_are_attended_to_by_themselves(kernel, local, threads):
    given = [numbers(seed, N, HEADS, D) for seed in range(4)]
    positions = np.concatenate([np.arange(n) for n in LENS])
    n_visible = np.maximum(positions + 1, np.minimum(np.repeat(LENS, LENS), 5))
    first = np.maximum(positions - 40, 0) if local else None
    found = kernels.attention_backward(
        *given, n_visible, first_visible=first, starts=STARTS, kernel=kernel, threads=threads
    )
    for part in TEXTS:
        if part.start == part.stop:
            continue
        seen = None if first is None else first[part]
        wanted = kernels.attention_backward(
            *(array[part] for array in given), n_visible[part], first_visible=seen, kernel=kernel, threads=1
        )
        for together, alone in zip(found, wanted, strict=True):
            assert_same_bits(np.ascontiguousarray(together[part]), alone)


def test_a_text_cannot_see_another():
    given = [numbers(seed, N, HEADS, D) for seed in range(4)]
    n_visible = np.concatenate([np.arange(n) + 1 for n in LENS])
    n_visible[STARTS[2]] = LENS[2] + 1
    with pytest.raises(KernelError, match="another text"):
        kernels.attention_backward(*given, n_visible, starts=STARTS)


def test_the_patterns_gradient_is_that_of_a_single_text():
    given = [numbers(seed, N, HEADS, D) for seed in range(4)]
    n_visible = np.concatenate([np.arange(n) + 1 for n in LENS])
    with pytest.raises(KernelError, match="single text"):
        kernels.attention_backward(*given, n_visible, dpattern=np.empty((HEADS, N, N), np.float32), starts=STARTS)
