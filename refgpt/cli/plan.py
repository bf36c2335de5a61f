"""``refgpt plan``: the bytes and days that training on many machines would cost."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt._open import open_model
from refgpt.cli.json_output import print_json
from refgpt.cli.options import Commands, StoreModel, add_command, add_json
from refgpt.cli.printing import print_line
from refgpt.spec.gptj import Config

if TYPE_CHECKING:
    from refgpt.cluster.bill import Training
    from refgpt.cluster.simulation import Fleet

#: GPT-JT's fine-tuning as published: 27,008 steps on 32 machines, 12.7 TB per machine instead of 633.
STORY = "gpt-jt"
STORY_STEPS, STORY_WORKERS, STORY_TERABYTES = 27_008, 32, 12.7
DAY = 86_400

MODEL_HELP = "a path, gpt-j-6b, gpt-jt, or the number of trained parameters, such as 7e6 (default: the included model)"

EXAMPLES = """examples:
  refgpt plan gpt-jt                                  GPT-JT's own training, from its parts
  refgpt plan gpt-j-6b --steps 2000 --workers 4 --links 100 --step-seconds 30
  refgpt plan ~/model --tokens 100e6 --batch 8192 --workers 8 --links 20
  refgpt plan 1.8e6 --steps 5000 --workers 4 --links 10   an adapter of 1.8 million numbers
  refgpt plan gpt-j-6b --steps 27008 --workers 3000 --links 100 --hub 10000 --step-seconds 60 --spread 0.7 \\
      --leave 0.02 --return 0.2                       simulate thousands of unequal machines that come and go
"""


def add_to(commands: Commands) -> None:
    """Declare ``plan``."""
    help = "estimate bytes and days of training on many machines, for each method of exchange"
    plan = add_command(commands, "plan", _plan, help, EXAMPLES)
    add = plan.add_argument
    plan.add_argument("model", nargs="?", action=StoreModel, metavar="MODEL", help=MODEL_HELP)
    add("-m", "--model", action=StoreModel, metavar="MODEL", help="the same as MODEL")
    add("--tokens", type=float, metavar="N", help="tokens of the whole training, summed over workers")
    add(
        "--batch",
        type=float,
        default=131072,
        metavar="N",
        help="tokens of one step, summed over workers (default: 131072)",
    )
    add("--steps", type=int, metavar="N", help="steps, instead of --tokens and --batch")
    add("--workers", type=int, metavar="N", help="machines (default: 4)")
    add("--links", type=float, default=1000, metavar="MBIT", help="Mbit/s of each link (default: 1000)")
    add("--step-seconds", type=float, default=0.0, metavar="S", help="seconds of computing per step (default: 0)")
    add("--sync", metavar="RHYTHM", help="also estimate your own method: exchange every:H or random:P ...")
    add("--compress", metavar="METHOD", help="... compressed with none, f16, int4, topk:0.03,bits:2 or cocktail")
    add_json(plan)
    add = plan.add_argument_group(
        "simulation of unequal machines, which any of these options adds to the table"
    ).add_argument
    add("--hub", type=float, metavar="MBIT", help="Mbit/s of the coordinator's link (default: --links)")
    add("--spread", type=float, metavar="X", help="standard deviation of the log of links and speeds (default: 0)")
    add("--leave", type=float, metavar="P", help="chance that a worker is gone in the next round (default: 0)")
    add(
        "--return",
        dest="return_",
        type=float,
        metavar="P",
        help="chance that a worker that is gone is back in the next round (default: 1)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the machines and their failures (default: 0)")


def _plan(arguments: argparse.Namespace) -> int:
    from refgpt.cluster.bill import METHODS, Training, bills, ring_bytes, simulated
    from refgpt.cluster.compression import parse_compression
    from refgpt.cluster.rounds import parse_sync
    from refgpt.cluster.simulation import ring_seconds

    training = Training(
        _n_trained(arguments.model),
        _steps(arguments),
        (STORY_WORKERS if arguments.model == STORY else 4) if arguments.workers is None else arguments.workers,
        1e6 * arguments.links,
        arguments.step_seconds,
    )
    own = ((arguments.sync or "every:1", arguments.compress or "none"),) if arguments.sync or arguments.compress else ()
    methods = (*METHODS, *own)
    rows = bills(training, methods)
    fleet = _fleet(arguments, training)
    found = []
    if fleet is not None:
        for sync, compression in methods:
            how = parse_sync(sync), parse_compression(compression)
            found.append(simulated(training, fleet, *how, arguments.seed))
    if arguments.json:
        told = [asdict(row) for row in rows]
        for method, one in zip(told[1:], found, strict=False):
            method["simulated"] = asdict(one)
        print_json({"training": asdict(training), "methods": told})
        return 0
    print_line(
        f"{training.n_trained:,} numbers, {training.n_steps:,} steps, {training.n_workers} workers, "
        f"{arguments.links:g} Mbit/s"
    )
    header = f"{'method':<34}{'a worker sends':>16}{'less by':>10}{'link busy':>12}{'in all':>12}"
    print_line(header + (f"{'simulated':>12}{'counted':>9}" if found else ""))
    more = [""] * len(rows)
    if fleet is not None:
        # A ring has no simulation of failures: it stops with the first.
        seconds = ring_seconds(fleet, training.n_steps, ring_bytes(training.n_trained, training.n_workers))
        more[0] = f"{'stops' if fleet.failure_rate else _time(seconds):>12}"
        more[1:] = [f"{_time(one.seconds):>12}{one.counted:>9.0%}" for one in found]
    for row, last in zip(rows, more, strict=True):
        cells = _bytes(row.sent), f"{rows[0].sent / row.sent:,.1f}x", _time(row.link_seconds), _time(row.seconds)
        print_line(f"{row.method:<34}{cells[0]:>16}{cells[1]:>10}{cells[2]:>12}{cells[3]:>12}{last}")
    if found:
        print_line('"counted" is the share of the workers whose updates were in time, averaged over the rounds.')
    if arguments.model == STORY:
        print_line(
            f"Published about the real training: {STORY_TERABYTES} TB a machine instead of 633 TB, "
            f"{rows[0].sent / 1e12 / STORY_TERABYTES:.1f}x less. The 633 TB are the ring above. How many rounds were "
            "skipped, and in how many bits values were sent, was not published."
        )
    return 0


def _fleet(arguments: argparse.Namespace, training: Training) -> Fleet | None:
    """The unequal machines that the arguments ask for, if they do."""
    from refgpt.cluster.simulation import Fleet

    given = arguments.hub, arguments.spread, arguments.leave, arguments.return_
    if given == (None,) * 4:
        return None
    if not training.seconds_per_step:
        wanted = "a number above 0, to simulate machines"
        raise RefgptError("is missing", where="step_seconds", wanted=wanted, fix="give --step-seconds")
    hub, spread, leave, back = given
    return Fleet.drawn(
        training.n_workers,
        training.seconds_per_step,
        training.bits_per_second,
        training.bits_per_second if hub is None else 1e6 * hub,
        0.0 if spread is None else spread,
        arguments.seed,
        failure_rate=0.0 if leave is None else leave,
        return_rate=1.0 if back is None else back,
    )


def _n_trained(model: str | None) -> int:
    if model is None:
        return open_model(None, tokenizer=False)[0].params.size
    if model in (STORY, "gpt-j-6b", "gpt-j"):
        return Config().n_params
    try:
        return int(float(model))
    except (ValueError, OverflowError):
        pass
    if not Path(model).exists():
        wanted = "a path, gpt-j-6b, gpt-jt, or a number such as 7e6"
        raise RefgptError("there is no such model", where="model", got=shown(model), wanted=wanted)
    checkpoint, _ = open_model(model, tokenizer=False)
    return checkpoint.params.size


def _steps(arguments: argparse.Namespace) -> int:
    if arguments.steps is not None:
        return int(arguments.steps)
    if arguments.tokens is None:
        if arguments.model == STORY:
            return STORY_STEPS
        raise RefgptError("how long is the training?", where="steps", wanted="--steps, or --tokens and --batch")
    for name, value in (("tokens", arguments.tokens), ("batch", arguments.batch)):
        if not 0 < value < inf:
            raise RefgptError("cannot be used", where=name, got=value, wanted="a number above 0")
    steps = arguments.tokens / arguments.batch
    if steps == inf:
        raise RefgptError("cannot be used", where="batch", got=arguments.batch, wanted="a larger number")
    return max(1, round(steps))


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            return f"{n:.3g} {unit}" if n < 999.5 else f"{n:,.0f} {unit}"
        n /= 1000
    return ""


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * DAY else f"{seconds / DAY:,.1f} days"
