"""Quantising and checksums: byte for byte what NumPy makes of the same weights and words."""

import numpy as np
import pytest

from refgpt._common.errors import KernelError
from refgpt.kernels import Kernel, digests, digests_and_finite, pack, quantise
from refgpt.numbers import checksums, quantisation
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.finite import EXPONENT_BITS
from refgpt.numbers.panels import BLOCK_BYTES, FLOATS, Panels, panel_dtype, panel_shape
from tests.helpers.buffers import RUNNABLE, in_pieces

SHAPES = [(1, 1), (16, 32), (15, 31), (17, 33), (37, 70), (5, 200), (130, 64)]


def each(prefix: str):
    rows = [kernel for kernel in RUNNABLE if kernel.op.startswith(prefix)]
    return pytest.mark.parametrize("kernel", rows, ids=str)


def weights(shape: tuple[int, int], dtype: str, seed: int = 0) -> np.ndarray:
    """Rows of every magnitude that a scale can have, some zeros, ties for the extreme and whole blocks of zeros."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape) * 10.0 ** rng.uniform(-9, 4, (shape[0], 1))
    w = np.clip(w, -65504, 65504).astype(np.float32)
    w[rng.random(shape) < 0.1] = 0
    w[::5] = np.where(rng.random(w[::5].shape) < 0.5, 0.75, -0.75)
    w[3::7] = 0
    if dtype == "bf16":
        return (w.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)
    return w.astype(dtype)


@each("quantise_q")
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "bf16"])
def test_panels_have_the_bytes_of_numpy(kernel, dtype):
    for seed, shape in enumerate(SHAPES):
        w, kind = weights(shape, dtype, seed), kernel.op[-2:]
        want = quantisation.quantise(w, kind)
        assert quantise(w, kind, kernel=kernel).data.tobytes() == want.data.tobytes()
        moved = np.zeros(w.nbytes + 1, np.uint8)[1:]
        moved[:] = w.reshape(-1).view(np.uint8)
        odd = moved.view(w.dtype).reshape(shape)
        assert quantise(odd, kind, threads=1, kernel=in_pieces(kernel, 2)).data.tobytes() == want.data.tobytes()


@each("quantise_q")
def test_the_largest_weights_can_be_quantised(kernel):
    kind = kernel.op[-2:]
    largest = np.float32(quantisation.LARGEST_WEIGHT[kind])
    w = np.where(np.arange(16 * 64).reshape(16, 64) % 3, largest, -largest)
    panels = quantise(w, kind, kernel=kernel)
    assert panels.data.tobytes() == quantisation.quantise(w, kind).data.tobytes()
    assert np.array_equal(panels.rows(0, 16), w)


@pytest.mark.parametrize("kind", ["q8", "q4", "q3"])
def test_a_matrix_quantised_in_parts_is_the_whole(kind):
    w = weights((100, 70), "<f4")
    panels = Panels.zeros(kind, *w.shape)
    for start in range(0, 100, 48):
        quantise(w[start : start + 48], kind, panels.part(start, min(start + 48, 100)))
    assert panels.data.tobytes() == quantise(w, kind).data.tobytes()


@pytest.mark.parametrize(
    "out",
    [
        Panels.zeros("q8", 20, 12),
        Panels.zeros("q4", 20, 13),
        Panels.zeros("q4", 36, 12),
        Panels.zeros("f32", 20, 13),
        Panels.zeros("f32", 36, 12),
    ],
)
def test_other_panels_are_refused(out):
    with pytest.raises(KernelError, match="panels of another kind"):
        quantise(np.ones((20, 12), np.float32), "q4", out)
    with pytest.raises(KernelError, match="panels of another kind"):
        pack(np.ones((20, 12), np.float32), out)


@each("digests")
@pytest.mark.parametrize("piece_words", [1, 63, 64, 65, 200, 1 << 14])
def test_digests_are_those_of_numpy(kernel, piece_words):
    words = np.random.default_rng(piece_words).integers(0, 1 << 32, 40_001, dtype=np.uint32)
    for n in (0, 1, 63, 64, 65, 129, 400, 40_001):
        want = checksums.digests(words[:n], piece_words)
        assert np.array_equal(digests(words[:n], piece_words, kernel=kernel), want)
        assert np.array_equal(digests(words[:n], piece_words, threads=1, kernel=in_pieces(kernel, 3)), want)


@each("digests")
def test_no_word_can_change_alone(kernel: Kernel):
    """Nor a bit in two words of one lane, which FNV without a rotation would forgive where it is the highest."""
    words = np.random.default_rng(1).integers(0, 1 << 32, 300, dtype=np.uint32)
    seen = {digests(words, kernel=kernel).tobytes()}
    changes = [(i,) for i in range(300)] + [(i, i + 64) for i in range(236)]
    for n, places in enumerate(changes):
        changed = words.copy()
        changed[list(places)] ^= np.uint32(1 << 31 >> (n % 32 if len(places) == 1 else 0))
        seen.add(digests(changed, kernel=kernel).tobytes())
    for n in (299, 256, 64):
        seen.add(digests(words[:n], kernel=kernel).tobytes())
    seen.add(digests(np.append(words, np.uint32(0)), kernel=kernel).tobytes())
    assert len(seen) == 1 + len(changes) + 4


@each("digests")
@pytest.mark.parametrize("piece_words", [1, 7, 64, 100, 1 << 14])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8", "q4", "q3"])
def test_nan_and_infinity_are_found_wherever_they_lie(kernel: Kernel, kind: str, piece_words: int):
    """Scales lie apart, between bytes of any value, and some of them on both sides of where a piece ends."""
    words = np.full(900, 0xFFFFFFFF, np.uint32)  # all of these floats would be NaN
    raw = words.view(np.uint8)[64:]
    n_out, n_in = (32, 64) if kind in BLOCK_BYTES else (32, 13)
    shape = panel_shape(kind, n_out, n_in)
    data = raw.view(panel_dtype(kind))[: np.prod(shape)].reshape(shape)
    numbers = Panels(data, n_out, n_in, kind).numbers
    bits = numbers.view(f"u{numbers.itemsize}")
    exponent = np.array(EXPONENT_BITS[kind if kind in FLOATS else "f16"], bits.dtype)
    lowest = exponent & -exponent
    bits[...] = np.random.default_rng(1).integers(0, exponent, bits.shape, bits.dtype)  # finite, to the largest
    bits.flat[:2] = exponent - lowest, ~lowest  # of either sign

    def finite() -> bool:
        found, all_of_them = digests_and_finite(words, numbers, piece_words, threads=1, kernel=kernel)
        assert np.array_equal(found, checksums.digests(words, piece_words))
        return all_of_them

    assert finite()
    for at in (0, 1, 15, 16, 17, bits.size // 2, bits.size - 1):
        for bad in (exponent, ~np.array(0, bits.dtype), exponent | np.array(1, bits.dtype)):
            before = bits.flat[at]
            bits.flat[at] = bad
            assert not finite()
            bits.flat[at] = before
    assert finite()


def test_numbers_that_do_not_lie_in_the_words_are_refused():
    words = np.ones(64, np.uint32)
    floats = words.view(np.float32)
    assert digests_and_finite(words, floats[:0])[1] and digests_and_finite(words, floats[5:].reshape(1, 59))[1]
    grid, low = floats.reshape(4, 2, 8), words[8:]
    for numbers in (np.ones(4, np.float32), floats[::2], grid[:, :1, ::2], grid[:, ::-1], grid[:, :1].T, floats[:4]):
        with pytest.raises(KernelError, match="not floats that lie in the words"):
            digests_and_finite(low, numbers)
    with pytest.raises(KernelError, match="not a dtype"):
        digests_and_finite(words, words)


def test_words_that_change_places_change_the_digest():
    words = np.arange(1, 301, dtype=np.uint32)
    swapped = words.copy()
    swapped[[7, 71]] = swapped[[71, 7]]
    moved = np.roll(words, 1)
    assert len({digests(x).tobytes() for x in (words, swapped, moved)}) == 3


def test_the_checksum_is_over_all_pieces_in_order():
    one, other = np.array([1, 2], np.uint64), np.array([2, 1], np.uint64)
    assert checksums.checksum(one) != checksums.checksum(other)
    assert checksums.checksum(one) != checksums.checksum(one[:1])
    assert len(checksums.checksum(one)) == 64
