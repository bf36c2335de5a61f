"""The load generator of ``benchmarks/serving.py`` finds answers that are wrong, lost or late, and memory that grows."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from types import SimpleNamespace

import pytest

import refgpt
from benchmarks import serving as load
from tests.helpers.servers import Served


def run(server: Served, want: list[tuple[str, str]], **changes: float):
    arguments = Namespace(**{"clients": 6, "seconds": 1.0, "late": 60.0} | changes)
    return asyncio.run(load.load(server.port, arguments, want, SimpleNamespace(pid=os.getpid())))


@pytest.fixture(scope="module")
def want(model: refgpt.Model) -> list[tuple[str, str]]:
    return load.expected(model)


def test_nothing_is_wrong(server: Served, want: list[tuple[str, str]]) -> None:
    counts = run(server, want)
    assert counts.wrong == [] and counts.whole > 0 and len(counts.first) >= counts.whole
    assert len({text for text, _ in want}) == len(want)  # so that no answer passes for another's


def test_other_texts_are_found(server: Served, want: list[tuple[str, str]]) -> None:
    counts = run(server, want[1:] + want[:1])
    assert counts.whole == 0 and counts.wrong and all(one.startswith("other text") for one in counts.wrong)


def test_late_and_lost_answers_are_found(server: Served, want: list[tuple[str, str]]) -> None:
    assert all(one.startswith("late") for one in run(server, want, late=0.001, seconds=0.1).wrong)
    gone = SimpleNamespace(port=1)  # where nothing listens
    with pytest.raises(OSError):
        run(gone, want, seconds=0.1)  # it asks what is left to do at last


def test_memory_that_grows_is_found(capsys: pytest.CaptureFixture) -> None:
    assert load.grew([100.0] * 300 + [120.0] * 300) and not load.grew([100.0] * 600)
    assert not load.grew([100.0, 120.0])
    assert "100 MB in the first quarter of the time, 120 MB in the last" in capsys.readouterr().out
