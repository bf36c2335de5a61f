"""The recorded digests, and that a kernel with other bits is found and named."""

from dataclasses import replace

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import KernelError
from refgpt.kernels import check_bits, list_kernels, selfcheck, wrong_kernels
from refgpt.kernels.native import ffi
from tests.helpers.buffers import RUNNABLE


def test_there_is_a_digest_of_every_op():
    assert list(selfcheck.PROMISED) == list(dict.fromkeys(kernel.op for kernel in list_kernels()))
    assert len(set(selfcheck.PROMISED.values())) == len(selfcheck.PROMISED)


def test_every_kernel_computes_the_promised_bits():
    assert wrong_kernels(RUNNABLE) == []
    check_bits()


@pytest.mark.parametrize("op", ["gelu", "softmax"])
def test_one_bit_in_one_number_is_found(op, monkeypatch):
    (kernel,) = (kernel for kernel in RUNNABLE if kernel.op == op and kernel.active)

    def run(args, begin, end, worker):
        kernel.run(args, begin, end, worker)
        y = ffi.cast(f"refgpt_{op}_args *", args).y
        ffi.cast("uint32_t *", y)[end - 1] ^= 1

    wrong = replace(kernel, run=ffi.callback("refgpt_kernel", run))
    assert wrong_kernels([wrong]) == [wrong]
    monkeypatch.setattr(selfcheck, "wrong_kernels", lambda: [wrong])
    for check in (check_bits, lambda: refgpt.load().verify([1, 2, 3])):
        with pytest.raises(KernelError, match=f"{op}/{kernel.isa}.*promised"):
            check()


def test_the_numbers_are_the_same_with_any_numpy():
    def bits(x: int) -> int:
        for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
            x = (x ^ x >> 30) * factor % 2**64
        return x >> 40

    assert selfcheck._bits(7, 100).tolist() == [bits((7 << 32) + i) for i in range(100)]
    assert np.abs(selfcheck._numbers(1, 1000)).max() <= 1
