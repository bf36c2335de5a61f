"""How many threads there are by default, and how to ask for another number."""

import os

import pytest

from refgpt._common import control_groups
from refgpt._common.errors import KernelError
from refgpt.kernels import check_threads, threads


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("REFGPT_THREADS", raising=False)
    threads.default_threads.cache_clear()
    yield
    threads.default_threads.cache_clear()


def machine(monkeypatch, tmp_path, siblings, cpu_max="max 100000"):
    """A machine on which processor i is one of ``siblings[i]``, the threads of its core."""
    for cpu, others in enumerate(siblings):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{others}\n")
    (tmp_path / "cpu.max").write_text(f"{cpu_max}\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(control_groups, "PROCESS", tmp_path)
    monkeypatch.setattr(control_groups, "USUAL", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(len(siblings))), raising=False)


@pytest.mark.parametrize(
    ("siblings", "cpu_max", "want"),
    [
        (["0", "1"], "max 100000", 2),
        (["0,2", "1,3", "0,2", "1,3"], "max 100000", 2),  # four threads of two cores
        (["0", "1", "2", "3"], "150000 100000", 2),  # one and a half processors' time
        (["0", "1"], "800000 100000", 2),
        (["0", "1"], "50000 100000", 1),
        (["0", "1", "2"], "nonsense", 3),
    ],
)
def test_one_thread_for_each_core_that_may_be_used(monkeypatch, tmp_path, siblings, cpu_max, want):
    machine(monkeypatch, tmp_path, siblings, cpu_max)
    assert check_threads(None) == want


def test_processors_count_as_cores_where_the_system_does_not_say(monkeypatch, tmp_path):
    machine(monkeypatch, tmp_path, [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert check_threads(None) == 3


def test_the_environment_sets_the_default_and_an_argument_overrules_it(monkeypatch):
    monkeypatch.setenv("REFGPT_THREADS", "3")
    assert check_threads(None) == 3
    assert check_threads(5) == 5
    monkeypatch.setenv("REFGPT_THREADS", "")
    assert check_threads(None) == threads.default_threads()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1025", "²"])
def test_nonsense_in_the_environment_is_named(monkeypatch, text):
    monkeypatch.setenv("REFGPT_THREADS", text)
    with pytest.raises(KernelError, match="REFGPT_THREADS"):
        check_threads(None)
