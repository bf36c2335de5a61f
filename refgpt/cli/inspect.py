"""``refgpt inspect``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from refgpt._common.wording import size
from refgpt.cli.loading import WORTH_A_BAR, load_for, watched
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.prompts import add_prompt_arguments, read_prompt
from refgpt.cli.results import check_suffix, replaced
from refgpt.inspect import build_report, prompt_of
from refgpt.tracing import verify_bytes

log = logging.getLogger("refgpt")

EXAMPLES = """examples:
  refgpt inspect "Once upon a time" -o report.html
  refgpt inspect -m ~/gpt-jt -f question.txt -o report.html --dtype q4
"""


def add_to(commands: Commands) -> None:
    """Declare ``inspect``."""
    help = "write a page (one HTML file) that shows what a model does with a prompt"
    inspect = add_command(commands, "inspect", _inspect, help, EXAMPLES)
    add_prompt_arguments(inspect, "text to look at")
    inspect.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the page, a name in .html; it is replaced if it is there"
    )
    inspect.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="leave out the comparison with the float64 spec, which takes longest",
    )
    add_running_arguments(inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    check_suffix(arguments.output, ".html", ".htm")
    prompt = read_prompt(arguments, 'refgpt inspect "Once upon a time" -o report.html')
    with replaced(arguments.output) as file:
        model, ids = load_for(arguments, lambda config, tokenizer: prompt_of(prompt, config, tokenizer))
        large = model.checkpoint.params.nbytes >= WORTH_A_BAR
        if arguments.verify and large:
            log.info(
                "comparing the pass with the spec in float64 takes minutes and up to %s; --no-verify skips it",
                size(verify_bytes(model.engine, len(ids))),
            )
        file.write(build_report(model, ids, verify=arguments.verify, progress=large and watched()))
    print(f"{arguments.output}: {size(Path(arguments.output).stat().st_size)}, {len(ids)} tokens")
    return 0
