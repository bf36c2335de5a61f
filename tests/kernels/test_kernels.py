"""Every row of the table: held to the spec within a derived bound, and to its scalar row by equality of bits."""

from functools import cache

import numpy as np
import pytest

from refgpt.kernels import list_kernels
from tests.helpers.buffers import FLAVOURS, RUNNABLE, assert_same_bits, in_pieces, split_at
from tests.helpers.oracles import EVERY_ROW, ORACLES, Case, hold_to_scalar, hold_to_spec

# Around the widths of vectors and around one, two and more chunks of an inner sum.
SIZES = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 200]
# Around tiles of rows (up to 16), panels (16), groups (24), blocks (64, 96); 13 and 19 make tiles of 7, 6 and 3.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 19, 33, 130]
SHAPES = {f"n={n}": [(n, 3)] for n in SIZES} | {
    "rows": [(40, n_rows) for n_rows in ROWS],
    "both": [(0, 9), (1, 33), (129, 17), (200, 9)],
}
each_row = pytest.mark.parametrize("kernel", RUNNABLE, ids=str)
each_fast_row = pytest.mark.parametrize("kernel", [k for k in RUNNABLE if k.isa != "scalar"], ids=str)


@cache
def case_of(op: str, n: int, n_rows: int, flavour: str = "ordinary") -> Case:
    return ORACLES[op](n, n_rows, flavour, np.random.default_rng([n, n_rows]))


@pytest.mark.parametrize("kernel", [k for k in list_kernels() if k.isa != "scalar"], ids=str)
def test_the_row_can_run_here(kernel):
    if kernel.obstacle:
        pytest.skip(f"{kernel.isa} not tested: {kernel.obstacle}")
    assert kernel in RUNNABLE


@each_row
@pytest.mark.parametrize("shapes", SHAPES)
def test_kernel_matches_spec(kernel, shapes):
    for n, n_rows in SHAPES[shapes]:
        hold_to_spec(case_of(kernel.op, n, n_rows), kernel)


@each_row
@pytest.mark.parametrize("flavour", FLAVOURS[1:])
def test_kernel_matches_spec_on_strange_numbers(kernel, flavour):
    for n, n_rows in [(70, 3), (70, 20)]:
        hold_to_spec(case_of(kernel.op, n, n_rows, flavour), kernel)


@each_fast_row
@pytest.mark.parametrize("shapes", SHAPES)
def test_kernel_has_the_bits_of_its_scalar_row(kernel, shapes):
    for n, n_rows in SHAPES[shapes]:
        hold_to_scalar(case_of(kernel.op, n, n_rows), kernel)


@each_fast_row
@pytest.mark.parametrize("flavour", FLAVOURS[1:])
def test_kernel_has_the_bits_of_its_scalar_row_on_strange_numbers(kernel, flavour):
    for n, n_rows in [(70, 3), (70, 20)]:
        hold_to_scalar(case_of(kernel.op, n, n_rows, flavour), kernel)


@each_row
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("grain", [1, 3])
def test_threads_do_not_change_the_bits(kernel, threads, grain):
    for n, n_rows in [(33, 3), (65, 50)]:
        case = case_of(kernel.op, n, n_rows)
        wants, outputs = case.run(kernel, EVERY_ROW), case.run(in_pieces(kernel, threads, grain), EVERY_ROW)
        for output, want in zip(outputs, wants, strict=True):
            assert_same_bits(output.value, want.value)
            assert np.isnan(output.guards).all()


@each_row
def test_a_row_has_the_same_bits_alone_and_in_any_company(kernel):
    n_rows = 40
    case = case_of(kernel.op, 65, n_rows)
    together = case.run(kernel, EVERY_ROW)
    cuts = [slice(r, r + 1) for r in (0, 13, 39)] + [slice(0, 7), slice(5, 14), slice(3, 36)]
    for rows in cuts:
        for part, whole in zip(case.run(kernel, rows), together, strict=True):
            n = rows.stop - rows.start
            assert_same_bits(part.value[:n], whole.value[rows])  # packing pads to whole panels


@each_row
def test_a_kernel_writes_the_outputs_of_its_items_and_nothing_else(kernel):
    case = case_of(kernel.op, 33, 40)
    whole = case.run(kernel, EVERY_ROW)
    lead, rest = (case.run(part, EVERY_ROW) for part in split_at(kernel, 0.4))
    for first, second, both in zip(lead, rest, whole, strict=True):
        unwritten = np.isnan(first.value)
        assert 0.2 < unwritten.mean() < 0.9
        assert np.array_equal(unwritten, ~np.isnan(second.value))
        assert_same_bits(np.where(unwritten, second.value, first.value), np.ascontiguousarray(both.value))
