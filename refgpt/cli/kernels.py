"""``refgpt kernels``."""

from __future__ import annotations

import argparse
from itertools import groupby

from refgpt.cli.options import Commands, add_command


def add_to(commands: Commands) -> None:
    """Declare ``kernels``."""
    add_command(commands, "kernels", _kernels, "list the C kernels: which are used, and why not the others")


def _kernels(arguments: argparse.Namespace) -> int:
    from refgpt.kernels import list_kernels

    print(f"{'op':<16} {'active':<8} not used here")
    for op, kernels in groupby(sorted(list_kernels(), key=lambda kernel: kernel.op), lambda kernel: kernel.op):
        rows = list(kernels)
        used = ", ".join(kernel.isa for kernel in rows if kernel.active)
        others = "; ".join(f"{kernel.isa}: {kernel.why_not}" for kernel in rows if not kernel.active)
        print(f"{op:<16} {used:<8} {others}")
    return 0
