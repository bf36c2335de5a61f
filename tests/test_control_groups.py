"""What a container grants, read from trees such as Linux shows: both versions, nested groups, mounts of any kind."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

import refgpt
from refgpt._common import control_groups, memory
from refgpt._common.control_groups import memory_limits, processors
from refgpt._common.errors import RefgptError
from refgpt.kernels import threads


class Machine:
    """A machine whose groups are files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process = root / "proc"
        self.process.mkdir()
        self.tell("", "")

    def tell(self, cgroup: str, mountinfo: str) -> None:
        """What /proc/self says; ``@`` stands for the folder that would be /sys/fs/cgroup."""
        (self.process / "cgroup").write_text(cgroup)
        (self.process / "mountinfo").write_text(mountinfo.replace("@", str(self.root / "sys")))

    def write(self, path: str, text: object) -> None:
        file = self.root / "sys" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    made = Machine(tmp_path)
    monkeypatch.setattr(control_groups, "PROCESS", made.process)
    monkeypatch.setattr(control_groups, "USUAL", tmp_path / "sys")
    return made


V2 = "31 23 0:28 / @ rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:30 / @/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:32 / @/memory rw shared:9 master:2 - cgroup cgroup rw,memory\n"
)
IN_DOCKER = "40 31 0:30 /docker/abc @/cpu ro master:11 - cgroup cgroup rw,cpu\n"
WITH_A_SPACE = "31 23 0:28 / @/a\\040place rw - cgroup2 cgroup2 rw\n"
BOTH = V1 + "41 31 0:38 / @/unified rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "want"),
    [
        ("0::/\n", V2, {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", V2, {"cpu.max": "max 100000"}, None),
        ("0::/a.slice/job.scope\n", V2, {"a.slice/job.scope/cpu.max": "200000 100000"}, 2),
        (
            "0::/a.slice/job.scope\n",
            V2,
            {"a.slice/cpu.max": "100000 100000", "a.slice/job.scope/cpu.max": "max 100000"},
            1,
        ),  # that of a parent
        (
            "0::/a/b/c\n",
            V2,
            {"cpu.max": "300000 100000", "a/cpu.max": "700000 100000", "a/b/c/cpu.max": "500000 100000"},
            3,
        ),  # the least of all
        ("0::/a\n", V2, {"b/cpu.max": "100000 100000"}, None),  # another's
        ("0::/../../other\n", V2, {"cpu.max": "100000 100000"}, 1),  # outside of what the container sees
        ("0::/job\n", "", {"job/cpu.max": "100000 100000"}, 1),  # nothing known of mounts: where they usually are
        ("0::/job\n", WITH_A_SPACE, {"a place/job/cpu.max": "100000 100000"}, 1),
        (
            "4:cpu,cpuacct:/job\n",
            V1,
            {"cpu,cpuacct/job/cpu.cfs_quota_us": 250000, "cpu,cpuacct/job/cpu.cfs_period_us": 100000},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/a/job\n",
            V1,
            {
                "cpu,cpuacct/a/job/cpu.cfs_quota_us": -1,
                "cpu,cpuacct/a/job/cpu.cfs_period_us": 100000,
                "cpu,cpuacct/a/cpu.cfs_quota_us": 50000,
                "cpu,cpuacct/a/cpu.cfs_period_us": 50000,
            },
            1,
        ),
        ("4:cpu:/docker/abc\n", IN_DOCKER, {"cpu/cpu.cfs_quota_us": 100000, "cpu/cpu.cfs_period_us": 50000}, 2),
        (
            "4:cpu:/docker/abc/in\n",
            IN_DOCKER,
            {"cpu/in/cpu.cfs_quota_us": 100000, "cpu/in/cpu.cfs_period_us": 50000},
            2,
        ),
        ("4:cpu:/job\n", "", {"cpu/job/cpu.cfs_quota_us": 100000, "cpu/job/cpu.cfs_period_us": 50000}, 2),
        (
            "4:cpu,cpuacct:/a\n0::/b\n",
            BOTH,
            {
                "unified/b/cpu.max": "100000 100000",
                "cpu,cpuacct/a/cpu.cfs_quota_us": 400000,
                "cpu,cpuacct/a/cpu.cfs_period_us": 100000,
            },
            1,
        ),  # the two side by side
        (
            "4:cpuset:/job\n",
            V1,
            {"cpu,cpuacct/job/cpu.cfs_quota_us": 100000, "cpu,cpuacct/job/cpu.cfs_period_us": 100000},
            None,
        ),  # another controller's group
        ("0::/\n", V2, {"cpu.max": "nonsense"}, None),
        ("0::/\n", V2, {"cpu.max": "100000 0"}, None),
        ("nonsense\n", "nonsense - \n- -\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_processors(machine, cgroup, mounts, files, want):
    machine.tell(cgroup, mounts)
    for path, text in files.items():
        machine.write(path, text)
    assert processors() == want


def test_as_many_threads_as_processors_are_granted(machine, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "CPUS", machine.root)
    for quota, want in {"50000": 1, "150000": 2, "300000": 3, "900000": 8, "max": 8}.items():
        machine.tell("0::/a/b\n", V2)
        machine.write("a/cpu.max", f"{quota} 100000")
        threads.default_threads.cache_clear()
        assert threads.default_threads() == want
    threads.default_threads.cache_clear()


def test_memory_of_version_2(machine):
    machine.tell("0::/a/job\n", V2)
    machine.write("a/job/memory.max", "max")
    machine.write("a/memory.max", 1000)
    machine.write("a/memory.current", 700)
    assert memory_limits() == [(1000, 300)]
    machine.write("a/memory.stat", "anon 500\nfile 200\ninactive_file 120\nactive_file 80\nx_inactive_file 9")
    assert memory_limits() == [(1000, 500)]  # copies of files are dropped when memory is wanted
    machine.write("a/job/memory.high", 900)
    machine.write("a/job/memory.current", 950)
    assert memory_limits() == [(900, 0), (1000, 500)]


def test_memory_of_version_1(machine):
    machine.tell("7:memory:/a/job\n0::/\n", BOTH)
    machine.write("memory/memory.limit_in_bytes", 9223372036854771712)  # which is how it says: none
    machine.write("memory/a/memory.limit_in_bytes", 5000)
    machine.write("memory/a/memory.usage_in_bytes", 4000)
    machine.write("memory/a/memory.stat", "cache 900\ninactive_file 1\ntotal_inactive_file 600\ntotal_active_file 300")
    machine.write("memory/a/job/memory.limit_in_bytes", 2000)
    machine.write("memory/a/job/memory.usage_in_bytes", 100)
    assert memory_limits() == [(2000, 1900), (5000, 1900)]


def test_memory_is_what_the_tightest_limit_leaves(machine, monkeypatch):
    meminfo = machine.root / "meminfo"
    meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 600000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_own_limits", lambda: [])
    assert memory.machine_memory() == (1_024_000_000, 614_400_000)
    machine.tell("0::/job\n", V2)
    machine.write("job/memory.max", 400_000_000)
    machine.write("job/memory.current", 150_000_000)
    assert memory.machine_memory() == (400_000_000, 250_000_000)
    machine.write("job/memory.max", 4_000_000_000)  # more than the machine has
    assert memory.machine_memory() == (1_024_000_000, 614_400_000)
    monkeypatch.setattr(memory, "_own_limits", lambda: [(500_000_000, 7)])
    assert memory.machine_memory() == (500_000_000, 7)


def test_limits_of_the_process_count(machine, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", machine.process)
    page = memory.os.sysconf("SC_PAGE_SIZE")
    (machine.process / "statm").write_text("100 50 20 1 0 40 0\n")
    limits = {resource.RLIMIT_AS: (1000 * page, resource.RLIM_INFINITY)}
    none = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(memory.resource, "getrlimit", lambda what: limits.get(what, none))
    assert memory._own_limits() == [(1000 * page, 900 * page)]
    limits[resource.RLIMIT_DATA] = (30 * page, 30 * page)
    assert memory._own_limits() == [(1000 * page, 900 * page), (30 * page, 0)]


def test_a_trace_that_the_container_cannot_hold_is_refused(machine, monkeypatch):
    model = refgpt.load()
    assert model.trace([5, 6, 7])
    machine.tell("0::/jobs/mine\n", V2)
    machine.write("jobs/memory.max", 200_000_000)
    machine.write("jobs/memory.current", 199_999_000)
    with pytest.raises(RefgptError, match=r"more memory than there is; .* at most the 1 kB that can be had now"):
        model.trace([5, 6, 7])
