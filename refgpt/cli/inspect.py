"""``refgpt inspect``."""

from __future__ import annotations

import argparse
import logging

import numpy as np

from refgpt._common.wording import size
from refgpt._model import Model
from refgpt.cli.json_output import print_json, verify_record
from refgpt.cli.loading import WORTH_A_BAR, load_for, watched
from refgpt.cli.options import Commands, add_command, add_json, add_running_arguments
from refgpt.cli.printing import print_line
from refgpt.cli.prompts import add_prompt_arguments, read_prompt
from refgpt.cli.results import check_suffix, files_read, open_output, refuse_inputs
from refgpt.inspect import build_report, figures, prompt_of
from refgpt.tracing import verify_bytes

log = logging.getLogger("refgpt")

EXAMPLES = """examples:
  refgpt inspect "Once upon a time" -o report.html
  refgpt inspect -m ~/gpt-jt -f question.txt -o report.html --dtype q4
  refgpt inspect "Once upon a time" --json --no-verify > figures.json
"""


def add_to(commands: Commands) -> None:
    """Declare ``inspect``."""
    help = "write a page (one HTML file) that shows what a model does with a prompt"
    inspect = add_command(commands, "inspect", _inspect, help, EXAMPLES)
    add_prompt_arguments(inspect, "text to inspect")
    inspect.add_argument(
        "-o", "--output", metavar="FILE", help="file to write, a name that ends in .html; an existing file is replaced"
    )
    inspect.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="skip the comparison with the float64 spec, which takes longest",
    )
    add_json(inspect, "print the page's figures as one JSON object; -o is then optional")
    add_running_arguments(inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.output is None and not arguments.json:
        arguments.parser.error("the following arguments are required: -o/--output, or --json")
    check_suffix(arguments.output, ".html", ".htm")
    prompt = read_prompt(arguments, 'refgpt inspect "Once upon a time" -o report.html')
    if arguments.output is None:
        model, ids = _load(arguments, prompt)
    else:
        inputs = [] if arguments.file is None else [arguments.file]
        with open_output(arguments.output, inputs, keep=False) as output:
            model, ids = _load(arguments, prompt)
            if output.path is not None:
                refuse_inputs(arguments.output, files_read(model.checkpoint.path, arguments.output))
            large = model.checkpoint.params.nbytes >= WORTH_A_BAR
            page = build_report(model, ids, verify=arguments.verify, progress=large and watched())
            output.write(page)
    if arguments.json:
        prefix_len = len(ids) if model.mask == "prefix" else 0
        found = verify_record(model.verify(ids.tolist(), prefix_len)) if arguments.verify else None
        print_json({**figures(model, ids, prefix_len), "verify": found})
    elif output.path is not None:
        print_line(f"{arguments.output}: {size(len(page.encode()))}, {len(ids)} tokens")
    return 0


def _load(arguments: argparse.Namespace, prompt: str) -> tuple[Model, np.ndarray]:
    model, ids = load_for(arguments, lambda config, tokenizer: prompt_of(prompt, config, tokenizer))
    if arguments.verify and model.checkpoint.params.nbytes >= WORTH_A_BAR:
        log.info(
            "comparing the pass with the spec in float64 takes minutes and up to %s; --no-verify skips it",
            size(verify_bytes(model.engine, len(ids))),
        )
    return model, ids
