"""``refgpt raft``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable

from refgpt.cli.measuring import open_results, run_measures, setting_of
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.printing import print_line
from refgpt.evaluation import METHODS, NORMALISATIONS, RaftResult, RaftSettings, mean_results, read_raft
from refgpt.evaluation.raft import Raft

log = logging.getLogger("refgpt")

EXAMPLES = """examples:
  refgpt raft raft/data -m ~/gpt-jt
  refgpt raft raft/data -m ~/gpt-jt --tasks overruling,twitter_complaints --method likelihood -o answers.jsonl
"""


def add_to(commands: Commands) -> None:
    """Declare ``raft``."""
    raft = add_command(
        commands, "raft", _raft, "measure a model on RAFT (few-shot classification) with HELM's method", EXAMPLES
    )
    add = raft.add_argument
    add(
        "folder",
        metavar="FOLDER",
        help="folder with the tasks' files, TASK/train.csv or TASK.csv; nothing is downloaded",
    )
    add_raft_options(raft)
    add("--rows", dest="n_rows", type=int, metavar="N", help="use only the first N rows of each task (default: all)")
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="write each answer to this .jsonl file at once; an interrupted run resumes from it",
    )
    add_running_arguments(raft)


def add_raft_options(parser: argparse._ActionsContainer) -> None:
    """Declare the options that ``raft_settings`` reads, except the number of rows, and the tasks."""
    add = parser.add_argument
    add(
        "--tasks",
        dest="names",
        type=_names,
        metavar="A,B,..",
        help="tasks to run, of the eleven (default: those in the folder)",
    )
    add(
        "--method",
        choices=METHODS,
        default="generate",
        help="generate: the generated text must equal the label; "
        "likelihood: choose the most likely label (default: generate)",
    )
    add(
        "--normalise",
        choices=NORMALISATIONS,
        default="sum",
        help="score of a label with --method likelihood, as in classify (default: sum)",
    )
    add(
        "--shots",
        dest="n_shots",
        type=int,
        default=5,
        metavar="N",
        help="number of examples before each row (default: 5)",
    )
    add(
        "--trials",
        dest="n_trials",
        type=int,
        default=3,
        metavar="N",
        help="number of runs, each with other examples (default: 3)",
    )


def raft_settings(arguments: argparse.Namespace, n_rows: int | None) -> RaftSettings:
    """The settings that the options of ``add_raft_options`` ask for."""
    return RaftSettings(arguments.method, arguments.n_shots, arguments.n_trials, n_rows, arguments.normalise)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _raft(arguments: argparse.Namespace) -> int:
    settings = raft_settings(arguments, arguments.n_rows)
    measures = [Raft(task, settings) for task in read_raft(arguments.folder, arguments.names)]
    setting = setting_of(arguments)
    results: list[RaftResult] = []
    with open_results(arguments.output, arguments.folder, measures, [setting]) as file:
        runs = run_measures(arguments, measures, file, setting, {})
        for measure, run in zip(measures, runs, strict=True):
            if not results:
                print_line(_columns("task", "rows", ["exact match", "quasi-exact match", "macro-F1"]))
            results.append(result := measure.result(run.records))
            n_rows = len(result.trials[0])
            print_line(_columns(result.task.name, n_rows, mean_results([result]).values()))
            if result.n_shortened:
                log.warning(
                    "%s: %d of %d prompts lost examples, or their end, to fit into the context",
                    result.task.name,
                    result.n_shortened,
                    n_rows * settings.n_trials,
                )
    print_line(_columns(f"mean of {len(results)}", "", mean_results(results).values()))
    return 0


def _columns(name: str, n_rows: object, values: Iterable[object]) -> str:
    return f"{name:<32}{n_rows:>4}  " + "".join(f"{value!s:<24}" for value in values).rstrip()
