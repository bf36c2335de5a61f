"""Quantising and checksums: byte for byte what NumPy makes of the same weights and words."""

import numpy as np
import pytest

from refgpt._common.errors import KernelError
from refgpt.kernels import Kernel, digests, pack, quantise
from refgpt.numbers import checksums, quantisation
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.panels import Panels
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
