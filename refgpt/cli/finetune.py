"""``refgpt finetune``."""

from __future__ import annotations

import argparse
import logging
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from refgpt import __version__
from refgpt._common.arguments import path_of
from refgpt._common.errors import DataError, RefgptError
from refgpt._common.wording import size
from refgpt._model import Model
from refgpt.checkpoints import Checkpoint
from refgpt.cli.finetune_options import add_finetune_arguments, add_other_names, settings_of
from refgpt.cli.finetune_workers import NEEDS_WORKERS, cluster_run, exchange_of
from refgpt.cli.loading import load_after, watched
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.printing import print_line
from refgpt.cli.training_bar import TrainingBar
from refgpt.generation.chat_templates import chat_template
from refgpt.generation.prompts import needs_tokenizer
from refgpt.numbers.adapted import Adapted
from refgpt.spec.gradients import gradients_of
from refgpt.tokenizers import Tokenizer
from refgpt.training import new_adapter
from refgpt.training.data import Texts, find_splits, read_texts
from refgpt.training.examples import Encoder
from refgpt.training.output import check_output
from refgpt.training.run import Run, RunSettings

log = logging.getLogger("refgpt")

PLOT = "loss.png"
EXAMPLES = """data: JSONL, each line one of
  {{"text": "..."}}                                        the loss covers all of it
  {{"prompt": "...", "completion": "..."}}                 the loss covers the completion
  {{"messages": [{{"role": "user", "content": "..."}}, ...]}}  the loss covers the answers; see --template
or a folder with train.jsonl and, optionally, valid.jsonl and test.jsonl; or plain text

names of other programs' options are accepted too:
  {aliases}

examples:
  refgpt finetune -m ~/gpt-j-6b --dtype q4 --data answers.jsonl -o ~/answers   an adapter for 4-bit weights
  refgpt generate -m ~/gpt-j-6b --dtype q4 --adapter ~/answers "..."           use it
  refgpt finetune --full --data tales.txt --learning-rate 3e-4 -o tales        all weights of the included model
  refgpt finetune -m ~/gpt-j-6b --full --mask prefix --data pairs.jsonl -o out the recipe of GPT-JT
  refgpt finetune --full --data tales.txt -o tales --workers 4 --sync random:0.04 --compress topk:0.03,bits:2
To resume an interrupted run, give the same command again.
"""


def add_to(commands: Commands) -> None:
    """Declare ``finetune``."""
    help = "train an adapter for a model, or all its weights, on your own texts"
    command = add_command(commands, "finetune", _finetune, help, "")
    aliases = add_finetune_arguments(command)
    command.epilog = EXAMPLES.format(aliases=aliases)
    add_running_arguments(command)
    add_other_names(command)


def _finetune(arguments: argparse.Namespace) -> int:
    _check(arguments)
    exchange = None if arguments.workers is None else exchange_of(arguments)
    out, settings, files = check_output(arguments.output), RunSettings(**settings_of(arguments)), _files(arguments)
    model, data = load_after(arguments, partial(_read, arguments, files))
    adapter = None
    if not arguments.full and arguments.adapter is None:
        given = {name: getattr(arguments, name) for name in ("rank", "alpha", "targets")}
        adapter = {name: value for name, value in given.items() if value is not None} | {"seed": arguments.seed}
        new_adapter(model, **adapter)
    record = {"refgpt": __version__, "model": str(model.checkpoint.path), "data": str(arguments.data)}
    about = _about(arguments, model)
    if exchange is None:
        started: AbstractContextManager[Run] = Run(model, data, out, settings, about, record)
    else:
        started = cluster_run(arguments, exchange, model, data, out, settings, about, record, adapter)
    with started as run:
        if run.finished:
            print_line(f"{out}: finished already, after {run.n_steps:,} steps")
            return 0
        if run.n_done:
            log.info("%s: going on after step %d of %d", out, run.n_done, run.n_steps)
        _train(arguments, run)
    return 0


def _train(arguments: argparse.Namespace, run: Run) -> None:
    try:
        with TrainingBar(run.n_steps, run.n_done, watched(), arguments.report_every) as bar:
            for event in run:
                bar.show(event)
    except (KeyboardInterrupt, SystemExit):
        log.warning("%s: stopped in step %d; the same command goes on from the latest state", run.out, run.n_done + 1)
        raise
    finally:
        _draw(run)
    parts = []
    for name in ("loss", "valid_loss", "test_loss"):
        found = [line[name] for line in run.metrics() if name in line]
        if found:
            ends = dict.fromkeys([found[0], found[-1]])
            parts.append(f"{name.replace('_', ' ')} {' -> '.join(f'{end:.4f}' for end in ends)}")
    n_bytes = sum(path.stat().st_size for path in run.out.glob("*.safetensors"))
    kind = "model" if arguments.full else "adapter"
    print_line(f"{run.out}: {kind} of {size(n_bytes)} after {run.n_steps:,} steps; {', '.join(parts)}")


def _check(arguments: argparse.Namespace) -> None:
    for name in ("rank", "alpha", "targets", "dropout", "adapter"):
        if arguments.full and getattr(arguments, name) is not None:
            arguments.parser.error(f"--{name} is for adapters; leave out --full, or merge the adapter first")
    for name in ("rank", "alpha", "targets"):
        if arguments.adapter is not None and getattr(arguments, name) is not None:
            arguments.parser.error(f"--{name} is for a new adapter; --adapter trains the one that it names")

    given = [name for name in NEEDS_WORKERS if getattr(arguments, name) is not None]
    if arguments.workers is None and given:
        arguments.parser.error(f"--{given[0].replace('_', '-')} is for many machines; give --workers too")
    if arguments.workers is not None and not arguments.workers > 0:
        arguments.parser.error("--workers must be 1 or more")


def _files(arguments: argparse.Namespace) -> dict[str, Path]:
    files = find_splits(arguments.data)
    if arguments.valid is not None:
        files["valid"] = path_of("--valid", arguments.valid, DataError)
    return files


def _read(
    arguments: argparse.Namespace, files: dict[str, Path], checkpoint: Checkpoint, tokenizer: Tokenizer | None
) -> dict[str, Texts]:
    config, prefix = checkpoint.config, checkpoint.mask == "prefix"
    gradients_of(config)
    if tokenizer is None:
        raise needs_tokenizer("the data is text", "give another with --tokenizer")
    template = chat_template(arguments.template)
    encoder = Encoder(config, tokenizer, template, arguments.loss, prefix, arguments.eos)
    most = config.n_ctx if arguments.max_seq_length is None else arguments.max_seq_length
    data = {name: read_texts(path, encoder, most, arguments.too_long, arguments.strict) for name, path in files.items()}
    for texts in data.values():
        first, *others = texts.summary()
        log.info("%s", first)
        for line in others:
            log.warning("%s", line)
    if prefix and arguments.loss == "all":
        log.warning("with the prefix mask a prompt's tokens see those that they predict: their loss says little")
    return data


def _about(arguments: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Properties of the model that the result depends on, besides the settings and the data."""
    pairs = [leaf for _, leaf in model.engine.kept().items() if isinstance(leaf, Adapted)]
    return {
        "family": model.config.model_type,
        "shape": [model.config.n_layer, model.config.d_model, model.config.n_vocab],
        "backend": model.backend,
        "dtype": model.dtype,
        "mask": model.mask,
        "loss": arguments.loss,
        "adapter_matrices": [len(pairs), sum(pair.a.size + pair.b.size for pair in pairs)],
        "adapter_scales": sorted({pair.scale for pair in pairs}),
        **({} if model.compute == "f32" else {"compute": model.compute}),  # older runs do not record it
    }


def _draw(run: Run) -> None:
    try:
        from refgpt.plotting import save_loss_lines

        save_loss_lines(run.metrics(), run.out / PLOT)
    except RefgptError as fault:  # matplotlib is not installed, or there is no step yet
        log.debug("no %s: %s", PLOT, fault)
