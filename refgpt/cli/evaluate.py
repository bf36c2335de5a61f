"""``refgpt evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from refgpt._common.arguments import whole_number
from refgpt._common.errors import DataError
from refgpt._common.wording import shown
from refgpt.cli.host_options import add_host_arguments, check_host_arguments
from refgpt.cli.json_output import print_json
from refgpt.cli.measuring import (
    SETTINGS,
    Setting,
    check_setting,
    open_results,
    recorded_setting,
    run_measures,
    setting_of,
)
from refgpt.cli.options import Commands, add_command, add_json, add_running_arguments
from refgpt.cli.printing import print_line
from refgpt.cli.raft import add_raft_options, raft_settings
from refgpt.evaluation.measures import Measure
from refgpt.evaluation.perplexity import VARIANTS, Perplexity
from refgpt.evaluation.raft import Raft, mean_differences, mean_results
from refgpt.evaluation.raft_tasks import read_raft
from refgpt.evaluation.reports import comparison_summary, comparison_table, summary, table
from refgpt.evaluation.requests import FRAMINGS, Framing
from refgpt.evaluation.rows import read_rows
from refgpt.evaluation.runner import PairedRuns, Run
from refgpt.evaluation.summaries import Summaries
from refgpt.evaluation.zero_shot import TASKS, ZeroShot

EXAMPLES = """examples:
  refgpt evaluate lambada --data lambada_test.jsonl -m ~/gpt-j-6b-q4 --protocol gpt-j -o lambada.jsonl
  refgpt evaluate hellaswag --data hellaswag_val.jsonl -m ~/gpt-j-6b --compare dtype=q4
  refgpt evaluate perplexity --data book.txt
  refgpt evaluate raft --data raft/data -m ~/gpt-jt --compare mask=causal
  refgpt evaluate hellaswag --data hellaswag_val.jsonl -m ~/gpt-j-6b --ray-address auto   on all hosts of a Ray cluster

--data is your copy of the data set, with the columns of the published version: JSON lines, a JSON array, CSV, Parquet
or text. To resume an interrupted run, give the same command with the same -o again.
"""
NAMES = (*TASKS, "perplexity", "cnn-dailymail", "raft")


def add_to(commands: Commands) -> None:
    """Declare ``evaluate``."""
    about = "measure a model on a data set, and show published figures of other models"
    parser = add_command(commands, "evaluate", _evaluate, about, EXAMPLES)
    add = parser.add_argument
    add("task", choices=NAMES, metavar="TASK", help=", ".join(NAMES))
    add("--data", required=True, metavar="FILE", help="the data set; for raft, the folder with its tasks")
    add(
        "--variant",
        choices=[*TASKS["lambada"].variants, *VARIANTS],
        help="version of the data: for lambada, openai (default) or standard; for perplexity, plain (default) "
        "or wikitext",
    )
    add(
        "--protocol",
        choices=FRAMINGS,
        default="lm-eval",
        help="how texts become ids: as in lm-evaluation-harness, or as for GPT-J's own table, where the end-of-text "
        "token comes first, texts are cleaned with ftfy, and context and continuation are encoded separately "
        "(default: lm-eval)",
    )
    add(
        "--leading-end",
        action=argparse.BooleanOptionalAction,
        help="begin every context with the end-of-text token (default: as the protocol says)",
    )
    add(
        "--ftfy",
        action=argparse.BooleanOptionalAction,
        help="clean every text with ftfy (default: as the protocol says)",
    )
    add("--limit", type=int, metavar="N", help="use only the first N rows (default: all)")
    add(
        "--compare",
        metavar="NAME=VALUE,..",
        help=f"measure a second setting on the same items, and show the paired differences: {', '.join(SETTINGS)}",
    )
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="write each item's result to this .jsonl file at once; an interrupted run resumes from it",
    )
    add_json(parser)
    add_raft_options(parser.add_argument_group("raft"))
    add_running_arguments(parser)
    add_host_arguments(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    check_host_arguments(arguments)
    first, changes = setting_of(arguments), _changes(arguments.compare)
    settings = [first] if changes is None else [first, {**first, **changes}]
    measures = measures_of(arguments)
    for setting in settings[1:]:  # the first is checked when its model is loaded
        check_setting(setting)
    with open_results(arguments.output, arguments.data, measures, settings) as file:
        runs = [
            list(run_measures(arguments, measures, file, setting, {} if changes is None else {"setting": i}))
            for i, setting in enumerate(settings)
        ]
    names = _names(first, changes or {})
    if arguments.json:
        _print_json(runs, settings, names)
        return 0
    for number, run in enumerate(runs[0]):
        _print_run(run, None if changes is None else PairedRuns(run, runs[1][number]), names)
    if arguments.task == "raft" and len(measures) > 1:
        _print_means(runs)
    return 0


def measures_of(arguments: argparse.Namespace) -> list[Measure]:
    """The measurements that the arguments select: one, or one for each task of RAFT."""
    if arguments.task == "raft":
        settings = raft_settings(arguments, arguments.limit)
        return [Raft(task, settings) for task in read_raft(arguments.data, arguments.names)]
    if arguments.limit is not None:
        whole_number("limit", arguments.limit, 1, None, DataError)
    is_text = arguments.task == "perplexity"
    data, n_rows = read_rows(arguments.data, whole=is_text), arguments.limit
    if arguments.task == "cnn-dailymail":
        return [Summaries(data, n_rows)]
    given = {name: getattr(arguments, name) for name in ("leading_end", "ftfy")}
    framing: Framing = replace(
        FRAMINGS[arguments.protocol], **{name: value for name, value in given.items() if value is not None}
    )
    if is_text:
        return [Perplexity(data, arguments.variant, framing, n_rows)]
    return [ZeroShot(TASKS[arguments.task], data, framing, arguments.variant, n_rows)]


def _changes(text: str | None) -> dict[str, Any] | None:
    """The second setting, from "name=value,name=value"."""
    if text is None:
        return None
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if name not in SETTINGS or not value.strip():
            wanted = f"NAME=VALUE of {', '.join(SETTINGS)}"
            raise DataError("cannot be used", where="compare", got=shown(part), wanted=wanted)
        try:
            kept = None if value.strip() == "none" else SETTINGS[name](value.strip())
        except ValueError as error:
            raise DataError("cannot be used", where="compare", got=shown(part), wanted=str(error)) from None
        found[name] = False if name == "tokenizer" and kept is None else kept
    return found


def _names(first: Setting, changes: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the two settings, made from the options that differ."""

    def named(setting: Mapping[str, Any]) -> str:
        parts = []
        for name in changes:
            default = "none" if name == "adapter" else "as stored"
            parts.append(f"{name} {default if setting[name] in (None, False) else setting[name]}")
        return ", ".join(parts)

    return named(first), named(changes)


def _print_run(run: Run, comparison: PairedRuns | None, names: tuple[str, str]) -> None:
    n = len(run.records)
    print_line(f"{run.measure.name}: {n} item{'s' if n > 1 else ''}, 95% intervals")
    for line in table(run) if comparison is None else comparison_table(comparison, names):
        print_line(line)
    if "tokens" in run.records[0] and run.seconds and isinstance(run.measure, Summaries):
        n_tokens = sum(record["tokens"] for record in run.records)
        print_line(f"{len(run.records) / run.seconds:.3g} samples/s, {n_tokens / run.seconds:.3g} tokens/s (offline)")


def _print_means(runs: Sequence[Sequence[Run]]) -> None:
    """The means over the tasks of RAFT, of one setting or of two with the difference."""
    results = [[run.measure.result(run.records) for run in own if isinstance(run.measure, Raft)] for own in runs]
    print_line(f"mean of {len(results[0])} tasks:")
    found = [mean_results(own) for own in results]
    if len(results) > 1:
        found.append(mean_differences(*results))
    for name in found[0]:
        print_line(f"{name:<13}" + "".join(f"{one[name]!s:<24}" for one in found).rstrip())


def _print_json(runs: Sequence[Sequence[Run]], settings: Sequence[Setting], names: tuple[str, str]) -> None:
    pairs = zip(runs, settings, strict=True)
    found: dict[str, Any] = {"runs": [summary(run, recorded_setting(setting)) for own, setting in pairs for run in own]}
    if len(runs) > 1:
        found["comparisons"] = [
            {
                "task": one.measure.name,
                "first": names[0],
                "second": names[1],
                **comparison_summary(PairedRuns(one, two)),
            }
            for one, two in zip(*runs, strict=True)
        ]
    print_json(found)
