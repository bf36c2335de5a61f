"""Who uses the processors, from /proc, and what the processors can do."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.peers.isa import ISAS
from benchmarks.quick import sized

ISA_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "i8mm")
READ_BYTES, READS = sized((512 << 20, 5), (1 << 20, 1))


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of processor time so far: of the whole machine, stolen by its host, and of each process asked for."""

    busy: float
    stolen: float
    of: Mapping[int, float]

    @classmethod
    def now(cls, pids: Sequence[int]) -> CpuTimes:
        hertz = os.sysconf("SC_CLK_TCK")
        machine = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = (int(n) / hertz for n in machine[:8])
        return cls(user + nice + system + irq + softirq, steal, {pid: process_ticks(pid) / hertz for pid in pids})


def process_ticks(pid: int) -> int:
    """utime and stime of a process with all its threads: fields 14 and 15 of proc(5), counted from behind the name."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0
    return int(fields[11]) + int(fields[12])


def shares(before: CpuTimes, after: CpuTimes, seconds: float, working: int) -> dict[str, float]:
    """What others had of all processors meanwhile: our waiting engines, strangers, the host of a virtual machine."""
    spent = {pid: after.of[pid] - before.of[pid] for pid in before.of}
    capacity = seconds * (os.cpu_count() or 1)
    strangers = after.busy - before.busy - sum(spent.values())
    return {
        "waiting engines": (sum(spent.values()) - spent[working]) / capacity,
        "strangers": max(strangers, 0) / capacity,
        "host": (after.stolen - before.stolen) / capacity,
    }


def read_rate(buffer: np.ndarray, threads: int) -> float:
    """GB/s of reading memory and little else: refgpt's kernel ``row_sum`` over more than any cache holds."""
    from refgpt import kernels

    times = []
    for _ in range(READS):
        start = time.perf_counter()
        kernels.row_sum(buffer, threads=threads)
        times.append(time.perf_counter() - start)
    return buffer.nbytes / median(times) / 1e9


def read_buffer() -> np.ndarray:
    return np.ones((64, READ_BYTES // 256), np.float32)


def build_peak(directory: Path, isa: str) -> Path | None:
    """peak.c, compiled for an instruction set or "native", this processor; None where that fails."""
    program = directory / "peak"
    command = ["cc", "-O3", *ISAS[isa].cflags, "-pthread", str(Path(__file__).with_name("peak.c")), "-o", str(program)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return program


def peaks(program: Path | None, threads: int) -> dict[str, float]:
    """10^9 operations a second of multiply-adds in float32 and, where there are instructions for it, in 8 bits."""
    if program is None:
        return {}
    run = subprocess.run([str(program), str(threads)], capture_output=True, text=True, timeout=60, check=True)
    floats, integers = map(float, run.stdout.split())
    return {"float32": floats} | ({"int8": integers} if integers else {})


def machine() -> dict[str, object]:
    """What the results were measured on."""
    text = Path("/proc/cpuinfo").read_text()
    facts = dict(map(str.strip, line.split(":", 1)) for line in text.splitlines() if ":" in line)
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "cpu": facts.get("model name", platform.machine()),
        "flags": [flag for flag in ISA_FLAGS if flag in flags],
        "processors": os.cpu_count(),
        "memory": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
