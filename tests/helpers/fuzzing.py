"""What is done to files in the tests that damage them, and what is expected of whoever reads them."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from refgpt._common.errors import RefgptError
from tests.helpers.work import little_work

FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16", 0, 4, 24, 2**64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw, raw):
    """The bytes with a few flips, cuts, insertions, repetitions or large numbers put in."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        n_bytes = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "number"]))
        if kind == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[at:]
        elif kind == "drop":
            del raw[at : at + n_bytes]
        elif kind == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "repeat":
            raw[at:at] = raw[at : at + n_bytes]
        else:
            number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
            raw[at : at + 8] = struct.pack("<Q", number)
    return bytes(raw)


def answers_properly(
    write: Callable[[Path], Path], read: Callable[[Path], object], most_bytes: int | None
) -> RefgptError | None:
    """Whatever was written is read, or refused by one error, which is returned; with little work and in so many bytes.

    None of these: memory is not looked at, as tracing it costs more time than reading many small things.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory))
        if most_bytes is not None:
            tracemalloc.start()
        try:
            with little_work():
                read(path)
        except RefgptError as error:
            assert directory in str(error) and len(str(error)) < 6000
            return error
        finally:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert most_bytes is None or most < most_bytes
    return None


def one_file(raw: bytes, n_bytes: int | None = None) -> Callable[[Path], Path]:
    """Writes a file of these bytes, made as long as ``n_bytes`` without taking so much of the disk."""

    def write(directory: Path) -> Path:
        path = directory / "model.any"
        path.write_bytes(raw)
        if n_bytes is not None:
            with path.open("r+b") as file:
                file.truncate(n_bytes)
        return path

    return write
