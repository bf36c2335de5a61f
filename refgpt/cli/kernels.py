"""``refgpt kernels``."""

from __future__ import annotations

import argparse

from refgpt.cli.json_output import print_json
from refgpt.cli.options import Commands, add_command, add_json
from refgpt.cli.printing import print_line

EXAMPLES = """examples:
  refgpt kernels
  REFGPT_ISA=avx2 refgpt kernels      force one instruction set
  refgpt kernels --json
"""


def add_to(commands: Commands) -> None:
    """Declare ``kernels``."""
    help = "list the C kernels and the instruction set that each uses on this machine"
    add_json(add_command(commands, "kernels", _kernels, help, EXAMPLES))


def _kernels(arguments: argparse.Namespace) -> int:
    from refgpt.kernels import active, forced_isa, list_kernels

    kernels = {(kernel.op, kernel.isa): kernel for kernel in list_kernels()}
    ops, isas = sorted({op for op, _ in kernels}), list(dict.fromkeys(isa for _, isa in kernels))
    obstacles = {kernel.isa: kernel.obstacle for kernel in kernels.values() if kernel.obstacle is not None}
    if arguments.json:
        print_json(
            {
                "forced_isa": forced_isa(),
                "isas": [
                    {"isa": isa, "runs_here": isa not in obstacles, "obstacle": obstacles.get(isa)} for isa in isas
                ],
                "kernels": [
                    {"op": kernel.op, "isa": kernel.isa, "used": kernel.active, "why_not": kernel.why_not or None}
                    for kernel in kernels.values()
                ],
            }
        )
        return 0
    first = max(len("op"), *map(len, ops))
    print_line(f"{'op':<{first}}  " + "  ".join(isas))
    for op in ops:
        used = active(op).isa
        cells = [_cell(isa == used, (op, isa) in kernels, isa in obstacles).center(len(isa)) for isa in isas]
        print_line(f"{op:<{first}}  {'  '.join(cells)}".rstrip())
    print_line()
    print_line("used: runs on this machine; ok: could run, but another is faster or forced; -: cannot run here")
    for isa, obstacle in obstacles.items():
        print_line(f"{isa}: {obstacle}")
    return 0


def _cell(used: bool, exists: bool, impossible: bool) -> str:
    if used:
        return "used"
    return "" if not exists else "-" if impossible else "ok"
