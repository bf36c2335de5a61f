"""The options of ``refgpt finetune`` for many machines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refgpt._model import Model
from refgpt.cli.host_options import load_options
from refgpt.training.data import Texts
from refgpt.training.run import Run, RunSettings

if TYPE_CHECKING:
    from refgpt.cluster import Rules, Sync
    from refgpt.cluster.connect import Patience

#: Options that only make sense with --workers.
NEEDS_WORKERS = (
    "address",
    "sync",
    "compress",
    "outer",
    "outer_lr",
    "outer_momentum",
    "error_decay",
    "max_ratio",
    "trim",
    "average_variance",
    "quorum",
    "deadline",
)


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
        metavar="RHYTHM",
        help="when workers exchange updates: every:H (each H steps) or random:P (with probability P after a step) "
        "(default: random:0.04)",
    )
    add(
        "--compress",
        metavar="METHOD",
        help="compression of the updates: none, f16, int2, int4, int8, topk:SHARE,bits:B or cocktail (default: int4)",
    )
    add("--outer", choices=("none", "nesterov"), help="optimiser of the exchange (default: none)")
    add("--outer-lr", type=float, metavar="X", help="its learning rate (default: 1, with nesterov 0.7)")
    add("--outer-momentum", type=float, metavar="X", help="nesterov's momentum (default: 0.9)")
    add(
        "--error-decay",
        type=float,
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
        "--average-variance",
        action="store_true",
        default=None,
        help="divide AdamW's steps by what gradients averaged over all workers would give (default: by what each "
        "worker's own give)",
    )
    add(
        "--quorum",
        type=float,
        metavar="X",
        help="share of the workers that each round waits for (default: 0.5)",
    )
    add(
        "--deadline",
        type=float,
        metavar="S",
        help="seconds that a round then waits for the other workers (default: 60)",
    )


@dataclass(frozen=True)
class Exchange:
    """How the workers exchange updates, and how long they are waited for."""

    sync: Sync
    rules: Rules
    patience: Patience


def exchange_of(arguments: argparse.Namespace) -> Exchange:
    """The exchange that the arguments ask for. To be called before anything is loaded: it refuses bad ones."""
    from refgpt.cluster import Rules, parse_compression, parse_sync
    from refgpt.cluster.connect import Patience, import_ray

    given = {name: getattr(arguments, name) for name in NEEDS_WORKERS}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("outer") == "nesterov":
        given.setdefault("outer_lr", 0.7)
    elif "outer_momentum" in given:
        arguments.parser.error("--outer-momentum is for --outer nesterov")
    sync, compression = given.pop("sync", "random:0.04"), given.pop("compress", "int4")
    patience = {name: given.pop(name) for name in ("quorum", "deadline") if name in given}
    for name in ("address", "average_variance"):
        given.pop(name, None)
    rules = Rules(parse_compression(compression), seed=arguments.seed, **given)
    exchange = Exchange(parse_sync(sync), rules, Patience(**patience))
    import_ray()
    return exchange


@contextmanager
def cluster_run(
    arguments: argparse.Namespace,
    exchange: Exchange,
    model: Model,
    data: dict[str, Texts],
    out: Path,
    settings: RunSettings,
    about: dict[str, Any],
    record: dict[str, Any],
    adapter: dict[str, Any] | None,
) -> Iterator[Run]:
    """The run that the arguments ask for, connected to its cluster."""
    from refgpt.cluster.connect import connected
    from refgpt.cluster.run import ClusterRun, Job

    rules = exchange.rules
    threads = arguments.threads or 1
    job = Job({**load_options(vars(arguments)), "threads": threads, "tokenizer": False}, adapter, settings)
    job.compression, job.error_decay = rules.compression, rules.error_decay
    with ClusterRun(
        model,
        data,
        out,
        settings,
        about,
        record,
        job=job,
        n_workers=arguments.workers,
        sync=exchange.sync,
        rules=rules,
        patience=exchange.patience,
        resources={"num_cpus": threads},
    ) as run:
        if run.finished:
            yield run
            return
        with connected(arguments.address, threads * arguments.workers):
            yield run
