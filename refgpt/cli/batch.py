"""``refgpt batch``."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from refgpt._common.arguments import path_of
from refgpt._common.errors import DataError
from refgpt.batches.batch import ORDERS, BatchSummary, answer, check_output, records_of, settings_of
from refgpt.batches.journal import Journal
from refgpt.batches.lines import SUFFIXES, Lines
from refgpt.batches.running import in_order
from refgpt.cli.host_options import add_host_arguments, check_host_arguments, load_options
from refgpt.cli.loading import load_model, watched
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.results import files_read, is_stream, json_line, open_output, refuse_inputs
from refgpt.cli.sampling import add_sampling_arguments, sampling_of
from refgpt.cli.templates import add_template, template_of
from refgpt.generation.chat_templates import ChatTemplate
from refgpt.generation.params import GenerationParams
from refgpt.generation.scheduler import MOST_TOGETHER

if TYPE_CHECKING:
    from refgpt.cluster.answering import HostBatch

log = logging.getLogger("refgpt")

EXAMPLES = """requests, one a line (.jsonl):
  {"prompt": "Once upon a time", "id": "tale", "max_new_tokens": 50, "seed": 1}
  {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
  {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 5}}

examples:
  refgpt batch prompts.jsonl -o out.jsonl
  refgpt batch -m ~/gpt-j-6b-q4 questions.csv --prompt-column question -o answers.csv --temperature 0
  refgpt batch lines.txt -n 40 --seed 7 --order completion | head
  refgpt batch -m ~/gpt-j-6b-q4 prompts.jsonl -o out.jsonl --ray-address auto   on all hosts of a Ray cluster

To resume an interrupted run, give the same command again.
"""


def add_to(commands: Commands) -> None:
    """Declare ``batch``."""
    batch = add_command(commands, "batch", _batch, "answer a file of prompts, many at a time", EXAMPLES)
    add = batch.add_argument
    add("file", metavar="FILE", help="the requests: .jsonl, .csv or .txt; - reads standard input")
    add("-o", "--output", metavar="FILE", help="write to a .jsonl or .csv file (default: JSON to standard output)")
    add("--format", choices=SUFFIXES, help="format of FILE (default: by its suffix; jsonl for standard input)")
    add(
        "--prompt-column",
        default="prompt",
        metavar="NAME",
        help="column of a CSV file that contains the prompts (default: prompt)",
    )
    add(
        "--order",
        choices=ORDERS,
        default="input",
        help="order of the records: that of the requests, or the order of completion (default: input)",
    )
    add("--restart", action="store_true", help="discard the records of an earlier run with other requests or options")
    add(
        "--slots",
        dest="max_slots",
        type=int,
        default=MOST_TOGETHER,
        metavar="N",
        help="write at most N texts at once (default: %(default)s)",
    )
    add(
        "--truncate",
        choices=["left"],
        help="drop the beginnings of prompts that are too long (default: an error record for each)",
    )
    add_template(batch)
    add_sampling_arguments(batch)
    add_running_arguments(batch, named_adapters=True)
    add_host_arguments(batch)


def _batch(arguments: argparse.Namespace) -> int:
    check_host_arguments(arguments)
    params, template = sampling_of(arguments, truncate=arguments.truncate), template_of(arguments)
    with _requests(arguments) as lines:
        if arguments.output is None or is_stream(arguments.output):
            _to_stream(arguments, lines, params, template)
        else:
            _to_file(arguments, lines, params, template)
    return 0


def _to_stream(arguments: argparse.Namespace, lines: Lines, params: GenerationParams, template: ChatTemplate) -> None:
    """Print records as they are completed."""
    with open_output(arguments.output) as output, ExitStack() as stack:
        write = json_line(output)
        model = load_model(arguments, arguments.backend) if arguments.ray_address is None else None
        # A bar would break up the records on a terminal.
        meter = stack.enter_context(_meter(watched() and not sys.stdout.isatty()))
        meter.show(0, lines.n_lines)
        if model is None:
            records = stack.enter_context(_on_hosts(arguments, lines, params, template, meter)).records()
        else:
            settings = settings_of(model, lines.sha256, params, template)
            records = records_of(model, lines, settings, max_slots=arguments.max_slots, on_tokens=meter.add_tokens)
        for n, record in enumerate(in_order(records) if arguments.order == "input" else records, 1):
            write(record.content)
            meter.show(n, lines.n_lines)


def _to_file(arguments: argparse.Namespace, lines: Lines, params: GenerationParams, template: ChatTemplate) -> None:
    """Answer the requests that an earlier run has not answered."""
    with Journal(check_output(arguments.output), lines.n_lines) as journal:
        refuse_inputs(arguments.output, [lines.path])
        model = load_model(arguments, arguments.backend) if arguments.ray_address is None else None
        path = arguments.model if model is None else model.checkpoint.path
        refuse_inputs(arguments.output, [] if path is None else files_read(path, arguments.output))
        with _meter(watched()) as meter:
            how = {"order": arguments.order, "restart": arguments.restart, "on_record": meter.show}
            try:
                if model is None:
                    with _on_hosts(arguments, lines, params, template, meter) as batch:
                        summary = batch.answer(journal, **how)
                else:
                    running = {"max_slots": arguments.max_slots, "on_tokens": meter.add_tokens}
                    summary = answer(model, lines, journal, params, template=template, **how, **running)
            except BaseException:
                if journal.n_done:
                    log.warning(
                        "%s has the answers to %d of %d requests: the same command goes on from there",
                        journal.path,
                        journal.n_done,
                        lines.n_lines,
                    )
                raise
    _report(summary, arguments.output, meter)


@contextmanager
def _on_hosts(
    arguments: argparse.Namespace, lines: Lines, params: GenerationParams, template: ChatTemplate, meter: Meter
) -> Iterator[HostBatch]:
    """The hosts of the cluster that the arguments name, as they begin to answer."""
    from refgpt.cluster.answering import HostBatch
    from refgpt.cluster.connect import connected

    with (
        connected(arguments.ray_address),
        HostBatch(
            load_options(vars(arguments)),
            lines,
            params,
            template,
            threads=arguments.threads,
            per_host=arguments.workers_per_host,
            on_tokens=meter.add_tokens,
            max_slots=arguments.max_slots,
        ) as batch,
    ):
        yield batch


def _report(summary: BatchSummary, output: str, meter: Meter) -> None:
    log.info(
        "wrote %s: %d records, %d of them from an earlier run; %s",
        output,
        summary.n_requests,
        summary.n_earlier,
        meter.speed(),
    )
    if summary.n_errors:
        log.warning("%d of %d requests have no answer: their records say why", summary.n_errors, summary.n_requests)


@contextmanager
def _requests(arguments: argparse.Namespace) -> Iterator[Lines]:
    """The requests of a file, or of standard input, which is copied to a file first."""
    if arguments.file != "-":
        yield Lines(path_of("file", arguments.file, DataError), arguments.format, arguments.prompt_column)
        return
    if sys.stdin is None:
        raise DataError("standard input is closed", fix="name a file of requests")
    with tempfile.NamedTemporaryFile(prefix="refgpt-") as copied:
        shutil.copyfileobj(sys.stdin.buffer, copied)
        copied.flush()
        yield Lines(Path(copied.name), arguments.format or "jsonl", arguments.prompt_column)


class Meter:
    """Counts tokens and, if it has a progress bar, shows their speed and the remaining time there."""

    def __init__(self) -> None:
        self._bar = None
        self._n_tokens, self._start = 0, monotonic()

    def add_tokens(self, n_new: int) -> None:
        """Count ``n_new`` more generated tokens."""
        self._n_tokens += n_new
        if self._bar is not None:
            self._bar.set_postfix_str(self.speed(), refresh=False)
            self._bar.update(0)

    def show(self, n_done: int, n_requests: int) -> None:
        """Show that ``n_done`` requests have a record."""
        if self._bar is not None:
            if self._bar.total is None:  # records of an earlier run must not count for the speed
                self._bar.initial, self._bar.total = n_done, n_requests
                self._bar.n = self._bar.last_print_n = n_done
            self._bar.update(n_done - self._bar.n)

    def speed(self) -> str:
        """The number of tokens so far, and tokens per second."""
        seconds = max(1e-9, monotonic() - self._start)
        return f"{self._n_tokens:,} tokens, {self._n_tokens / seconds:.3g} tokens/s"


@contextmanager
def _meter(shown: bool) -> Iterator[Meter]:
    meter = Meter()
    if not shown:
        yield meter
        return
    from tqdm import tqdm

    with tqdm(desc="answering", unit=" request", leave=False) as meter._bar:
        yield meter
