"""Panels hold what was packed, and leaves in slices are whole leaves."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt.kernels import pack, quantise_rows
from refgpt.kernels.linear import RECORD
from refgpt.kernels.native import ROW_GROUP, lib
from refgpt.numbers import leaves
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import row_slices, widen
from refgpt.numbers.panels import BLOCK, LANES
from tests.helpers.quantised import quantised_panels


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
    assert panels[np.array([], np.int64)].shape == (0, 5)
    assert np.array_equal(widen(panels), widen(w))


@pytest.mark.parametrize(("kind", "least", "most"), [("q8", -128, 127), ("q4", -8, 7), ("q3", -4, 3)])
@pytest.mark.parametrize("n_in", [1, 31, 32, 33, 70])
def test_quantised_panels_are_scale_times_integer(kind, least, most, n_in):
    rng = np.random.default_rng(n_in)
    integers = rng.integers(least, most + 1, (21, n_in))
    scales = rng.uniform(1e-3, 2, (21, -(-n_in // 32))).astype(np.float16)
    want = integers * np.repeat(scales.astype(np.float64), 32, axis=1)[:, :n_in]
    panels = quantised_panels(kind, integers, scales)
    assert panels.dtype == np.float32
    assert np.array_equal(panels.rows(0, 21), want)
    assert np.array_equal(panels.rows(15, 18), want[15:18])
    assert np.array_equal(panels[np.array([20, 3])], want[[20, 3]])


def test_a_block_of_each_kind_byte_by_byte():
    """The layout as the module writes it down: lane 3 of a panel holds 0 .. 31 less 16 (-8 .. 7 twice, -4 .. 3)."""
    integers = np.zeros((5, 32), int)
    integers[3] = np.arange(32) - 16
    block = quantised_panels("q8", integers, np.full((5, 1), 0.5)).data[0, 0]
    assert [block[i // 4 * 64 + 12 + i % 4].astype(np.int8) for i in range(32)] == integers[3].tolist()
    assert block[512:].view(np.float16).tolist() == [0.5] * 5 + [0] * 11
    integers[3] = np.arange(32) % 16 - 8
    block = quantised_panels("q4", integers, np.full((5, 1), 0.5)).data[0, 0]
    halves = [(block[i // 8 * 64 + 12 + i % 4] >> (i % 8 // 4 * 4) & 15) for i in range(32)]
    assert halves == [q % 16 for q in range(32)]
    integers[3] = (np.arange(32) * 5 + 3) % 8 - 4
    block = quantised_panels("q3", integers, np.full((5, 1), 0.5)).data[0, 0]
    steps = [[int(block[64 * step + 12 + i]) for i in range(4)] for step in range(3)]
    steps.append([sum((steps[step][i] >> 6) * 4**step for step in range(3)) for i in range(4)])
    assert [steps[i // 8][i % 4] >> (i % 8 // 4 * 3) & 7 for i in range(32)] == (integers[3] + 4).tolist()
    assert block[192:].view(np.float16).tolist() == [0.5] * 5 + [0] * 11


class Doubling(Encoded):
    """Rows of their own number; what is asked for is noted."""

    dtype, encoding, place = np.dtype(np.float32), "doubling", "nowhere"

    def __init__(self, shape):
        self.shape, self.nbytes, self.asked = shape, 0, []

    def rows(self, start, stop):
        self.asked.append((start, stop))
        return np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], self.shape[1], axis=1)


def test_slices_are_whole_panels_and_together_the_leaf(monkeypatch):
    monkeypatch.setattr(leaves, "SLICE", 640)
    whole = Doubling((200, 10)).rows(0, 200)
    for leaf in (Doubling((200, 10)), whole):
        slices = list(row_slices(leaf))
        assert [len(rows) for rows in slices] == [64, 64, 64, 8]
        assert np.array_equal(np.concatenate(slices), whole)
    assert [len(rows) for rows in row_slices(np.ones(700))] == [640, 60]


def test_sizes_are_those_of_the_header():
    assert (lib.REFGPT_LANES, lib.REFGPT_BLOCK, lib.REFGPT_ROW_GROUP) == (LANES, BLOCK, ROW_GROUP)


def test_records_lie_where_the_kernel_writes_them():
    x = np.ones((ROW_GROUP + 1, 2 * BLOCK), np.float32)
    records, group = quantise_rows(x), ROW_GROUP * RECORD  # bytes of a block of a whole group
    for row, first, last in ((0, group, 2 * group), (ROW_GROUP, 2 * group + RECORD, 2 * group + 2 * RECORD)):
        other = x.copy()
        other[row, BLOCK:] = -2  # its integers, scale and sum are others then
        changed = np.flatnonzero(quantise_rows(other) != records)
        assert first <= changed[0] and changed[-1] < last
        assert len(changed) > BLOCK
    assert changed[-1] - changed[0] > RECORD - 4  # a lone row's record, from an integer to a byte of its sum
