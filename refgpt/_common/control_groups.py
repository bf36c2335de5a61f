"""Limits of the container: the processor time and memory that Linux's control groups allow this process.

A group and each group above it may have a limit, and all of them apply. The files exist in two versions, which can be
mounted anywhere, also both at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: The file that lists a process's groups, and the usual place of the groups' files.
PROCESS = Path("/proc/self")
USUAL = Path("/sys/fs/cgroup")
#: In version 1, this many bytes or more mean that there is no limit.
UNLIMITED = 1 << 60


class MemoryLimit(NamedTuple):
    """A limit of a group, in bytes.

    Attributes
    ----------
    most : int
        Total memory that the processes of the group may use.
    free : int
        The unused part. The page cache, which the system drops when memory is needed, counts as free.
    """

    most: int
    free: int


def processors() -> float | None:
    """The allowed processor time, as a number of processors; None if there is no limit."""
    quotas = []
    for version, group in _groups("cpu"):
        if version == 2:
            quota, _, period = (_read(group / "cpu.max") or "").partition(" ")
        else:
            quota, period = (_read(group / f"cpu.cfs_{what}_us") or "" for what in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # not "max", not -1
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limits() -> list[MemoryLimit]:
    """The memory limits of this process's group and of the groups above it."""
    limits = []
    for version, group in _groups("memory"):
        if version == 2:
            names, used, dropped = ["memory.max", "memory.high"], "memory.current", ["inactive_file", "active_file"]
        else:
            names, used = ["memory.limit_in_bytes"], "memory.usage_in_bytes"
            dropped = ["total_inactive_file", "total_active_file"]
        most = min((n for name in names if (n := _number(group / name)) is not None), default=None)
        if most is None or most >= UNLIMITED:
            continue
        stat = dict(re.findall(r"^(\w+) (\d+)$", _read(group / "memory.stat") or "", re.MULTILINE))
        in_use = (_number(group / used) or 0) - sum(int(stat.get(name, 0)) for name in dropped)
        limits.append(MemoryLimit(most, max(0, most - max(0, in_use))))
    return limits


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Version and directory of this process's group for a controller, and of all visible groups above it."""
    mounts = list(_mounts(controller))
    for line in (_read(PROCESS / "cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        if number == "0" and not controllers:
            version, usual = 2, USUAL
        elif controller in controllers.split(","):
            version, usual = 1, USUAL / controller
        else:
            continue
        places = [(point, root) for kind, point, root in mounts if kind == version]
        for top in dict.fromkeys([_below(point, root, own) for point, root in places] + [(usual, _parts(own))]):
            point, parts = top
            for n in range(len(parts), -1, -1):
                yield version, point.joinpath(*parts[:n])


def _mounts(controller: str) -> Iterator[tuple[int, Path, str]]:
    """Version, mount point, and the part of the tree of groups that is mounted there."""
    for line in (_read(PROCESS / "mountinfo") or "").splitlines():
        fields, _, kind = line.partition(" - ")
        known, (filesystem, *_, options) = fields.split(" "), [*kind.split(" "), ""][:3]
        if len(known) < 5:
            continue
        root, point = (re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text) for text in known[3:5])
        if filesystem == "cgroup2":
            yield 2, Path(point), root
        elif filesystem == "cgroup" and controller in options.split(","):
            yield 1, Path(point), root


def _below(point: Path, root: str, own: str) -> tuple[Path, tuple[str, ...]]:
    """Directory of a group under a mount of ``root``; the mount point itself if the group is outside, as in a
    container."""
    top, parts = _parts(root), _parts(own)
    return point, parts[len(top) :] if parts[: len(top)] == top else ()


def _parts(group: str) -> tuple[str, ...]:
    """The names in a group's path. Empty for a group outside the container's view, whose path begins with ".."."""
    parts = tuple(part for part in group.split("/") if part)
    return () if ".." in parts else parts


def _number(path: Path) -> int | None:
    text = _read(path) or ""
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return None
