"""A small Ray cluster for all tests of this folder that ask for it."""

from __future__ import annotations

import pytest

from tests.helpers.ray_cluster import small_cluster


@pytest.fixture(scope="session")
def cluster_of_two():
    """Two nodes of one processor each; this process is not connected to them."""
    pytest.importorskip("ray", reason='needs the extra "ray"')
    with small_cluster() as cluster:
        yield cluster
