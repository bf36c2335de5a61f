"""A small Ray cluster for each file of tests that asks for one: it sets variables that other tests must not see."""

from __future__ import annotations

import pytest

from tests.helpers.ray_cluster import small_cluster


@pytest.fixture(scope="module")
def cluster_of_two():
    """Two nodes of one processor each; this process is not connected to them."""
    pytest.importorskip("ray", reason='needs the extra "ray"')
    with small_cluster() as cluster:
        yield cluster
