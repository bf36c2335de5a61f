"""The options of ``refgpt finetune`` for many machines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refgpt._model import Model
from refgpt.cli.host_options import load_options
from refgpt.training.data import Texts
from refgpt.training.run import Run, RunSettings

#: Options that only make sense with --workers.
NEEDS_WORKERS = ("address", "outer_lr", "outer_momentum", "max_ratio", "trim")


def add_worker_arguments(group: argparse._ActionsContainer) -> None:
    """Declare them."""
    add = group.add_argument
    add(
        "--workers",
        type=int,
        metavar="N",
        help="train with N workers on a Ray cluster, each on its share of the texts (needs the extra ray)",
    )
    add("--address", metavar="ADDRESS", help="address of the cluster, or auto (default: use this machine only)")
    add(
        "--sync",
        default="random:0.04",
        metavar="RHYTHM",
        help="when workers exchange updates: every:H (each H steps) or random:P (with probability P after a step) "
        "(default: random:0.04)",
    )
    add(
        "--compress",
        default="int4",
        metavar="METHOD",
        help="compression of the updates: none, f16, int2, int4, int8, topk:SHARE,bits:B or cocktail (default: int4)",
    )
    add("--outer", choices=("none", "nesterov"), default="none", help="optimiser of the exchange (default: none)")
    add("--outer-lr", type=float, metavar="X", help="its learning rate (default: 1, with nesterov 0.7)")
    add("--outer-momentum", type=float, metavar="X", help="nesterov's momentum (default: 0.9)")
    add(
        "--error-decay",
        type=float,
        default=1.0,
        metavar="X",
        help="share of the compression error added to the next update (default: 1)",
    )
    add(
        "--max-ratio",
        type=float,
        metavar="X",
        help="shorten differences longer than X times the median (default: never)",
    )
    add(
        "--trim",
        type=int,
        metavar="K",
        help="for each weight, leave out the K largest and K smallest differences (default: 0)",
    )
    add(
        "--quorum",
        type=float,
        default=0.5,
        metavar="X",
        help="share of the workers that each round waits for (default: 0.5)",
    )
    add(
        "--deadline",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that a round then waits for the other workers (default: 60)",
    )


@contextmanager
def cluster_run(
    arguments: argparse.Namespace,
    model: Model,
    data: dict[str, Texts],
    out: Path,
    settings: RunSettings,
    about: dict[str, Any],
    record: dict[str, Any],
    adapter: dict[str, Any] | None,
) -> Iterator[Run]:
    """The run that the arguments ask for, connected to its cluster."""
    from refgpt.cluster import Rules, parse_compression, parse_sync
    from refgpt.cluster.connect import Patience, connected, import_ray
    from refgpt.cluster.run import ClusterRun, Job

    compression, sync = parse_compression(arguments.compress), parse_sync(arguments.sync)
    given = {name: getattr(arguments, name) for name in ("outer_lr", "outer_momentum", "max_ratio", "trim")}
    if arguments.outer == "nesterov":
        given["outer_lr"] = 0.7 if given["outer_lr"] is None else given["outer_lr"]
    rules = Rules(
        compression,
        outer=arguments.outer,
        error_decay=arguments.error_decay,
        seed=arguments.seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    patience = Patience(arguments.quorum, arguments.deadline)
    threads = arguments.threads or 1
    job = Job({**load_options(vars(arguments)), "threads": threads, "tokenizer": False}, adapter, settings)
    job.compression, job.error_decay = compression, rules.error_decay
    import_ray()  # before anything is written
    with ClusterRun(
        model,
        data,
        out,
        settings,
        about,
        record,
        job=job,
        n_workers=arguments.workers,
        sync=sync,
        rules=rules,
        patience=patience,
        resources={"num_cpus": threads},
    ) as run:
        if run.finished:
            yield run
            return
        with connected(arguments.address, threads * arguments.workers):
            yield run
