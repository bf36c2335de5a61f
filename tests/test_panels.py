"""Panels hold what was packed, and leaves in slices are whole leaves."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt import params
from refgpt.encoded import Encoded
from refgpt.kernels import pack
from refgpt.panels import Panels, panel_shape
from refgpt.params import BFLOAT16, row_slices, widen


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16])
def test_panels_give_back_the_rows_they_were_packed_from(dtype):
    w = np.random.default_rng(0).integers(0, 1 << 12, (37, 5)).astype(f"<u{dtype.itemsize}").view(dtype)
    panels = pack(w)
    assert panels.dtype == dtype
    assert panels.shape == (37, 5)
    assert panels.nbytes == 3 * 16 * 5 * dtype.itemsize
    for start, stop in ((0, 37), (0, 1), (15, 17), (16, 32), (20, 20)):
        assert panels.rows(start, stop).tobytes() == w[start:stop].tobytes()
    assert panels[np.array([36, 0, 17])].tobytes() == w[[36, 0, 17]].tobytes()
    assert np.array_equal(widen(panels), widen(w))


def quantised(kind: str, integers: np.ndarray, scales: np.ndarray) -> Panels:
    """Panels filled byte by byte as the module describes them. integers [n_out, n_in], scales [n_out, n_blocks]."""
    panels = Panels.zeros(kind, *integers.shape)
    n_bytes = panel_shape(kind, *integers.shape)[2]
    data = panels.data
    if kind == "q4":
        data[..., : n_bytes - 32] = 0x88
    for (o, i), q in np.ndenumerate(integers):
        block = data[o // 16, i // 32]
        if kind == "q8":
            block[i % 32 // 4 * 64 + o % 16 * 4 + i % 4] = q % 256
        else:
            step, half, at = i % 32 // 8, i % 8 // 4, i % 4
            byte = step * 64 + o % 16 * 4 + at
            shift = 4 * half
            block[byte] = (int(block[byte]) & ~(15 << shift)) | (q + 8) << shift
    for (o, b), scale in np.ndenumerate(scales):
        at = n_bytes - 32 + 2 * (o % 16)
        data[o // 16, b, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return panels


@pytest.mark.parametrize(("kind", "least", "most"), [("q8", -128, 127), ("q4", -8, 7)])
@pytest.mark.parametrize("n_in", [1, 31, 32, 33, 70])
def test_quantised_panels_are_scale_times_integer(kind, least, most, n_in):
    rng = np.random.default_rng(n_in)
    integers = rng.integers(least, most + 1, (21, n_in))
    scales = rng.uniform(1e-3, 2, (21, -(-n_in // 32))).astype(np.float16)
    want = integers * np.repeat(scales.astype(np.float64), 32, axis=1)[:, :n_in]
    panels = quantised(kind, integers, scales)
    assert panels.dtype == np.float32
    assert np.array_equal(panels.rows(0, 21), want)
    assert np.array_equal(panels.rows(15, 18), want[15:18])
    assert np.array_equal(panels[np.array([20, 3])], want[[20, 3]])


class Doubling(Encoded):
    """Rows of their own number; what is asked for is noted."""

    dtype, encoding, place = np.dtype(np.float32), "doubling", "nowhere"

    def __init__(self, shape):
        self.shape, self.nbytes, self.asked = shape, 0, []

    def rows(self, start, stop):
        self.asked.append((start, stop))
        return np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], self.shape[1], axis=1)


def test_slices_are_whole_panels_and_together_the_leaf(monkeypatch):
    monkeypatch.setattr(params, "SLICE", 640)
    whole = Doubling((200, 10)).rows(0, 200)
    for leaf in (Doubling((200, 10)), whole):
        slices = list(row_slices(leaf))
        assert [len(rows) for rows in slices] == [64, 64, 64, 8]
        assert np.array_equal(np.concatenate(slices), whole)
    assert [len(rows) for rows in row_slices(np.ones(700))] == [640, 60]
