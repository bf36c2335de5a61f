"""Recorded calls: indices that change between runs are looked at before C reads them."""

import numpy as np
import pytest

from refgpt._common.errors import KernelError
from refgpt.kernels import Program, attention, embedding, kv_append, kv_shapes, query_tiles, rotary


def recorded() -> tuple[Program, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A program of four calls, the indices it reads and what it writes."""
    index = {
        "ids": np.array([3, 1, 4]),
        "positions": np.array([0, 1, 0]),
        "blocks": np.array([0, 0, 1]),
        "tables": np.array([[0], [1], [0]]),
        "n_visible": np.array([1, 2, 1]),
    }
    index["tiles"] = query_tiles(index["blocks"])
    program, table, turn = Program(), np.ones((5, 32), np.float32), np.ones((2, 4), np.float32)
    k_cache, v_cache = (np.zeros((2, *shape), np.float32) for shape in kv_shapes(2, 16, 20))
    x = embedding(table, index["ids"], program=program).reshape(3, 2, 16)
    turned = rotary(x, turn, turn, index["positions"], program=program)
    kv_append(turned, x, k_cache, v_cache, index["positions"], index["blocks"], program=program)
    index["first_visible"] = np.array([0, 1, 0])
    visible = index["n_visible"], index["first_visible"]
    how = {"tables": index["tables"], "first_visible": visible[1], "threads": 2, "program": program}
    z = attention(x, k_cache, v_cache, index["tiles"], visible[0], **how)
    return program, index, {"x": x, "z": z, "k": k_cache, "v": v_cache}


STALE = [
    ("ids", 5),
    ("ids", -1),
    ("ids", 10**12),
    ("positions", 2),
    ("positions", -1),
    ("blocks", 2),
    ("blocks", -(2**63)),
    ("tables", 2),
    ("tables", -1),
    ("n_visible", 0),
    ("n_visible", 33),
    ("n_visible", 2**62),
    ("first_visible", -1),
    ("first_visible", 2),  # where a row's last key is its first or second
    ("first_visible", 2**62),
]


@pytest.mark.parametrize(("name", "value"), STALE)
@pytest.mark.parametrize("row", [0, 2])
def test_an_index_that_has_come_to_lie_outside_is_refused_and_nothing_is_written(name, value, row):
    program, index, written = recorded()
    program.run(2)
    index[name][row] = value
    before = {key: array.tobytes() for key, array in written.items()}
    with pytest.raises(KernelError, match=name):
        program.run(2)
    assert before == {key: array.tobytes() for key, array in written.items()}


@pytest.mark.parametrize(
    ("field", "value"),
    [("first_row", 1), ("first_row", -1), ("n_rows", 0), ("n_rows", 9), ("n_rows", 2**62), ("slot", 3), ("slot", -1)],
)
def test_tiles_that_no_longer_cover_the_rows_are_refused(field, value):
    program, index, _ = recorded()
    program.run(2)
    index["tiles"][field][1] = value
    with pytest.raises(KernelError, match="tiles"):
        program.run(2)


def test_other_indices_that_exist_are_welcome():
    program, index, written = recorded()
    program.run(2)
    written["x"][:] = 0
    index["ids"][:], index["positions"][:] = [4, 4, 0], [1, 0, 1]
    program.run(1)
    assert (written["x"] == 1).all()


@pytest.mark.parametrize("threads", [0, -1, 3, 2.0, "2", 10**9])
def test_a_program_has_room_for_the_threads_it_was_recorded_for(threads):
    program, _, _ = recorded()
    with pytest.raises(KernelError, match="threads"):
        program.run(threads)
