"""Panels are what they say, or they are not made."""

import numpy as np
import pytest

from refgpt._common.errors import KernelError
from refgpt.kernels import embedding, linear, pack, quantise
from refgpt.numbers.panels import KINDS, Panels, panel_dtype, panel_shape

LIES = {
    "more outputs": {"n_out": 49},
    "fewer outputs": {"n_out": 32},
    "far more outputs": {"n_out": 1 << 40},
    "a negative number of outputs": {"n_out": -1},
    "more inputs": {"n_in": 97},
    "fewer inputs": {"n_in": 32},
    "a number that is none": {"n_in": 64.0},
    "no kind": {"kind": "q5"},
    "a kind that is no text": {"kind": ["q8"]},
    "a list": {"data": [0.0] * 16},
    "other data": {"data": np.zeros(16, np.float32)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_the_data_does_not_bear_out_is_refused(kind, lie):
    truth = {"data": Panels.zeros(kind, 48, 70).data, "n_out": 48, "n_in": 70, "kind": kind}
    assert Panels(**truth).shape == (48, 70)
    with pytest.raises(KernelError):
        Panels(**truth | LIES[lie])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_panels_of_another_kind_are_refused(kind, other):
    data = np.zeros(panel_shape(kind, 48, 64), panel_dtype(kind))
    if kind == other:
        Panels(data, 48, 64, other)
        return
    with pytest.raises(KernelError):
        Panels(data, 48, 64, other)


@pytest.mark.parametrize(("first", "last"), [(0, 41), (0, 1 << 40), (48, 49), (-16, 16), (16, 0), (8, 16), (32, 48)])
def test_a_part_beyond_the_matrix_is_refused(first, last):
    panels = pack(np.ones((40, 20), np.float32))
    with pytest.raises(KernelError, match="rows"):
        panels.part(first, last)


@pytest.mark.parametrize(("first", "last"), [(0, 40), (16, 40), (16, 17), (0, 0), (32, 32)])
def test_a_part_within_it_is_that_part(first, last):
    w = np.arange(40 * 20, dtype=np.float32).reshape(40, 20)
    part = pack(w).part(first, last)
    assert part.shape == (last - first, 20)
    assert np.array_equal(part.rows(0, last - first), w[first:last])


def test_what_is_not_packed_is_refused_by_name():
    x, w, ids = np.ones((2, 20), np.float32), np.ones((40, 20), np.float32), np.array([1])
    for wrong in (w, [w], None):
        with pytest.raises(KernelError, match="w"):
            linear(x, wrong)
        if wrong is not None:
            with pytest.raises(KernelError, match="out"):
                pack(w, wrong)
    with pytest.raises(KernelError, match="table"):
        embedding([[1.0]], ids)
    with pytest.raises(KernelError, match="out"):
        quantise(w, "q8", pack(w))
