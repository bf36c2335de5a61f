"""Checks that the kernels compute the promised bits: one small call per op, compared with a recorded digest.

The order of every sum is fixed, so the bits are the same with any instruction set, compiler and machine, unless the
kernels were compiled with flags that let the compiler reorder or contract operations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from refgpt._common.errors import KernelError
from refgpt.kernels.attention import attention, kv_append, query_tiles
from refgpt.kernels.gradients import (
    attention_backward,
    column_sum,
    cross_entropy_backward,
    embedding_backward,
    layer_norm_backward,
    layer_norm_weight_backward,
    linear_backward,
    linear_weight_backward,
)
from refgpt.kernels.linear import linear, pack, quantise_rows, round_rows
from refgpt.kernels.ops import (
    add,
    embedding,
    gelu,
    gelu_backward,
    gelu_erf,
    gelu_erf_backward,
    layer_norm,
    residual,
    rotary,
    rotary_halves,
    row_sum,
    softmax,
)
from refgpt.kernels.optimisers import adamw, adamw_averaged
from refgpt.kernels.orthogonal import gram, newton_schulz
from refgpt.kernels.quantising import digests, quantise
from refgpt.kernels.registry import Kernel, list_kernels
from refgpt.numbers.cached import KV_ARRAYS, kv_shapes, scales_in
from refgpt.numbers.dtypes import BFLOAT16, KV_DTYPES, Compute
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import FLOATS, Panels, panel_shape

#: For each op, the digest of the bytes that ``_outputs`` gives.
PROMISED = {
    "linear_f32": "2f8381999bb4b5a9",
    "linear_f16": "ae970ac365839b30",
    "linear_bf16": "8831cafb419cfb1d",
    "linear_bf16_dots": "9bca621516684b10",
    "linear_q8": "2d1450b470a850cd",
    "linear_q4": "4c3d07c262edcfc8",
    "linear_q3": "4c67bef0ef1f868c",
    "linear_backward_f32": "446f6872027ed67d",
    "linear_backward_f16": "a061bb5231c8d8d1",
    "linear_backward_bf16": "89b803f756a25ccd",
    "linear_backward_q8": "ca2d42e63606085c",
    "linear_backward_q4": "2b1adebecc301663",
    "linear_backward_q3": "2ea1bb863b59b36c",
    "linear_backward_dots_bf16": "d257fe261f729c6c",
    "linear_backward_dots_q8": "c5734469b806a4a8",
    "linear_backward_dots_q4": "974d34717eee0195",
    "linear_backward_dots_q3": "2c9eeafa9e158352",
    "linear_weight_backward": "4a48b48e3b0a295e",
    "linear_weight_backward_dots": "43a4c5ac5b43f3bc",
    "column_sum": "ce14af9b2ccae517",
    "quantise_rows": "d625f9e213dc92ee",
    "round_rows": "6b942922f6063494",
    "attention_f32": "41809171b830a56e",
    "attention_f16": "431abed6d58d7ac6",
    "attention_q8": "b3a8e5eb45848473",
    "attention_backward": "c382d784a56eb96c",
    "kv_append_f32": "c888ba78e7be6104",
    "kv_append_f16": "10691489aa9fb35e",
    "kv_append_q8": "a94d7b2f65855756",
    "softmax": "0d4b53ca24d98a30",
    "layer_norm": "8e62e19c676e010c",
    "cross_entropy_backward": "d82a973b7fdcbd66",
    "layer_norm_backward": "03b05a3051e298b7",
    "layer_norm_weight_backward": "f47238c446c45e53",
    "gelu": "aa8aaf2d98bcd7e4",
    "gelu_backward": "07cff3f24e6f4baa",
    "gelu_erf": "de3d9733e433a232",
    "gelu_erf_backward": "3ff925f008518f6e",
    "rotary": "c0cb523f820f195e",
    "rotary_halves": "ed47fb4608e8d3e7",
    "residual": "aad142adfaa6a15c",
    "add": "da905eb875818f18",
    "embedding_f32": "9585580ac1038219",
    "embedding_f16": "b044efc4c82c3cce",
    "embedding_bf16": "53b6ac347150d675",
    "embedding_q8": "1c0983f52803f24e",
    "embedding_panels_f32": "5e75dc8b2a1e0a22",
    "embedding_panels_f16": "080cb0df1d7c0475",
    "embedding_panels_bf16": "8bd8e62693013fcb",
    "embedding_backward": "a7a82d4c45e3dcba",
    "adamw": "6c3a33dc07df7320",
    "adamw_averaged": "bbe9d9b9cb436928",
    "gram": "853d00f8adf062d8",
    "newton_schulz": "f683dfa09911610b",
    "pack_b2": "a87ee087243d1001",
    "pack_b4": "fa686ca3a53f698f",
    "pack_rounded": "7d6fbe1bddca48d5",
    "row_sum": "2d1ba335ae213e05",
    "quantise_q8": "4c60e43204110360",
    "quantise_q4": "ff7ce61c8eac6774",
    "quantise_q3": "d58455e390a57503",
    "digests": "1f3ecde8efa189e6",
}


def wrong_kernels(kernels: Iterable[Kernel] | None = None) -> list[Kernel]:
    """The kernels among the given ones (by default the active ones) that do not compute the promised bits."""
    rows = [kernel for kernel in list_kernels() if kernel.active] if kernels is None else kernels
    return [kernel for kernel in rows if digest(kernel) != PROMISED[kernel.op]]


def check_bits() -> None:
    """Raise an error if kernels do not compute the promised bits.

    Raises
    ------
    KernelError
        Naming them.
    """
    wrong = wrong_kernels()
    if wrong:
        raise KernelError(
            "these kernels do not compute the promised bits",
            where=", ".join(map(str, wrong)),
            fix="install refgpt again, without flags such as -ffast-math in CFLAGS",
        )


def digest(kernel: Kernel) -> str:
    """Digest of a kernel's outputs for fixed inputs."""
    total = hashlib.sha256()
    for output in _outputs(kernel):
        total.update(output.tobytes())
    return total.hexdigest()[:16]


def _outputs(kernel: Kernel) -> Iterator[np.ndarray]:
    """The kernel's outputs for fixed inputs: sums with several chunks and a remainder, few and many rows, whole and
    partial panels."""
    op, kind = kernel.op, kernel.op.removesuffix("_dots").rpartition("_")[2]
    compute: Compute = "bf16" if "_dots" in op else "f32"
    x, wide = _numbers(1, 20, 75), _numbers(2, 20, 75) * np.float32(30)
    positions, slots = np.arange(20, dtype=np.int64), np.repeat(np.arange(2, dtype=np.int64), 10)
    if op.startswith("linear_backward"):
        w = pack(_stored(3, kind, 75, 40)) if kind in FLOATS else _quantised(3, kind, 75, 40)
        w = replace(w, compute=compute)
        yield linear_backward(x, w, kernel=kernel, threads=1)
    elif op in TRAINING:
        yield from _training_outputs(kernel, x, wide, positions)
    elif op.startswith("linear"):
        w = pack(_stored(3, kind, 40, 75)) if kind in FLOATS else _quantised(3, kind, 40, 75)
        w = replace(w, compute=compute)
        for n_rows in (1, 3, 20):
            yield linear(x[:n_rows], w, _numbers(4, 40), kernel=kernel, threads=1)
    elif op == "quantise_rows":
        yield quantise_rows(wide, kernel=kernel, threads=1)
    elif op == "round_rows":
        yield round_rows(wide, kernel=kernel, threads=1)
    elif op.startswith(("attention", "kv_append")):
        dtype = next(name for name in KV_DTYPES if name == kind)
        shapes = kv_shapes(3, 25, 20, dtype)
        k_cache, v_cache = (np.zeros((2, *shape), KV_ARRAYS[dtype]) for shape in shapes)
        q, k, v = (_numbers(seed, 20, 3, 25) * np.float32(3) for seed in (5, 6, 7))
        if op.startswith("kv_append"):
            kv_append(k, v, k_cache, v_cache, positions, slots, kernel=kernel, threads=1)
            yield from (k_cache, v_cache)
        else:
            for seed, kept in ((6, k_cache), (7, v_cache)):
                if kind == "q8":
                    kept[:] = _bits(seed, *kept.shape).astype(np.int8)
                    scales_in(kept, 25)[:] = _stored(seed, "f16", *scales_in(kept, 25).shape) * np.float16(0.01)
                else:
                    kept[:] = _numbers(seed, *kept.shape)
            tiles = query_tiles(slots)
            yield attention(q, k_cache, v_cache, tiles, positions + 1, kernel=kernel, threads=1)
            local = np.maximum(positions - 6, 0)
            yield attention(
                q, k_cache, v_cache, tiles, positions + 1, first_visible=local, divisor=0.75, kernel=kernel, threads=1
            )
    elif op == "softmax":
        yield softmax(wide, kernel=kernel, threads=1)
    elif op in ("gelu", "gelu_erf"):
        yield (gelu if op == "gelu" else gelu_erf)(wide, kernel=kernel, threads=1)
    elif op in ("gelu_backward", "gelu_erf_backward"):
        call = gelu_backward if op == "gelu_backward" else gelu_erf_backward
        yield call(x * np.float32(4), wide, kernel=kernel, threads=1)
    elif op == "layer_norm":
        yield layer_norm(wide, x[0], x[1], 1e-5, kernel=kernel, threads=1)
    elif op == "add":
        yield add(x, wide, kernel=kernel, threads=1)
    elif op == "residual":
        yield residual(x, wide, x[::-1].copy(), kernel=kernel, threads=1)
    elif op in ("rotary", "rotary_halves"):
        cos, sin = _numbers(8, 20, 18), _numbers(9, 20, 18)
        yield (rotary if op == "rotary" else rotary_halves)(
            _numbers(5, 20, 3, 25), cos, sin, positions, kernel=kernel, threads=1
        )
    elif op == "row_sum":
        yield row_sum(x, kernel=kernel, threads=1)
    elif op.startswith("embedding"):
        table: Leaf = _stored(3, kind, 40, 75) if kind in FLOATS else _quantised(3, kind, 40, 75)
        if "panels" in op:
            table = pack(_stored(3, kind, 40, 75))
        yield embedding(table, positions * 2 + ("panels" in op), kernel=kernel, threads=1)
    elif op == "pack_rounded":
        yield pack(_numbers(3, 40, 75), Panels.zeros("bf16", 40, 75), kernel=kernel, threads=1).data
    elif op.startswith("pack"):
        yield pack(_stored(3, "f32" if op == "pack_b4" else "f16", 40, 75), kernel=kernel, threads=1).data
    elif op.startswith("quantise"):
        yield quantise(_numbers(3, 40, 75), kind, kernel=kernel, threads=1).data
    else:
        yield digests(x.reshape(-1).view(np.uint32), 200, kernel=kernel, threads=1)


#: Ops of the backward pass and of optimisers whose outputs ``_training_outputs`` gives.
TRAINING = frozenset(
    (
        "linear_weight_backward",
        "linear_weight_backward_dots",
        "column_sum",
        "attention_backward",
        "cross_entropy_backward",
        "layer_norm_backward",
        "layer_norm_weight_backward",
        "embedding_backward",
        "adamw",
        "adamw_averaged",
        "gram",
        "newton_schulz",
    )
)


def _training_outputs(kernel: Kernel, x: np.ndarray, wide: np.ndarray, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Calls of the backward pass and the optimiser: sums over 20 rows, of one text and of two, added to numbers."""
    op, before = kernel.op, _numbers(10, 75)
    texts = np.array([0, 7, 20], np.int64)
    if op.startswith("linear_weight_backward"):
        dy, dw = _numbers(5, 20, 40), _numbers(10, 40, 75)
        compute: Compute = "bf16" if op.endswith("_dots") else "f32"
        for starts in (None, texts):
            yield linear_weight_backward(dy, x, dw, starts=starts, compute=compute, kernel=kernel, threads=1).copy()
    elif op == "column_sum":
        for starts in (None, texts):
            yield column_sum(wide, before, starts=starts, kernel=kernel, threads=1).copy()
    elif op == "attention_backward":
        dz, q, k, v = (_numbers(seed, 20, 3, 25) * np.float32(3) for seed in (4, 5, 6, 7))
        yield from attention_backward(dz, q, k, v, positions + 1, kernel=kernel, threads=1)
        seen, first = np.maximum(positions + 1, 7), np.maximum(positions - 6, 0)
        dpattern = np.empty((3, 20, 20), np.float32)
        how = {"first_visible": first, "divisor": 0.75, "dpattern": dpattern, "kernel": kernel, "threads": 1}
        yield from attention_backward(dz, q, k, v, seen, **how)
        yield dpattern
        apart = np.minimum(seen, 7)
        yield from attention_backward(dz, q, k, v, apart, starts=texts, kernel=kernel, threads=1)
    elif op == "cross_entropy_backward":
        yield from cross_entropy_backward(x[:, 0].copy(), wide, positions * 3, kernel=kernel, threads=1)
    elif op == "layer_norm_backward":
        yield from layer_norm_backward(x, wide, x[0], 1e-5, kernel=kernel, threads=1)
    elif op == "layer_norm_weight_backward":
        moments = np.abs(_numbers(8, 20, 2))
        for starts in (None, texts):
            yield layer_norm_weight_backward(x, wide, moments, before, starts=starts, kernel=kernel, threads=1).copy()
    elif op == "embedding_backward":
        yield embedding_backward(x, positions % 7, _numbers(10, 9, 75), kernel=kernel, threads=1)
    elif op == "gram":
        square = gram(pack(wide), kernel=kernel, threads=1)
        yield square.data
        yield gram(pack(x), square, -4.775, 2.0315, kernel=kernel, threads=1).data
    elif op == "newton_schulz":
        s = x[:, :20] + x[:, :20].T
        for found in newton_schulz(pack(s), pack(wide.T.copy()), 3.4445, kernel=kernel, threads=1):
            yield found.data
    else:
        w, mean, square = x.copy(), _numbers(4, 20, 75), np.abs(_numbers(5, 20, 75))
        how = {"betas": (0.9, 0.999), "eps": 1e-8, "rate": 1e-3, "shrink": 0.99, "kernel": kernel, "threads": 1}
        if op == "adamw":
            adamw(w, wide, mean, square, correction=0.5, **how)
        else:
            adamw_averaged(w, wide, mean, square, mean_correction=0.75, square_correction=0.5, of_variance=0.25, **how)
        yield from (w, mean, square)


def _bits(seed: int, *shape: int) -> np.ndarray:
    """Fixed numbers below 2^24 that look random. They use integer arithmetic only, which is the same in every
    library."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed << 32)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        x = (x ^ x >> np.uint64(30)) * np.uint64(factor)
    return (x >> np.uint64(40)).astype(np.int32).reshape(shape)


def _numbers(seed: int, *shape: int) -> np.ndarray:
    """float32 in -1 .. 1, exact."""
    return ((_bits(seed, *shape) - (1 << 23)) * 2.0**-23).astype(np.float32)


def _stored(seed: int, kind: str, *shape: int) -> np.ndarray:
    """The same in a dtype that weights are stored in."""
    x = _numbers(seed, *shape)
    if kind == "bf16":
        return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(BFLOAT16)
    return x.astype(np.float16) if kind == "f16" else x


def _quantised(seed: int, kind: str, n_out: int, n_in: int) -> Panels:
    """Any integers with any scales."""
    shape = panel_shape(kind, n_out, n_in)
    data = _bits(seed, *shape).astype(np.uint8)
    data[..., -32:] = _stored(seed + 1, "f16", *shape[:2], 16).view(np.uint8)
    panels = Panels.zeros(kind, n_out, n_in)
    panels.data[...] = data
    return panels
