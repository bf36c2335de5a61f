"""Shared by ``evaluate`` and ``raft``: settings of a model, and runs that are recorded item by item."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from refgpt._common.arguments import one_of
from refgpt._common.errors import RefgptError
from refgpt._common.progress import counted
from refgpt._common.record_file import RecordFile, open_record_file
from refgpt._load import check_options
from refgpt._open import open_adapter, open_model
from refgpt.checkpoints import MASKS
from refgpt.cli.host_options import load_options
from refgpt.cli.loading import load_for, watched
from refgpt.cli.results import check_suffix, files_read, refuse_inputs
from refgpt.evaluation.measures import Measure
from refgpt.evaluation.runner import Run, evaluate, known_records
from refgpt.generation.identity import model_identity
from refgpt.generation.prompts import telling_fault
from refgpt.numbers.dtypes import known_dtype

#: The options that make up a setting, each with the function that parses its text.
SETTINGS: dict[str, Callable[[str], Any]] = {
    "model": str,
    "backend": str,
    "dtype": known_dtype,
    "kv_dtype": known_dtype,
    "compute": known_dtype,
    "mask": str,
    "adapter": str,
    "tokenizer": str,
    "revision": str,
    "threads": int,
}
Setting = dict[str, Any]


def setting_of(arguments: argparse.Namespace) -> Setting:
    """The setting that the arguments ask for."""
    return {name: getattr(arguments, name, None) for name in SETTINGS}


def check_setting(setting: Setting) -> None:
    """Refuse a setting that no model can be loaded with, before anything is computed."""
    check_options(setting["backend"], setting["dtype"], setting["threads"], setting["kv_dtype"], setting["compute"])
    one_of("mask", setting["mask"], MASKS, RefgptError)
    checkpoint, _ = open_model(setting["model"], setting["mask"], None, setting["revision"], setting["tokenizer"])
    open_adapter(setting["adapter"], checkpoint, setting["mask"])


def recorded_setting(setting: Setting) -> dict[str, Any]:
    """A setting as it is recorded: paths, and the options that change results, so not the number of threads."""
    left_out = [("threads", setting["threads"]), ("compute", None)]  # older files do not record compute
    found = dict(item for item in setting.items() if item not in left_out)
    for name in ("model", "adapter", "tokenizer"):
        value = found[name]
        if isinstance(value, str) and os.path.exists(value):
            found[name] = os.path.realpath(value)
    return found


@contextmanager
def open_results(
    output: str | None, data: str, measures: Sequence[Measure], settings: Sequence[Setting]
) -> Iterator[RecordFile]:
    """The records of a run with these measurements and settings, in memory or in a file that may have some already."""
    check_suffix(output, ".jsonl")
    if output is not None:
        refuse_inputs(output, [data] if os.path.isfile(data) else files_read(data, output))
        for setting in settings:
            if setting["model"] is not None:
                refuse_inputs(output, files_read(setting["model"], output))
    about = {
        "measures": [measure.describe() for measure in measures],
        "settings": [recorded_setting(setting) for setting in settings],
    }
    with open_record_file(output, about) as file:
        yield file


def run_measures(
    arguments: argparse.Namespace,
    measures: Sequence[Measure],
    file: RecordFile,
    setting: Setting,
    tags: Mapping[str, Any],
) -> Iterator[Run]:
    """Run measurements one after the other with one setting.

    The model is loaded even if all records are known: they may be those of other weights at the same place.
    """
    labels = [{**tags, "task": measure.name} for measure in measures]
    n_known = [len(known_records(measure, file, label)) for measure, label in zip(measures, labels, strict=True)]
    if getattr(arguments, "ray_address", None) is not None:
        yield from _measured_by_hosts(arguments, measures, file, setting, labels, n_known)
        return
    given = argparse.Namespace(**{**vars(arguments), **setting})
    model, asked = load_for(given, lambda config, tokenizer: [one.requests(config, tokenizer) for one in measures])
    identity = model_identity(model)
    for measure, label, requests, n in zip(measures, labels, asked, n_known, strict=True):
        with counted(watched(), len(requests) - n, "item", measure.name, leave=False) as one_more:
            run = evaluate(model, measure, file, one_more, label, requests, identity)
        yield run


def _measured_by_hosts(
    arguments: argparse.Namespace,
    measures: Sequence[Measure],
    file: RecordFile,
    setting: Setting,
    labels: Sequence[Mapping[str, Any]],
    n_known: Sequence[int],
) -> Iterator[Run]:
    """``run_measures`` on the hosts of a Ray cluster."""
    from refgpt.cluster.answering import HostEvaluation, reading_of
    from refgpt.cluster.connect import connected, import_ray

    import_ray()  # before texts are encoded, which may take long
    checkpoint, tokenizer = open_model(
        setting["model"], setting["mask"], None, setting["revision"], setting["tokenizer"]
    )
    with telling_fault(checkpoint.tokenizer_fault):
        asked = [measure.requests(checkpoint.config, tokenizer) for measure in measures]
    checkpoint, _ = open_adapter(setting["adapter"], checkpoint, setting["mask"])  # which may have a mask of its own
    reading = reading_of(checkpoint.config, tokenizer, checkpoint.mask)
    options = load_options({**vars(arguments), **setting})
    threads, per_host = setting["threads"], arguments.workers_per_host
    with (
        connected(arguments.ray_address),
        HostEvaluation(options, measures, asked, reading, threads=threads, per_host=per_host) as hosts,
    ):
        for number, (measure, label) in enumerate(zip(measures, labels, strict=True)):
            n_left = len(asked[number]) - n_known[number]
            with counted(watched(), n_left, "item", measure.name, leave=False) as one_more:
                run = hosts.run(number, file, one_more, label)
            yield run
