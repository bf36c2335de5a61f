"""How much memory a process has taken, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int | None:
    """The largest resident memory of this process so far, mapped files included; None if the system does not report it.

    Of this process alone: getrusage would also count what the process that started it held.
    """
    return _bytes_of("VmHWM:", STATUS) if STATUS.exists() else None


def resident_bytes() -> int:
    """Resident memory of this process now, on Linux."""
    return _bytes_of("VmRSS:", STATUS)


def own_bytes() -> int:
    """Resident memory that no other process shares."""
    return sum(_bytes_of(key, Path("/proc/self/smaps_rollup")) for key in ("Private_Clean:", "Private_Dirty:"))


def _bytes_of(key: str, file: Path) -> int:
    return 1024 * int(file.read_text().partition(key)[2].split()[0])
