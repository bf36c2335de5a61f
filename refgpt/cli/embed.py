"""``refgpt embed``."""

from __future__ import annotations

import argparse

from refgpt._common.progress import counted
from refgpt.cli.loading import load_for, watched
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.prompts import add_prompt_arguments, read_prompt
from refgpt.cli.results import check_suffix, files_read, json_line, open_output, refuse_inputs
from refgpt.tracing.embedding import POOLINGS, embeddings, encode_texts

EXAMPLES = """examples:
  refgpt embed "Once upon a time"                     one JSON object: the text and its vector
  refgpt embed -f lines.txt --each-line -o out.jsonl   a vector for each line of a file
  refgpt embed "The same" --layer 3 --pooling last
"""


def add_to(commands: Commands) -> None:
    """Declare ``embed``."""
    command = add_command(commands, "embed", _embed, "turn texts into vectors", EXAMPLES)
    add_prompt_arguments(command, "text to turn into a vector")
    add = command.add_argument
    add("--each-line", action="store_true", help="treat each line that is not empty as a text of its own")
    add(
        "--layer",
        type=int,
        default=-1,
        metavar="I",
        help="0: the embeddings; I: the hidden states after the I-th block; -1: after the last one and the final "
        "LayerNorm (default: -1)",
    )
    add("--pooling", choices=POOLINGS, default="mean", help="how a text's vectors become one (default: mean)")
    add("-o", "--output", metavar="FILE", help="write to a .jsonl file (default: to standard output)")
    add_running_arguments(command)


def _embed(arguments: argparse.Namespace) -> int:
    given = read_prompt(arguments, 'refgpt embed "Once upon a time"')
    texts = [line for line in given.splitlines() if line.strip()] if arguments.each_line else [given]
    check_suffix(arguments.output, ".jsonl")
    with open_output(arguments.output, [arguments.file] if arguments.file is not None else []) as output:
        write = json_line(output)
        model, encoded = load_for(arguments, lambda config, tokenizer: encode_texts(texts, config, tokenizer))
        if output.path is not None:
            refuse_inputs(arguments.output, files_read(model.checkpoint.path, arguments.output))
        with counted(
            arguments.output is not None and watched(), len(texts), "text", "embedding", leave=False
        ) as one_more:
            vectors = embeddings(model, encoded, arguments.layer, arguments.pooling)
            for text, vector in zip(texts, vectors, strict=True):
                write({"text": text, "embedding": vector.tolist()})
                one_more()
    return 0
