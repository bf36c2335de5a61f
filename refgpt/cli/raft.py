"""``refgpt raft``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable

from refgpt._common.progress import counted
from refgpt.cli.loading import load_model, watched
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.printing import print_line
from refgpt.cli.results import check_suffix, files_read, json_line, open_output, refuse_inputs
from refgpt.evaluation import METHODS, NORMALISATIONS, RaftSettings, mean_results, read_raft, run_raft

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
    add("--rows", dest="n_rows", type=int, metavar="N", help="use only the first N rows of each task (default: all)")
    add("-o", "--output", metavar="FILE", help="write every answer to a .jsonl file")
    add_running_arguments(raft)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _raft(arguments: argparse.Namespace) -> int:
    settings = RaftSettings(
        arguments.method, arguments.n_shots, arguments.n_trials, arguments.n_rows, arguments.normalise
    )
    tasks = read_raft(arguments.folder, arguments.names)
    check_suffix(arguments.output, ".jsonl")
    with open_output(arguments.output, files_read(arguments.folder, arguments.output)) as output:
        model, results = load_model(arguments, arguments.backend), []
        if output.path is not None:
            refuse_inputs(arguments.output, files_read(model.checkpoint.path, arguments.output))
        write = (lambda record: None) if arguments.output is None else json_line(output)
        print_line(_columns("task", "rows", ["exact match", "quasi-exact match", "macro-F1"]))
        for task in tasks:
            n_rows = len(task.rows[: settings.n_rows])
            with counted(watched(), n_rows * settings.n_trials, "answer", task.name, leave=False) as one_more:
                result = run_raft(model, task, settings, one_more, write)
            results.append(result)
            print_line(_columns(task.name, n_rows, mean_results([result]).values()))
            if result.n_shortened:
                log.warning(
                    "%s: %d of %d prompts lost examples, or their end, to fit into the context",
                    task.name,
                    result.n_shortened,
                    n_rows * settings.n_trials,
                )
    print_line(_columns(f"mean of {len(results)}", "", mean_results(results).values()))
    return 0


def _columns(name: str, n_rows: object, values: Iterable[object]) -> str:
    return f"{name:<32}{n_rows:>4}  " + "".join(f"{value!s:<24}" for value in values).rstrip()
