"""Answer a file of prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from refgpt._common.arguments import flag, one_of, path_of
from refgpt._common.errors import DataError, GenerationError
from refgpt.batches.journal import SUFFIXES, Journal
from refgpt.batches.lines import Lines
from refgpt.batches.requests import Settings, request_of
from refgpt.batches.running import Record, run_requests
from refgpt.generation.chat_templates import ChatTemplate, chat_template
from refgpt.generation.identity import model_identity
from refgpt.generation.params import GenerationParams
from refgpt.generation.sequence import Generates

#: Orders of the records: that of the requests, or the order of completion.
ORDERS = ("input", "completion")


class Loaded(Generates, Protocol):
    """What a batch needs of a model."""

    @property
    def checkpoint(self) -> Any: ...


@dataclass(frozen=True)
class BatchSummary:
    """The totals of a batch.

    Attributes
    ----------
    n_requests : int
        How many requests there are, each with a record now.
    n_errors : int
        How many of the records are errors.
    n_earlier : int
        How many records came from an earlier run.
    """

    n_requests: int
    n_errors: int
    n_earlier: int


def run_batch(
    model: Loaded,
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    params: GenerationParams | None = None,
    *,
    kind: str | None = None,
    prompt_column: str = "prompt",
    template: str | ChatTemplate = "base",
    order: str = "input",
    restart: bool = False,
    on_record: Callable[[int, int], object] = lambda n_done, n_requests: None,
    **running: Any,
) -> BatchSummary:
    """Answer a file of prompts.

    Parameters
    ----------
    model : refgpt.Model
    path : path
        The requests. JSON lines: each ``{"prompt": ...}``, a text or ids, or ``{"messages": [...]}``, with "id",
        "metadata" and any field of ``GenerationParams`` beside it, or OpenAI's batch format. CSV: the first line names
        the columns; those called like parameters are parameters, "id" is the id, others go to the record. Text: each
        line that is not blank is a prompt.
    output : path
        A .jsonl or .csv file. It is written when all requests have a record. Until then records are kept beside it,
        under its name plus ".partial": an interrupted run resumes when it is called again with the same
        file and settings. No request is answered twice, and no record is lost.
    params : GenerationParams, optional
        Defaults of requests in the short form. Requests in OpenAI's format have OpenAI's defaults.
    kind : "jsonl", "csv", "text" or None
        What the file is; None: as its name says.
    prompt_column : str
        The column of a CSV file that has the prompts.
    template : str or ChatTemplate
        The prompt format of messages: "base", "gpt-jt", "alpaca", "dolly" or "pygmalion".
    order : "input" or "completion"
        See ``ORDERS``.
    restart : bool
        Whether to discard the records of an earlier run with another file or settings.
    on_record : callable
        Called with how many requests have a record, and how many there are: at the start, and after each one.
    **running
        ``max_slots``, ``max_cache_bytes``, ``max_kept_bytes`` (of the prefix cache) and ``on_tokens`` (called with the
        number of new tokens of each pass).

    Returns
    -------
    BatchSummary

    Raises
    ------
    RefgptError
        If a file or a setting cannot be used, before anything is computed. An error of a single request is
        reported in its record.
    """
    with open_batch(path, output, kind, prompt_column) as (lines, journal):
        return answer(
            model,
            lines,
            journal,
            params,
            template=template,
            order=order,
            restart=restart,
            on_record=on_record,
            **running,
        )


@contextmanager
def open_batch(
    path: str | os.PathLike[str], output: str | os.PathLike[str], kind: str | None, prompt_column: str
) -> Iterator[tuple[Lines, Journal]]:
    """Open the requests of a batch and the journal of its records. See ``run_batch`` for parameters and errors."""
    lines = Lines(path_of("path", path, DataError), kind, prompt_column)
    with Journal(check_output(output), lines.n_lines) as journal:
        if lines.path.samefile(journal.path) or (journal.output.exists() and lines.path.samefile(journal.output)):
            raise DataError("is also an input of this run", where=output, fix="write to another file")
        yield lines, journal


def answer(
    model: Loaded,
    lines: Lines,
    journal: Journal,
    params: GenerationParams | None = None,
    *,
    template: str | ChatTemplate = "base",
    order: str = "input",
    restart: bool = False,
    on_record: Callable[[int, int], object] = lambda n_done, n_requests: None,
    **running: Any,
) -> BatchSummary:
    """``run_batch`` for files that are open already."""
    one_of("order", order, ORDERS, GenerationError)
    settings = settings_of(model, lines.sha256, params, template)
    identity = batch_identity(lines, settings.params, settings.template, model_identity(model))
    return write_records(
        journal,
        lines,
        identity,
        lambda: records_of(model, lines, settings, journal.is_done, **running),
        order=order,
        restart=restart,
        on_record=on_record,
    )


def write_records(
    journal: Journal,
    lines: Lines,
    identity: Mapping[str, Any],
    records: Callable[[], Iterable[Record]],
    *,
    order: str = "input",
    restart: bool = False,
    on_record: Callable[[int, int], object] = lambda n_done, n_requests: None,
) -> BatchSummary:
    """Write the records of a batch: those that the journal has, and those of ``records()``, which has the others."""
    journal.begin(identity, flag("restart", restart, GenerationError))
    n_earlier = journal.n_done
    on_record(journal.n_done, lines.n_lines)
    for record in records():
        journal.write(record)
        on_record(journal.n_done, lines.n_lines)
    journal.finish(order == "input")
    return BatchSummary(lines.n_lines, journal.n_errors, n_earlier)


def batch_identity(
    lines: Lines, params: GenerationParams, template: ChatTemplate, of_model: Mapping[str, Any]
) -> dict[str, Any]:
    """What the records of a batch depend on, as JSON: the requests, their settings, and ``model_identity``."""
    return {
        "prompts": lines.sha256,
        "format": f"{lines.kind} {lines.prompt_column}",
        **of_model,
        "parameters": repr(params),
        "template": repr(template),
    }


def settings_of(model: Loaded, prompts: str, params: GenerationParams | None, template: str | ChatTemplate) -> Settings:
    """The settings that all requests of a file share. ``prompts`` is the file's ``Lines.sha256``."""
    return Settings(
        model.engine.config.n_ctx,
        params or GenerationParams(),
        template_of(template),
        Path(os.path.abspath(model.checkpoint.path)).name,
        f"{prompts[:16]}_",
        tuple(getattr(model, "adapters", ())),
    )


def template_of(template: str | ChatTemplate) -> ChatTemplate:
    """The template, given as itself or by its name."""
    return chat_template(template) if isinstance(template, str) else template


def records_of(
    model: Loaded,
    lines: Lines,
    settings: Settings,
    is_done: Callable[[int], bool] = lambda index: False,
    **running: Any,
) -> Iterator[Record]:
    """Yield the records of the unanswered requests, in order of completion."""
    left = ((i, request_of(line, settings)) for i, line in enumerate(lines) if not is_done(i))
    yield from run_requests(model, left, fault=model.checkpoint.tokenizer_fault, **running)


def check_output(output: str | os.PathLike[str]) -> Path:
    """Check the suffix of an output file; a DataError if a batch cannot write such files."""
    path = path_of("output", output, DataError)
    if path.suffix not in SUFFIXES:
        raise DataError("cannot be written", where="output", got=path, wanted=f"a name in {' or '.join(SUFFIXES)}")
    return path
