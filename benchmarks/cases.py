"""What is measured: for every op of the table, calls at the shapes that GPT-J-6B has.

``CASES[op]`` maps names of shapes to functions that prepare the work; in quick mode the shapes are smaller than their
names say. A test compares its keys with the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks.quick import sized
from refgpt import kernels
from refgpt.numbers.cached import kv_bytes, scales_in
from refgpt.numbers.dtypes import BFLOAT16, KV_DTYPES, Compute, KVDtype
from refgpt.numbers.leaves import widen
from refgpt.numbers.panels import BLOCK_BYTES, KINDS, Panels
from refgpt.runtime.cache import BLOCK
from refgpt.runtime.rotation import rotary_tables

D_MODEL, D_FF, N_HEAD, D_HEAD, D_ROTARY, N_VOCAB, N_CTX = sized(
    (4096, 16384, 16, 256, 64, 50400, 2048), (64, 256, 2, 32, 16, 512, 64)
)
N_PREFILL = sized(512, 16)  # rows of a prompt that go through the model together
N_TRAIN, N_SOME = sized((256, 128), (16, 9))  # rows of a text that is learnt from; of them that meet the head together
#: What is streamed from memory is spread over so many bytes that no cache holds it from one call to the next.
BEYOND_CACHES = sized(512 << 20, 1 << 20)

Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """Calls that do the same work, to be made in turn.

    Attributes
    ----------
    calls : iterator of callable
        Endless; neighbours read different memory where ``n_bytes`` are to come from memory.
    n_bytes : int
        What one call reads and writes at least.
    n_ops : int
        Multiplications and additions of one call; 0 where they do not matter.
    arithmetic : bool
        Whether they are what bounds it, rather than memory.
    numpy : callable or None
        The same product by NumPy, to compare with.
    """

    calls: Iterator[Call]
    n_bytes: int
    n_ops: int = 0
    arithmetic: bool = False
    numpy: Call | None = None


def random(*shape: int, dtype: str = "f32") -> np.ndarray:
    """Numbers between -1 and 1; a block of them repeated, since only their bits' variety matters."""
    block = np.random.default_rng(0).random(min(int(np.prod(shape)), 1 << 20), np.float32) * 2 - 1
    numbers = np.resize(block, shape)
    if dtype == "bf16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)
    return numbers if dtype == "f32" else numbers.astype(np.float16)


def linear(dtype: str, n_rows: int, n_in: int, n_out: int, compute: Compute = "f32") -> Work:
    x, w, bias, out = random(n_rows, n_in), random(n_out, n_in, dtype=dtype), random(n_out), random(n_rows, n_out)
    decode = n_rows == 1
    n_copies = -(-BEYOND_CACHES // w.nbytes) if decode else 1
    copies = [replace(kernels.pack(w), compute=compute) for _ in range(n_copies)]
    calls = [partial(kernels.linear, x, panels, bias, out) for panels in copies]
    n_ops = 2 * n_rows * n_in * n_out
    if decode:
        return Work(cycle(calls), w.nbytes, n_ops)
    wide, product = widen(w), np.empty((n_rows, n_out), np.float32)
    n_bytes = w.nbytes + x.nbytes + out.nbytes
    return Work(cycle(calls), n_bytes, n_ops, True, partial(np.matmul, x, wide.T, out=product))


def quantised(kind: str, n_out: int, n_in: int) -> Panels:
    """Any integers, scales near a thousandth."""
    panels = Panels.zeros(kind, n_out, n_in)
    panels.data[...] = np.resize(np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8), panels.data.shape)
    panels.data[..., -32:] = np.frombuffer(np.full(16, 1e-3, np.float16).tobytes(), np.uint8)
    return panels


def linear_quantised(kind: str, n_rows: int, n_in: int, n_out: int) -> Work:
    x, bias, out = random(n_rows, n_in), random(n_out), random(n_rows, n_out)
    n_bytes = quantised(kind, 16, n_in).nbytes * n_out // 16
    copies = [quantised(kind, n_out, n_in) for _ in range(-(-BEYOND_CACHES // n_bytes) if n_rows == 1 else 1)]
    calls = [partial(kernels.linear, x, panels, bias, out) for panels in copies]
    n_bytes = copies[0].nbytes + (x.nbytes + out.nbytes if n_rows > 1 else 0)
    return Work(cycle(calls), n_bytes, 2 * n_rows * n_in * n_out, n_rows > 1)


def linear_backward(kind: str, n_out: int, n_in: int) -> Work:
    dy, out = random(N_TRAIN, n_out), random(N_TRAIN, n_in)
    dots, _, kind = kind.rpartition("_")
    w = quantised(kind, n_out, n_in) if kind in BLOCK_BYTES else kernels.pack(random(n_out, n_in, dtype=kind))
    w = replace(w, compute="bf16" if dots else "f32")
    matrix, product = random(n_out, n_in), np.empty_like(out)
    call = partial(kernels.linear_backward, dy, w, out)
    return Work(cycle([call]), w.nbytes, 2 * N_TRAIN * n_in * n_out, True, partial(np.matmul, dy, matrix, out=product))


def linear_weight_backward(n_out: int, n_in: int, compute: Compute = "f32") -> Work:
    dy, x, into = random(N_TRAIN, n_out), random(N_TRAIN, n_in), random(n_out, n_in)
    product, n_ops = np.empty_like(into), 2 * N_TRAIN * n_in * n_out
    call = partial(kernels.linear_weight_backward, dy, x, into, compute=compute)
    return Work(cycle([call]), into.nbytes, n_ops, True, partial(np.matmul, dy.T, x, out=product))


def column_sum() -> Work:
    x, into = random(N_TRAIN, D_FF), random(D_FF)
    return Work(cycle([partial(kernels.column_sum, x, into)]), x.nbytes)


def attention_backward(n_rows: int) -> Work:
    dz, q, k, v = (random(n_rows, N_HEAD, D_HEAD) for _ in range(4))
    n_visible = np.arange(n_rows) + 1
    call = partial(kernels.attention_backward, dz, q, k, v, n_visible)
    return Work(cycle([call]), 7 * q.nbytes, 10 * int(n_visible.sum()) * N_HEAD * D_HEAD, True)


def cross_entropy_backward() -> Work:
    logits, out, dy = random(N_SOME, N_VOCAB), random(N_SOME, N_VOCAB), random(N_SOME)
    targets = np.arange(N_SOME) % N_VOCAB
    return Work(cycle([partial(kernels.cross_entropy_backward, dy, logits, targets, out)]), 2 * logits.nbytes)


def layer_norm_backward(of_weight: bool) -> Work:
    x, dy, w = random(N_TRAIN, D_MODEL), random(N_TRAIN, D_MODEL), random(D_MODEL)
    dx, moments = kernels.layer_norm_backward(dy, x, w, 1e-5)
    if not of_weight:
        call = partial(kernels.layer_norm_backward, dy, x, w, 1e-5, (dx, moments))
        return Work(cycle([call]), 3 * x.nbytes)
    call = partial(kernels.layer_norm_weight_backward, dy, x, moments, random(D_MODEL))
    return Work(cycle([call]), 2 * x.nbytes)


def embedding_backward() -> Work:
    table, dy = np.zeros((N_VOCAB, D_MODEL), np.float32), random(N_TRAIN, D_MODEL)
    ids = np.random.default_rng(0).integers(0, N_VOCAB, (100, N_TRAIN))
    return Work(cycle([partial(kernels.embedding_backward, dy, some, table) for some in ids]), 3 * dy.nbytes)


def adamw(op: Callable[..., None], **corrections: float) -> Work:
    w, g, mean, square = (random(D_FF, D_MODEL) for _ in range(4))
    call = partial(op, w, g, mean, np.abs(square), betas=(0.9, 0.999), eps=1e-8, rate=1e-4, **corrections)
    return Work(cycle([call]), 7 * w.nbytes)


def square(n: int) -> Panels:
    """A symmetric matrix."""
    return kernels.gram(kernels.pack(random(n, n)))


def gram() -> Work:
    matrix = random(D_MODEL, D_MODEL)
    call = partial(kernels.gram, kernels.pack(matrix), square(D_MODEL), -4.775, 2.0315, square(D_MODEL))
    n_ops = D_MODEL * (D_MODEL + 1) * D_MODEL  # of one half
    return Work(cycle([call]), 3 * matrix.nbytes, n_ops, True, partial(np.matmul, matrix, matrix.T))


def newton_schulz() -> Work:
    s, x = random(D_MODEL, D_MODEL), random(D_MODEL, D_FF)
    columns, out = kernels.pack(random(D_FF, D_MODEL)), (kernels.pack(random(D_FF, D_MODEL)), kernels.pack(x))
    call = partial(kernels.newton_schulz, square(D_MODEL), columns, 3.4445, out)
    return Work(cycle([call]), 3 * x.nbytes, 2 * D_MODEL * D_MODEL * D_FF, True, partial(np.matmul, s, x))


def quantise_rows() -> Work:
    x = random(N_PREFILL, D_FF)
    out = kernels.quantise_rows(x)
    return Work(cycle([partial(kernels.quantise_rows, x, out)]), x.nbytes + out.nbytes)


def round_rows() -> Work:
    x = random(N_PREFILL, D_FF)
    out = kernels.round_rows(x)
    return Work(cycle([partial(kernels.round_rows, x, out)]), x.nbytes + out.nbytes)


def cache(n_slots: int, dtype: KVDtype) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of some full contexts, in blocks."""
    shapes = kernels.kv_shapes(N_HEAD, D_HEAD, BLOCK, dtype)
    n_blocks = n_slots * N_CTX // BLOCK
    if dtype != "q8":
        k, v = (random(n_blocks, *shape, dtype=dtype) for shape in shapes)
        return k, v
    k, v = ((127 * random(n_blocks, *shape)).astype(np.int8) for shape in shapes)
    for records in (k, v):
        scales_in(records, D_HEAD)[...] = 1 / 127
    return k, v


def attention(dtype: KVDtype, n_rows: int, window: int = N_CTX) -> Work:
    """The last ``n_rows`` positions of a full context, of whose keys each sees ``window``."""
    n_slots = 8 if n_rows == 1 else 1
    k_cache, v_cache = cache(n_slots, dtype)
    q, out = random(n_rows, N_HEAD, D_HEAD), random(n_rows, N_HEAD, D_HEAD)
    n_visible = np.arange(N_CTX - n_rows, N_CTX) + 1
    first = np.maximum(n_visible - window, 0)
    tiles = [kernels.query_tiles(np.full(n_rows, slot)) for slot in range(n_slots)]
    tables = np.arange(len(k_cache)).reshape(n_slots, -1)
    how = {"tables": tables, "first_visible": first}
    calls = [partial(kernels.attention, q, k_cache, v_cache, t, n_visible, out, **how) for t in tiles]
    n_ops = 4 * int((n_visible - first).sum()) * N_HEAD * D_HEAD
    n_bytes = (k_cache.nbytes + v_cache.nbytes) // n_slots * int(n_visible[-1] - first[0]) // N_CTX
    return Work(cycle(calls), n_bytes, n_ops, n_rows > 1)


def kv_append(dtype: KVDtype) -> Work:
    k_cache, v_cache = cache(1, dtype)
    k, v = (random(N_PREFILL, N_HEAD, D_HEAD) for _ in range(2))
    blocks, offsets = np.divmod(np.arange(N_PREFILL), BLOCK)
    call = partial(kernels.kv_append, k, v, k_cache, v_cache, offsets, blocks)
    return Work(cycle([call]), 2 * k.nbytes + N_PREFILL * kv_bytes(1, N_HEAD, D_HEAD, dtype))


def embedding(dtype: str) -> Work:
    table, out = random(N_VOCAB, D_MODEL, dtype=dtype), random(N_PREFILL, D_MODEL)
    ids = np.random.default_rng(0).integers(0, N_VOCAB, (100, N_PREFILL))
    calls = [partial(kernels.embedding, table, some, out) for some in ids]
    return Work(cycle(calls), N_PREFILL * D_MODEL * table.itemsize + out.nbytes)


def embedding_panels(dtype: str) -> Work:
    table, out = kernels.pack(random(N_VOCAB, D_MODEL, dtype=dtype)), random(N_PREFILL, D_MODEL)
    ids = np.random.default_rng(0).integers(0, N_VOCAB, (100, N_PREFILL))
    return Work(cycle([partial(kernels.embedding, table, some, out) for some in ids]), 2 * out.nbytes)


def embedding_quantised() -> Work:
    table, out = quantised("q8", N_VOCAB, D_MODEL), random(N_PREFILL, D_MODEL)
    ids = np.random.default_rng(0).integers(0, N_VOCAB, (100, N_PREFILL))
    return Work(cycle([partial(kernels.embedding, table, some, out) for some in ids]), 2 * out.nbytes)


def residual() -> Work:
    x, a, b = (random(N_PREFILL, D_MODEL) for _ in range(3))
    return Work(cycle([partial(kernels.residual, x, a, b, x)]), 4 * x.nbytes)


def add() -> Work:
    x, a = (random(N_PREFILL, D_MODEL) for _ in range(2))
    return Work(cycle([partial(kernels.add, x, a, x)]), 3 * x.nbytes)


def rowwise(op: str, n: int) -> Work:
    x, out = random(N_PREFILL, n), random(N_PREFILL, n)
    return Work(cycle([partial(getattr(kernels, op), x, out)]), 2 * x.nbytes)


def gelu_backward(op: str) -> Work:
    x, dy, out = (random(N_PREFILL, D_FF) for _ in range(3))
    return Work(cycle([partial(getattr(kernels, op), x, dy, out)]), 3 * x.nbytes)


def layer_norm() -> Work:
    x, w, b, out = random(N_PREFILL, D_MODEL), random(D_MODEL), random(D_MODEL), random(N_PREFILL, D_MODEL)
    return Work(cycle([partial(kernels.layer_norm, x, w, b, 1e-5, out)]), 2 * x.nbytes)


def rotary(halves: bool = False) -> Work:
    x, out = random(N_PREFILL, N_HEAD, D_HEAD), random(N_PREFILL, N_HEAD, D_HEAD)
    tables = rotary_tables(D_ROTARY, N_CTX, halves=halves)
    turn = kernels.rotary_halves if halves else kernels.rotary
    return Work(cycle([partial(turn, x, *tables, np.arange(N_PREFILL), out)]), 2 * x.nbytes)


def row_sum(n_bytes: int = BEYOND_CACHES) -> Work:
    """Reading memory and little else: the yardstick of decode. ``n_bytes`` at a call."""
    n_copies = -(-BEYOND_CACHES // n_bytes)
    buffers = random(n_copies, 64, n_bytes // 256)
    return Work(cycle([partial(kernels.row_sum, buffer) for buffer in buffers]), buffers[0].nbytes)


def pack(dtype: str) -> Work:
    w = random(D_FF, D_MODEL, dtype=dtype)
    return Work(cycle([partial(kernels.pack, w)]), 2 * w.nbytes)


def pack_rounded() -> Work:
    w = random(D_FF, D_MODEL)
    return Work(cycle([partial(kernels.pack, w, Panels.zeros("bf16", *w.shape))]), w.nbytes + w.nbytes // 2)


def quantise(kind: str) -> Work:
    """What is read: the float16 weights of a checkpoint."""
    w = random(D_FF, D_MODEL, dtype="f16")
    out = Panels.zeros(kind, *w.shape)
    return Work(cycle([partial(kernels.quantise, w, kind, out)]), w.nbytes)


def digests() -> Work:
    words = random(BEYOND_CACHES // 4).view(np.uint32)
    return Work(cycle([partial(kernels.digests, words)]), words.nbytes)


LAYERS = {"4096 -> 4096": (D_MODEL, D_MODEL), "4096 -> 16384": (D_MODEL, D_FF), "16384 -> 4096": (D_FF, D_MODEL)}
HEAD = {"4096 -> 50400": (D_MODEL, N_VOCAB)}


def linears(kind: str) -> dict[str, Callable[[], Work]]:
    make = linear_quantised if kind in BLOCK_BYTES else linear
    if kind == "bf16_dots":
        make, kind = partial(linear, compute="bf16"), "bf16"
    decode = {f"1 row, {name}": partial(make, kind, 1, *shape) for name, shape in (LAYERS | HEAD).items()}
    return decode | {f"512 rows, {name}": partial(make, kind, N_PREFILL, *shape) for name, shape in LAYERS.items()}


def attentions(dtype: KVDtype) -> dict[str, Callable[[], Work]]:
    whole = {
        f"{n} rows, 2048 keys" if n > 1 else "1 row, 2048 keys": partial(attention, dtype, n) for n in (1, N_PREFILL)
    }
    return whole | {"1 row, the last 256 of 2048 keys": partial(attention, dtype, 1, N_CTX // 8)}


CASES: dict[str, dict[str, Callable[[], Work]]] = {
    **{f"linear_{dtype}": linears(dtype) for dtype in (*KINDS, "bf16_dots")},
    **{
        f"linear_backward_{kind}": {
            f"256 rows, {name}": partial(linear_backward, kind, n_out, n_in) for name, (n_in, n_out) in LAYERS.items()
        }
        for kind in (*KINDS, *(f"dots_{kind}" for kind in ("bf16", *BLOCK_BYTES)))
    },
    **{
        op: {
            f"256 rows, {name}": partial(linear_weight_backward, n_out, n_in, compute)
            for name, (n_in, n_out) in LAYERS.items()
        }
        for op, compute in (("linear_weight_backward", "f32"), ("linear_weight_backward_dots", "bf16"))
    },
    "column_sum": {"256 rows of 16384": column_sum},
    "attention_backward": {
        "256 rows": partial(attention_backward, N_TRAIN),
        "2048 rows": partial(attention_backward, N_CTX),
    },
    "cross_entropy_backward": {"128 rows of 50400": cross_entropy_backward},
    "layer_norm_backward": {"256 rows of 4096": partial(layer_norm_backward, False)},
    "layer_norm_weight_backward": {"256 rows of 4096": partial(layer_norm_backward, True)},
    "embedding_backward": {"256 rows of 4096": embedding_backward},
    "adamw": {"16384 x 4096": partial(adamw, kernels.adamw, correction=0.5)},
    "adamw_averaged": {
        "16384 x 4096": partial(
            adamw, kernels.adamw_averaged, mean_correction=0.5, square_correction=0.3, of_variance=0.2
        )
    },
    "gram": {"4096 x 4096": gram},
    "newton_schulz": {"4096 x 16384": newton_schulz},
    "quantise_rows": {"512 rows of 16384": quantise_rows},
    "round_rows": {"512 rows of 16384": round_rows},
    **{f"attention_{dtype}": attentions(dtype) for dtype in KV_DTYPES},
    **{f"kv_append_{dtype}": {"512 rows": partial(kv_append, dtype)} for dtype in KV_DTYPES},
    **{f"embedding_{dtype}": {"512 rows of 4096": partial(embedding, dtype)} for dtype in ("f32", "f16", "bf16")},
    "embedding_q8": {"512 rows of 4096": embedding_quantised},
    **{
        f"embedding_panels_{dtype}": {"512 rows of 4096": partial(embedding_panels, dtype)}
        for dtype in ("f32", "f16", "bf16")
    },
    "residual": {"512 rows of 4096": residual},
    "add": {"512 rows of 4096": add},
    "softmax": {"512 rows of 2048": partial(rowwise, "softmax", N_CTX)},
    "gelu": {"512 rows of 16384": partial(rowwise, "gelu", D_FF)},
    "gelu_erf": {"512 rows of 16384": partial(rowwise, "gelu_erf", D_FF)},
    **{op: {"512 rows of 16384": partial(gelu_backward, op)} for op in ("gelu_backward", "gelu_erf_backward")},
    "layer_norm": {"512 rows of 4096": layer_norm},
    "rotary": {"512 rows, 64 of 256 turn": rotary},
    "rotary_halves": {"512 rows, 64 of 256 turn": partial(rotary, True)},
    "row_sum": {"512 MiB": row_sum},
    "pack_b2": {"16384 x 4096": partial(pack, "f16")},
    "pack_b4": {"16384 x 4096": partial(pack, "f32")},
    "pack_rounded": {"16384 x 4096": pack_rounded},
    **{f"quantise_{kind}": {"16384 x 4096": partial(quantise, kind)} for kind in BLOCK_BYTES},
    "digests": {"512 MiB": digests},
}
