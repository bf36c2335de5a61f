import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.work import little_work

STATUS = Path("/proc/self/status")
BYTES = 16 << 20


@pytest.fixture
def quick():
    """A guard: whatever runs inside is little work."""
    return little_work


@pytest.fixture
def small():
    """A guard on memory alone: tracing it is slow."""

    @contextmanager
    def guard():
        tracemalloc.start()
        try:
            yield
            assert tracemalloc.get_traced_memory()[1] < BYTES
        finally:
            tracemalloc.stop()

    return guard


@pytest.fixture
def resident_bytes():
    """A function: how many bytes of mapped files are in memory."""
    if not STATUS.exists():
        pytest.skip("only Linux tells")

    def measure():
        with STATUS.open() as status:
            return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssFile"))

    return measure
