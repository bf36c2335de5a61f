import time
import tracemalloc
from contextlib import contextmanager

import pytest

SECONDS = 1.0
BYTES = 16 << 20


@pytest.fixture
def quick():
    """A guard: whatever runs inside takes less than a second of computing."""

    @contextmanager
    def guard():
        start = time.process_time()
        yield
        assert time.process_time() - start < SECONDS

    return guard


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
