"""A server of the included model, which the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import refgpt
from tests.helpers.servers import Served, serving


@pytest.fixture(scope="package")
def model() -> refgpt.Model:
    return refgpt.load()


@pytest.fixture(scope="package")
def server(model: refgpt.Model) -> Iterator[Served]:
    with serving(model) as served:
        yield served
