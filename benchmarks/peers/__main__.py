"""The one command: installs, makes the models, measures, reports and draws; what is done already is skipped.

python -m benchmarks.peers --dir DIRECTORY
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.install import ROOT, install, install_llama_server, python_of, read_stamp
from benchmarks.peers.isa import ISAS
from benchmarks.peers.lineup import CHECKPOINT, LAYERS, REFERENCE, chosen, forms_of, groups, served_forms, suffix
from benchmarks.peers.options import passed_on

STAGES = ("install", "models", "run", "report", "plot")
#: Stages that only run where they are named. The second one compares servers, with this family's files, which have a
#: tokenizer; the first one builds llama.cpp's own server for it.
NAMED, SERVED = ("llama-server", "serve"), "gpt-neox"
#: Seconds that a stage's process may take; models: each form.
LIMITS = {"models": 1800, "run": 3 * 3600, "report": 60, "plot": 120, "serving": 3 * 3600, "serving_plot": 120}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Compare refgpt with its peers.")
    parser.add_argument(
        "stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)}, by default all; or {' or '.join(NAMED)}"
    )
    parser.add_argument("--dir", type=Path, required=True, help="where everything goes: 22 GB with 4 layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--family", choices=LAYERS, default="gptj", help="gpt-neox: Pythia 6.9B; gpt2: GPT-2 124M")
    parser.add_argument(
        "--layers", type=int, help="by default 4, of GPT-2 12; the models are made anew when it changes"
    )
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait for a quiet machine, each time")
    parser.add_argument("--isa", choices=ISAS, default="native", help="hold every engine to this instruction set")
    parser.add_argument("--engines", help="parts of names, like refgpt,llama; by default all")
    args = parser.parse_args()
    if unknown := set(args.stages) - {*STAGES, *NAMED}:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join((*STAGES, *NAMED))}")
    if "serve" in args.stages and args.family != SERVED:
        parser.error(f"serve needs --family {SERVED}")
    args.layers = LAYERS[args.family] if args.layers is None else args.layers
    if min(args.rounds, args.threads, args.layers) < 1:
        parser.error("--rounds, --threads and --layers are 1 at least")
    work = args.dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    read_stamp(work, args.isa)
    for stage in args.stages or STAGES:
        match stage:
            case "install":
                install(work, args.isa)
            case "models":
                lineup = chosen(groups(args.threads, args.family), args.engines)
                make_models(work, args.family, args.layers, forms_of(lineup))
            case "run":
                options = passed_on(args, "isa")
                run_stage(work, "run", str(work), *options, environment=ISAS[args.isa].environment)
            case "llama-server":
                install_llama_server(work, args.isa)
            case "serve":
                make_models(work, args.family, args.layers, served_forms(args.engines))
                run_stage(work, "serving", str(work), *passed_on(args), environment=ISAS[args.isa].environment)
                run_stage(work, "serving_plot", str(work), must=False)
            case _:
                run_stage(work, stage, str(work), args.family)


def make_models(work: Path, family: str, n_layer: int, forms: list[str]) -> None:
    """Make the missing models. If one cannot be made, report it; the engines that need it are left out."""
    models = work / f"models{suffix(family)}-{n_layer}"
    models.mkdir(exist_ok=True)
    for form in forms:
        if not (models / form).exists():
            print(f"making {form} ...", flush=True)
            options = ("--layers", str(n_layer), "--family", family)
            run_stage(work, "models", str(models), form, *options, must=form in (CHECKPOINT, REFERENCE))


def run_stage(work: Path, stage: str, *args: str, must: bool = True, environment: Mapping[str, str] = {}) -> None:
    """A module of this package with the peers' interpreter, in a process of its own."""
    command = [str(python_of(work)), "-m", f"benchmarks.peers.{stage}", *args]
    try:
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, timeout=LIMITS[stage]).returncode
        fault = f"ended with status {status}" if status else None
    except subprocess.TimeoutExpired:
        fault = f"took longer than {LIMITS[stage]} s"
    if fault and must:
        sys.exit(f"{stage} {fault}")
    if fault:
        print(f"{' '.join(args)}: {fault}", flush=True)


if __name__ == "__main__":
    main()
