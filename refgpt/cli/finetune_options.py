"""The options of ``refgpt finetune``, and their names in other programs."""

from __future__ import annotations

import argparse
from typing import Any

from refgpt.cli.finetune_workers import add_worker_arguments
from refgpt.generation.chat_templates import TEMPLATES
from refgpt.training.data import TOO_LONG
from refgpt.training.examples import LOSSES
from refgpt.training.run import OPTIMISERS
from refgpt.training.schedule import SHAPES

#: For each option, its names in mlx-lm and Hugging Face's trainers. Underscores are accepted in place of hyphens.
ALIASES: dict[str, tuple[str, ...]] = {
    "--data": ("--train-file", "--dataset"),
    "--valid": ("--validation-file", "--eval-data"),
    "--output": ("--output-dir", "--adapter-path"),
    "--rank": ("--lora-r", "--lora-rank"),
    "--alpha": ("--lora-alpha",),
    "--dropout": ("--lora-dropout",),
    "--targets": ("--target-modules", "--lora-target-modules"),
    "--iters": ("--max-steps",),
    "--epochs": ("--num-train-epochs",),
    "--batch-size": ("--per-device-train-batch-size",),
    "--accumulate": ("--grad-accumulation-steps", "--gradient-accumulation-steps"),
    "--max-seq-length": ("--max-length",),
    "--schedule": ("--lr-scheduler-type",),
    "--warmup": ("--warmup-steps",),
    "--eps": ("--adam-epsilon",),
    "--clip": ("--max-grad-norm",),
    "--eval-every": ("--steps-per-eval", "--eval-steps"),
    "--save-every": ("--save-steps",),
    "--report-every": ("--steps-per-report", "--logging-steps"),
}


def add_finetune_arguments(parser: argparse.ArgumentParser) -> str:
    """Declare the options. Returns text that lists the other names (see ``add_other_names``), one option a line."""
    _add_data(parser)
    _add_adapter(parser.add_argument_group("adapter"))
    _add_steps(parser.add_argument_group("steps"))
    _add_optimiser(parser.add_argument_group("optimiser"))
    _add_watching(parser.add_argument_group("watching"))
    add_worker_arguments(parser.add_argument_group("many machines"))
    return "\n  ".join(f"{name}: {', '.join(others)}" for name, others in ALIASES.items())


def add_other_names(parser: argparse.ArgumentParser) -> None:
    """Let the parser understand the other names, and underscores for hyphens, without listing them in its help."""
    known = parser._option_string_actions
    for name, others in ALIASES.items():
        known.update(dict.fromkeys(others, known[name]))
    known.update({f"--{name[2:].replace('-', '_')}": action for name, action in known.items() if name[:2] == "--"})


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="PATH",
        help="training data: a JSONL file, a folder of JSONL files, or plain text",
    )
    add("--valid", metavar="FILE", help="texts for evaluation (default: the folder's valid.jsonl)")
    add("-o", "--output", required=True, metavar="DIRECTORY", help="where the adapter or model is written")
    add("--full", action="store_true", help="train all weights instead of an adapter")
    group = parser.add_argument_group("texts").add_argument
    group(
        "--loss",
        choices=LOSSES,
        default="completion",
        help="for texts with a prompt, compute the loss on the completion, or on the prompt too (default: completion)",
    )
    group("--template", choices=TEMPLATES, default="base", help="format of conversations (default: base)")
    group(
        "--max-seq-length",
        type=int,
        metavar="N",
        help="most tokens of a text; longer texts without a prompt are split (default: the model's context)",
    )
    group(
        "--too-long",
        choices=TOO_LONG,
        default="skip",
        help="what to do with longer texts that have a prompt: leave them out, or cut off their ends (default: skip)",
    )
    group("--strict", action="store_true", help="end with an error at the first malformed line")
    group("--no-eos", dest="eos", action="store_false", help="do not append the end-of-text token to each text")
    group(
        "--pack",
        action="store_true",
        help="fill each row of a batch with as many texts as fit into --max-seq-length; texts do not see each other "
        "(default: one text per row)",
    )


def _add_adapter(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add("--rank", type=int, metavar="N", help="rank of the adapter's matrices (default: 8)")
    add("--alpha", type=float, metavar="X", help="the matrices' product is multiplied by ALPHA / RANK (default: 16)")
    add(
        "--targets",
        metavar="NAMES",
        help="weight matrices to adapt: some of q, k, v, o, fc_in, fc_out, or all, or PEFT's names, separated by "
        "commas (default: q,v)",
    )
    add(
        "--dropout",
        type=float,
        metavar="X",
        help="share of the adapter's inputs set to 0, drawn anew for each text (default: 0)",
    )


def _add_steps(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add("--epochs", type=int, default=1, metavar="N", help="passes over the texts (default: 1)")
    add("--iters", type=int, metavar="N", help="steps, instead of --epochs")
    add("--batch-size", type=int, default=8, metavar="N", help="rows of a batch (default: 8)")
    add(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="batches per optimiser step (default: 1)",
    )
    add(
        "--recompute",
        "--grad-checkpoint",
        "--gradient-checkpointing",
        action="store_true",
        help="compute each block again in the backward pass: less memory, more time, the same result",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the adapter, the order and the dropout (default: 0)")


def _add_optimiser(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add(
        "--optimizer",
        "--optimiser",
        choices=OPTIMISERS,
        default="adamw",
        help="muon: Muon for the matrices of the blocks, AdamW for the others (default: adamw)",
    )
    add(
        "--learning-rate",
        "--lr",
        type=float,
        metavar="X",
        help="the largest learning rate (default: 1e-4, with --full 1e-5)",
    )
    add(
        "--schedule",
        choices=SHAPES,
        default="cosine",
        help="decay of the learning rate after the warm-up (default: cosine)",
    )
    add("--warmup", type=int, metavar="N", help="steps of the warm-up (default: 3%% of all steps)")
    add(
        "--floor",
        type=float,
        default=0.0,
        metavar="X",
        help="final learning rate, as a share of the largest (default: 0)",
    )
    add(
        "--weight-decay",
        type=float,
        default=0.0,
        metavar="X",
        help="weight decay of matrices other than embeddings (default: 0)",
    )
    add("--betas", type=float, nargs=2, default=(0.9, 0.999), metavar=("X", "Y"), help="AdamW's (default: 0.9 0.999)")
    add("--eps", type=float, default=1e-8, metavar="X", help="AdamW's (default: 1e-8)")
    add("--momentum", type=float, default=0.95, metavar="X", help="Muon's (default: 0.95)")
    add(
        "--muon-lr-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="Muon's learning rate, as a multiple of AdamW's (default: 1)",
    )
    add("--clip", type=float, default=1.0, metavar="X", help="scale gradients down to this norm; 0: never (default: 1)")


def _add_watching(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add("--eval-every", type=int, default=50, metavar="N", help="steps between evaluations (default: 50)")
    add(
        "--save-every",
        type=int,
        default=50,
        metavar="N",
        help="steps between saved states; with --workers, the state after a whole round (default: 50)",
    )
    add(
        "--report-every",
        type=int,
        default=10,
        metavar="N",
        help="steps between lines on standard error if it is not a terminal (default: 10)",
    )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``RunSettings``, as keyword arguments."""
    rate = arguments.learning_rate
    return {
        "iters": arguments.iters,
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "accumulation": arguments.accumulate,
        "row_length": arguments.max_seq_length,
        "pack": arguments.pack,
        "optimiser": arguments.optimizer,
        "lr": (1e-5 if arguments.full else 1e-4) if rate is None else rate,
        "schedule": arguments.schedule,
        "warmup": arguments.warmup,
        "floor": arguments.floor,
        "betas": tuple(arguments.betas),
        "eps": arguments.eps,
        "weight_decay": arguments.weight_decay,
        "averaged_over": arguments.workers if arguments.average_variance else 1,
        "momentum": arguments.momentum,
        "muon_lr_scale": arguments.muon_lr_scale,
        "clip": arguments.clip or None,
        "dropout": 0.0 if arguments.dropout is None else arguments.dropout,
        "seed": arguments.seed,
        "eval_every": arguments.eval_every,
        "save_every": arguments.save_every,
        "recompute": arguments.recompute,
    }
