"""Unusable arguments of ``refgpt.kernels``: a KernelError before anything is written."""

from functools import partial

import numpy as np
import pytest

from refgpt._common.errors import KernelError
from refgpt.kernels import (
    active,
    add,
    attention,
    check_threads,
    digests,
    embedding,
    gelu,
    gelu_backward,
    gelu_erf,
    kv_append,
    kv_shapes,
    layer_norm,
    linear,
    pack,
    quantise,
    quantise_rows,
    query_tiles,
    residual,
    rotary,
    rotary_halves,
    round_rows,
    row_sum,
    softmax,
)
from refgpt.kernels.attention import QUERY_TILE
from refgpt.runtime.rotation import rotary_tables

N, C, F, HEADS, D, SLOTS, CAPACITY = 5, 12, 20, 3, 4, 2, 32


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def indices(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def caches(dtype=np.float32) -> dict[str, np.ndarray]:
    shapes = kv_shapes(HEADS, D, CAPACITY)
    return {name: np.zeros((SLOTS, *shape), dtype) for name, shape in zip(("k_cache", "v_cache"), shapes, strict=True)}


# Every op with arguments that it accepts, and what it writes to.
GOOD = {
    "linear": lambda: {"x": floats(N, C), "w": pack(floats(F, C)), "bias": floats(F), "out": floats(N, F)},
    "quantise_rows": lambda: {"x": floats(N, C), "out": np.zeros(N * 40, np.uint8)},
    "round_rows": lambda: {"x": floats(N, C), "out": np.zeros((1, C // 2, 16), np.uint32)},
    "add": lambda: {"x": floats(N, C), "a": floats(N, C), "out": floats(N, C)},
    "residual": lambda: {"x": floats(N, C), "a": floats(N, C), "b": floats(N, C), "out": floats(N, C)},
    "embedding": lambda: {"table": floats(7, C), "ids": indices(0, 1, 2, 3, 6), "out": floats(N, C)},
    "layer_norm": lambda: {"x": floats(N, C), "w": floats(C), "b": floats(C), "eps": 1e-5, "out": floats(N, C)},
    "gelu_erf": lambda: {"x": floats(N, C), "out": floats(N, C)},
    "gelu": lambda: {"x": floats(N, C), "out": floats(N, C)},
    "gelu_backward": lambda: {"x": floats(N, C), "dy": floats(N, C), "out": floats(N, C)},
    "softmax": lambda: {"x": floats(N, C), "out": floats(N, C)},
    "row_sum": lambda: {"x": floats(N, C)},
    "rotary_halves": lambda: {
        "x": floats(N, HEADS, D),
        "cos": rotary_tables(2, 9, halves=True)[0],
        "sin": rotary_tables(2, 9, halves=True)[1],
        "positions": indices(0, 1, 2, 3, 8),
        "out": floats(N, HEADS, D),
    },
    "rotary": lambda: {
        "x": floats(N, HEADS, D),
        "cos": rotary_tables(2, 9)[0],
        "sin": rotary_tables(2, 9)[1],
        "positions": indices(0, 1, 2, 3, 8),
        "out": floats(N, HEADS, D),
    },
    "kv_append": lambda: {
        "k": floats(N, HEADS, D),
        "v": floats(N, HEADS, D),
        **caches(),
        "positions": indices(0, 1, 2, 3, 31),
        "blocks": indices(0, 0, 0, 1, 1),
    },
    "attention": lambda: {
        "q": floats(N, HEADS, D),
        **caches(),
        "tiles": query_tiles(indices(0, 0, 0, 1, 1)),
        "tables": None,
        "n_visible": indices(1, 2, 3, 4, 32),
        "first_visible": indices(0, 1, 0, 3, 20),
        "out": floats(N, HEADS, D),
        "pattern": floats(HEADS, N, 32),
        "scratch": floats(4, 8, 32),
    },
    "pack": lambda: {"w": floats(F, C)},
    "quantise": lambda: {"w": floats(F, C), "kind": "q4"},
    "digests": lambda: {"words": np.ones(70, np.uint32), "piece_words": 20, "out": np.ones(4, np.uint64)},
}
OPS = {
    f.__name__: f
    for group in (
        (linear, pack, quantise_rows, round_rows, residual, add, embedding),
        (layer_norm, gelu, gelu_backward, gelu_erf, softmax, row_sum, rotary, rotary_halves),
        (kv_append, attention, quantise, digests),
    )
    for f in group
}
WRITTEN = ("out", "k_cache", "v_cache", "pattern")


def strided(x: np.ndarray) -> np.ndarray:
    """The same numbers, not side by side."""
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def fixed(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def shifted(x: np.ndarray) -> np.ndarray:
    """The same numbers at an odd address."""
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    raw[:] = x.reshape(-1).view(np.uint8)
    return raw.view(x.dtype).reshape(x.shape)


def tiles(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(list(rows), QUERY_TILE)


FLOAT_ARRAYS = [
    ("quantise_rows", "x"),
    ("round_rows", "x"),
    ("residual", "x"),
    ("add", "x"),
    ("add", "a"),
    ("add", "out"),
    ("residual", "a"),
    ("residual", "b"),
    ("residual", "out"),
    ("linear", "x"),
    ("linear", "bias"),
    ("linear", "out"),
    ("embedding", "out"),
    ("layer_norm", "x"),
    ("layer_norm", "w"),
    ("layer_norm", "b"),
    ("layer_norm", "out"),
    ("gelu", "x"),
    ("gelu", "out"),
    ("gelu_erf", "x"),
    ("gelu_erf", "out"),
    ("gelu_backward", "x"),
    ("gelu_backward", "dy"),
    ("gelu_backward", "out"),
    ("softmax", "x"),
    ("softmax", "out"),
    ("row_sum", "x"),
    ("rotary", "x"),
    ("rotary", "cos"),
    ("rotary", "sin"),
    ("rotary", "out"),
    ("rotary_halves", "x"),
    ("rotary_halves", "cos"),
    ("rotary_halves", "sin"),
    ("rotary_halves", "out"),
    ("kv_append", "k"),
    ("kv_append", "v"),
    ("attention", "q"),
    ("attention", "out"),
    ("attention", "pattern"),
    ("attention", "scratch"),
]
STORED_ARRAYS = [
    ("embedding", "table"),
    ("pack", "w"),
    ("quantise", "w"),
    ("kv_append", "k_cache"),
    ("kv_append", "v_cache"),
    ("attention", "k_cache"),
    ("attention", "v_cache"),
]
INDEX_ARRAYS = [
    ("embedding", "ids"),
    ("rotary", "positions"),
    ("rotary_halves", "positions"),
    ("kv_append", "positions"),
    ("kv_append", "blocks"),
    ("attention", "n_visible"),
    ("attention", "first_visible"),
]
OUTPUTS = [
    (op, name)
    for op, name in FLOAT_ARRAYS + STORED_ARRAYS
    if name in (*WRITTEN, "scratch") and not (op == "attention" and name.endswith("cache"))
]

CHANGES = {
    "of one dimension more": lambda x: x[None],
    "longer": lambda x: np.concatenate([x, x[:1]]),
    "strided": strided,
    "at an odd address": shifted,
}
HARMLESS = {
    ("pack", "w", "longer"),
    ("pack", "w", "at an odd address"),
    ("quantise", "w", "longer"),
    ("quantise", "w", "at an odd address"),
    ("embedding", "table", "longer"),
    ("round_rows", "x", "longer"),
    ("row_sum", "x", "longer"),
    ("attention", "scratch", "longer"),
}
FAULTS = [
    *(
        (op, name, what, change)
        for op, name in FLOAT_ARRAYS + STORED_ARRAYS + INDEX_ARRAYS
        for what, change in CHANGES.items()
        if (op, name, what) not in HARMLESS
    ),
    *((op, name, "of float64", lambda x: x.astype(np.float64)) for op, name in FLOAT_ARRAYS + STORED_ARRAYS),
    *((op, name, "of int8", lambda x: x.astype(np.int8)) for op, name in FLOAT_ARRAYS + STORED_ARRAYS),
    *((op, name, "big-endian", lambda x: x.astype(">f4")) for op, name in FLOAT_ARRAYS + STORED_ARRAYS),
    *((op, name, "of int32", lambda x: x.astype(np.int32)) for op, name in INDEX_ARRAYS),
    *((op, name, "of floats", lambda x: x.astype(np.float64)) for op, name in INDEX_ARRAYS),
    *((op, name, "read-only", fixed) for op, name in OUTPUTS),
    *((op, name, "with -1", lambda x: np.append(indices(-1), x[1:])) for op, name in INDEX_ARRAYS),
    *((op, name, "with 33", lambda x: np.append(x[:-1], indices(33))) for op, name in INDEX_ARRAYS),
    *((op, name, "with 2^40", lambda x: np.append(x[:-1], indices(1 << 40))) for op, name in INDEX_ARRAYS),
    *((op, name, "as a list", lambda x: x.tolist()) for op, name in FLOAT_ARRAYS + STORED_ARRAYS + INDEX_ARRAYS),
    *((op, name, "of another kind of thing", lambda x: "x") for op, name in FLOAT_ARRAYS + INDEX_ARRAYS),
    ("attention", "tiles", "as a list", lambda x: x.tolist()),
    ("quantise_rows", "out", "as bytes", lambda x: bytearray(x)),
    ("digests", "words", "as bytes", lambda x: x.tobytes()),
    ("digests", "out", "as a list", lambda x: x.tolist()),
    ("digests", "piece_words", "of half a word", lambda x: 0.5),
    ("digests", "piece_words", "beyond 64 bits", lambda x: 1 << 70),
    ("layer_norm", "eps", "as a text", lambda x: "1e-5"),
    ("linear", "w", "that were never packed", lambda x: floats(F, C)),
    ("quantise_rows", "out", "short", lambda x: x[1:]),
    ("quantise_rows", "out", "long", lambda x: np.append(x, x[:1])),
    ("quantise_rows", "out", "of floats", lambda x: x.view(np.float32)),
    ("quantise_rows", "out", "read-only", fixed),
    ("round_rows", "out", "as bytes", lambda x: x.tobytes()),
    ("round_rows", "out", "of a panel more", lambda x: np.concatenate([x, x])),
    ("round_rows", "out", "of floats", lambda x: x.view(np.float32)),
    ("round_rows", "out", "strided", strided),
    ("round_rows", "out", "read-only", fixed),
    ("attention", "n_visible", "with 0", lambda x: np.append(indices(0), x[1:])),
    ("attention", "first_visible", "of a row that sees no key", lambda x: np.append(indices(1), x[1:])),
    ("attention", "first_visible", "negative", lambda x: np.append(indices(-1), x[1:])),
    ("attention", "first_visible", "short of a row", lambda x: x[1:]),
    ("embedding", "ids", "just too large", lambda x: np.append(x[:-1], indices(7))),
    ("rotary", "positions", "just too large", lambda x: np.append(x[:-1], indices(9))),
    ("kv_append", "positions", "just too large", lambda x: np.append(x[:-1], indices(32))),
    ("kv_append", "blocks", "just too large", lambda x: np.append(x[:-1], indices(2))),
    ("attention", "tables", "of no block", lambda x: np.full((2, 2), 2)),
    ("attention", "tables", "with -1", lambda x: np.full((2, 2), -1)),
    ("attention", "tables", "of floats", lambda x: np.zeros((2, 2))),
    ("attention", "tables", "strided", lambda x: np.zeros((2, 4), np.int64)[:, ::2]),
    ("attention", "tables", "of one dimension", lambda x: np.zeros(2, np.int64)),
    ("attention", "tables", "of one sequence", lambda x: np.zeros((1, 1), np.int64)),
    ("attention", "tables", "as a list", lambda x: [[0], [1]]),
    ("attention", "tables", "of more positions than scratch has", lambda x: np.zeros((2, 2), np.int64)),
    ("attention", "tiles", "of other fields", lambda x: x.view(np.int64)),
    ("attention", "tiles", "strided", lambda x: np.repeat(x, 2)[::2]),
    ("attention", "tiles", "short of a row", lambda x: tiles((0, 3, 0), (3, 1, 1))),
    ("attention", "tiles", "shifted by a row", lambda x: tiles((1, 3, 0), (4, 2, 1))),
    ("attention", "tiles", "at a negative row", lambda x: tiles((-1, 3, 0), (3, 2, 1))),
    ("attention", "tiles", "twice the same rows", lambda x: tiles((0, 3, 0), (0, 2, 1))),
    ("attention", "tiles", "of a negative height", lambda x: tiles((0, 6, 0), (6, -1, 1))),
    ("attention", "tiles", "of no slot", lambda x: tiles((0, 3, 0), (3, 2, 2))),
    ("attention", "tiles", "of a negative slot", lambda x: tiles((0, 3, 0), (3, 2, -1))),
    ("attention", "scratch", "too small", lambda x: x[:1]),
    ("attention", "pattern", "too narrow", lambda x: np.ascontiguousarray(x[:, :, :31])),
    ("attention", "k_cache", "of float16", lambda x: x.astype(np.float16)),
    ("attention", "v_cache", "of no dimension", lambda x: floats()),
    ("attention", "k_cache", "of no dimension", lambda x: floats()),
    ("kv_append", "v_cache", "of one dimension", lambda x: floats(4)),
    ("quantise", "kind", "of floats", lambda x: "f16"),
    ("digests", "words", "of bytes", lambda x: x.view(np.uint8)),
    ("digests", "words", "big-endian", lambda x: x.astype(">u4")),
    ("digests", "words", "strided", strided),
    ("digests", "words", "at an odd address", shifted),
    ("digests", "words", "longer by a piece", lambda x: np.ones(81, np.uint32)),
    ("digests", "piece_words", "of nothing", lambda x: 0),
    ("digests", "out", "read-only", fixed),
    ("digests", "out", "of int64", lambda x: x.astype(np.int64)),
    ("rotary", "cos", "odd", lambda x: floats(9, 3)),
    ("rotary", "cos", "wider than a head", lambda x: floats(9, 6)),
]


def call(op: str, arguments: dict) -> None:
    OPS[op](**arguments, threads=2)


@pytest.mark.parametrize("op", GOOD)
def test_the_arguments_are_good_to_begin_with(op):
    call(op, GOOD[op]())


@pytest.mark.parametrize(("op", "name", "what", "change"), FAULTS, ids=[f"{f[0]}: {f[1]} {f[2]}" for f in FAULTS])
def test_a_faulty_argument_is_named_and_nothing_is_written(op, name, what, change):
    arguments = GOOD[op]()
    arguments[name] = change(arguments[name])
    outputs = {key: arguments[key] for key in WRITTEN if isinstance(arguments.get(key), np.ndarray)}
    before = {key: value.tobytes() for key, value in outputs.items()}
    with pytest.raises(KernelError):
        call(op, arguments)
    assert before == {key: value.tobytes() for key, value in outputs.items()}


# Each output with the inputs that it may take the place of, and those it may not touch.
OVERLAPS = {
    ("linear", "out"): ((), ("x", "bias")),
    ("embedding", "out"): ((), ("table",)),
    ("layer_norm", "out"): (("x",), ("w", "b")),
    ("gelu", "out"): (("x",), ()),
    ("gelu_erf", "out"): (("x",), ()),
    ("add", "out"): (("x", "a"), ()),
    ("rotary_halves", "out"): (("x",), ("cos", "sin")),
    ("gelu_backward", "out"): (("x", "dy"), ()),
    ("softmax", "out"): (("x",), ()),
    ("residual", "out"): (("x", "a", "b"), ()),
    ("rotary", "out"): (("x",), ("cos", "sin")),
    ("kv_append", "k_cache"): ((), ("k", "v", "v_cache")),
    ("kv_append", "v_cache"): ((), ("k", "v")),
    ("attention", "out"): ((), ("q", "k_cache", "v_cache", "pattern", "scratch")),
    ("attention", "pattern"): ((), ("q", "k_cache", "v_cache", "scratch")),
    ("attention", "scratch"): ((), ("q", "k_cache", "v_cache")),
}
ALL_OVERLAPS = [(op, out, name, name in over) for (op, out), (over, apart) in OVERLAPS.items() for name in over + apart]


def overlapping(arguments: dict, first: str, second: str, shift: int) -> None:
    """Move two of the arguments into one buffer, the second ``shift`` numbers after the first."""
    a, b = arguments[first], arguments[second]
    buffer = np.ones(max(a.size, b.size + shift), np.float32)
    arguments[first], arguments[second] = buffer[: a.size].reshape(a.shape), buffer[shift:][: b.size].reshape(b.shape)


@pytest.mark.parametrize(("op", "out", "name", "in_place"), ALL_OVERLAPS)
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_an_output_overlaps_no_input_unless_it_is_that_input(op, out, name, in_place, shift):
    arguments = GOOD[op]()
    overlapping(arguments, out, name, shift)
    if in_place and shift == 0:
        call(op, arguments)
        return
    with pytest.raises(KernelError, match=f"{out}|{name}"):
        call(op, arguments)


def test_packed_outputs_overlap_no_input():
    panels, words = pack(floats(F, C)), np.ones(8, np.uint32)
    with pytest.raises(KernelError, match="out"):
        pack(panels.data.reshape(-1)[: F * C].reshape(F, C), panels)
    with pytest.raises(KernelError, match="out"):
        digests(words, 4, words[:4].view(np.uint64))
    rows = floats(4, 32)
    with pytest.raises(KernelError, match="out"):
        quantise_rows(rows, rows.reshape(-1).view(np.uint8)[: 4 * 40])
    rows = floats(16, 32)
    with pytest.raises(KernelError, match="out"):
        round_rows(rows, rows.reshape(-1).view(np.uint32)[: 16 * 16].reshape(1, 16, 16))
    ids = np.zeros(2, np.int64)
    with pytest.raises(KernelError, match="out"):
        embedding(floats(2, 2), ids, ids.view(np.float32).reshape(2, 2))


@pytest.mark.parametrize("op", GOOD)
def test_a_kernel_of_another_op_is_refused(op):
    other = active("row_sum" if op != "row_sum" else "gelu")
    for wrong in (other, "scalar", 1):
        with pytest.raises(KernelError, match="kernel"):
            OPS[op](**GOOD[op](), kernel=wrong)


def test_what_is_no_program_is_refused():
    with pytest.raises(KernelError, match="program"):
        gelu(floats(N, C), program=[])


def test_a_tile_of_nine_rows_is_refused():
    q, n_visible = floats(9, HEADS, D), np.ones(9, np.int64)
    with pytest.raises(KernelError):
        attention(q, **caches(), tiles=tiles((0, 9, 0)), n_visible=n_visible)


def test_blocks_that_end_amid_a_chunk_are_refused():
    q, n_visible = floats(1, HEADS, D), indices(1)
    shapes = kv_shapes(HEADS, D, 48)
    k_cache, v_cache = (np.zeros((2, *shape), np.float32) for shape in shapes)
    attention(q, k_cache, v_cache, tiles((0, 1, 0)), n_visible, tables=np.array([[1]]))
    with pytest.raises(KernelError, match="amid a chunk; got blocks of 48; wanted a multiple of 32"):
        attention(q, k_cache, v_cache, tiles((0, 1, 0)), n_visible, tables=np.array([[1, 0]]))


def test_a_bfloat16_cache_is_refused():
    from refgpt.numbers.dtypes import BFLOAT16

    arguments = GOOD["kv_append"]() | caches(BFLOAT16)
    with pytest.raises(KernelError, match="float32, float16 or int8"):
        kv_append(**arguments)


@pytest.mark.parametrize("threads", [-1, 1.5, True, "2", 1025])
def test_a_number_of_threads_that_makes_no_sense_is_refused(threads):
    with pytest.raises(KernelError, match="threads"):
        check_threads(threads)
    for op in GOOD:
        with pytest.raises(KernelError, match="threads"):
            OPS[op](**GOOD[op](), threads=threads)


@pytest.mark.parametrize("slots", [[], [0], [1, 1, 1], [0] * 9 + [1] + [0] * 17, [3, 2, 1]])
def test_query_tiles_cover_neighbours_of_one_sequence(slots):
    cut = query_tiles(indices(*slots))
    rows = [(row, tile["slot"]) for tile in cut for row in range(tile["first_row"], tile["first_row"] + tile["n_rows"])]
    assert rows == list(enumerate(slots))
    assert all(1 <= tile["n_rows"] <= 8 for tile in cut)


@pytest.mark.parametrize("op", GOOD)
def test_no_rows_are_no_work(op):
    empty = {
        "quantise_rows": ("x", "out"),
        "round_rows": ("x", "out"),
        "add": ("x", "a", "out"),
        "residual": ("x", "a", "b", "out"),
        "linear": ("x", "out"),
        "embedding": ("ids", "out"),
        "layer_norm": ("x", "out"),
        "gelu": ("x", "out"),
        "gelu_erf": ("x", "out"),
        "gelu_backward": ("x", "dy", "out"),
        "softmax": ("x", "out"),
        "row_sum": ("x",),
        "rotary": ("x", "positions", "out"),
        "rotary_halves": ("x", "positions", "out"),
        "kv_append": ("k", "v", "positions", "blocks"),
        "attention": ("q", "tiles", "n_visible", "first_visible", "out"),
        "pack": ("w",),
        "quantise": ("w",),
        "digests": ("words", "out"),
    }[op]
    arguments = GOOD[op]()
    arguments |= {name: arguments[name][:0] for name in empty}
    if op == "attention":
        arguments["pattern"] = floats(HEADS, 0, 32)
    partial(OPS[op], **arguments)()
