"""The C table of kernels, and the choice of the row that runs for each op."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from refgpt._common.errors import KernelError
from refgpt._common.wording import shown
from refgpt.kernels.native import ffi, lib

#: Instruction sets, fastest first; the first that can run is used.
PREFERENCE = ("avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "neondot", "neon", "scalar")


@dataclass(frozen=True)
class Kernel:
    """One row of the table.

    Attributes
    ----------
    op, isa : str
        The operation, and the instruction set.
    obstacle : str or None
        Why it cannot run here.
    run : cdata
        The C function.
    """

    op: str
    isa: str
    obstacle: str | None
    run: Any

    def __str__(self) -> str:
        return f"{self.op}/{self.isa}"

    @property
    def active(self) -> bool:
        """Whether calls of ``op`` use this row."""
        return active(self.op) is self

    @property
    def why_not(self) -> str:
        """Why calls of ``op`` do not use this row; empty if they do."""
        if self.active:
            return ""
        return self.obstacle or ("another is forced" if forced_isa() else f"{active(self.op).isa} is faster")


@cache
def list_kernels() -> list[Kernel]:
    """Every row of the table, whether it can run here or not."""
    rows, kernels = lib.refgpt_table(), []
    while rows.op != ffi.NULL:
        op, isa = ffi.string(rows.op).decode(), ffi.string(rows.isa).decode()
        left_out = None if rows.run else "left out of this build, by REFGPT_BUILD_ISAS or an old compiler"
        obstacle = _isa_obstacle(isa) or left_out
        kernels.append(Kernel(op, isa, obstacle, rows.run))
        rows += 1
    return kernels


@cache
def _isa_obstacle(isa: str) -> str | None:
    """Why this processor lacks an instruction set. Asked once: on virtual machines each question takes some 30 us."""
    told = lib.refgpt_isa_obstacle(isa.encode())
    return ffi.string(told).decode() if told else None


@cache
def _by_name() -> dict[tuple[str, str], Kernel]:
    return {(k.op, k.isa): k for k in list_kernels()}


_demanded = os.environ.get("REFGPT_ISA") or None
_forced: list[str] = []  # a stack of force_isa


def forced_isa() -> str | None:
    """The instruction set forced by ``force_isa`` or the environment variable REFGPT_ISA; None if none is."""
    return _forced[-1] if _forced else _demanded


def active(op: str) -> Kernel:
    """The kernel that runs for ``op``.

    Raises
    ------
    KernelError
        If there is no such op, or the forced instruction set does not exist or cannot run here.
    """
    isa = forced_isa()
    if not isinstance(op, str) or not isinstance(isa, str | None):
        raise KernelError("is no name", where="op", got=shown(op))
    return _active(op, isa)


@cache
def _active(op: str, isa: str | None) -> Kernel:
    if (op, "scalar") not in _by_name():
        raise KernelError("there is no such op", got=shown(op), wanted=" ".join(sorted({op for op, _ in _by_name()})))
    if isa is None:
        return next(k for k in (_by_name()[op, isa] for isa in PREFERENCE) if k.obstacle is None)
    if isa not in PREFERENCE:
        raise KernelError("REFGPT_ISA names no instruction set", got=shown(isa), wanted=" ".join(PREFERENCE))
    kernel = _by_name()[op, isa]
    if kernel.obstacle:
        raise KernelError(f"the instruction set {isa} cannot run here", got=kernel.obstacle, fix="unset REFGPT_ISA")
    return kernel


@contextmanager
def force_isa(isa: str) -> Iterator[None]:
    """Within the block every op runs with this instruction set (tests and benchmarks; not for use across threads)."""
    _forced.append(isa)
    try:
        active(list_kernels()[0].op)
        yield
    finally:
        _forced.pop()
