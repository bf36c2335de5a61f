"""``refgpt chat``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator

from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.small_files import reading
from refgpt._common.wording import did_you_mean, listed
from refgpt.cli.dialogue import Dialogue
from refgpt.cli.loading import add_draft_arguments, load_with_draft
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.printing import print_line, print_text
from refgpt.cli.sampling import add_sampling_arguments, sampling_of
from refgpt.cli.templates import add_template, listing, template_of
from refgpt.generation.prompts import BESIDE, NO_TOKENIZER, NoTokenizer
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

log = logging.getLogger("refgpt")

EXAMPLES = """templates:
{templates}

examples:
  refgpt chat -m ~/gpt-j-6b
  refgpt chat -m ~/gpt-jt --template gpt-jt
  refgpt chat -m ~/pygmalion-6b --template pygmalion --character Ada --persona "Ada is a patient teacher of algebra."
  echo "What is the capital of Norway?" | refgpt chat -m ~/dolly-v1-6b --template dolly
"""
HELP = """/reset   forget the conversation so far
/help    show this
/quit    end, as Ctrl-D does; Ctrl-C stops an answer"""
COMMANDS = ("/reset", "/help", "/quit")

#: Most bytes of one line of standard input; a context holds far fewer.
MOST_BYTES = 1 << 20


def add_to(commands: Commands) -> None:
    """Declare ``chat``."""
    help = "hold a conversation with a model: each line is a question; /help lists the commands"
    chat = add_command(commands, "chat", _chat, help, EXAMPLES.format(templates=listing()))
    add_template(chat)
    add_sampling_arguments(chat)
    add_running_arguments(chat)
    add_draft_arguments(chat)


def _chat(arguments: argparse.Namespace) -> int:
    template = template_of(arguments)
    params = sampling_of(arguments, template.stop)
    if sys.stdin is None:
        raise GenerationError("standard input is closed", fix="run refgpt chat in a terminal, or pipe questions to it")
    interactive = sys.stdin.isatty()
    model, draft, _ = load_with_draft(arguments, _check_tokenizer)
    dialogue = Dialogue(model, template, params, draft)
    if interactive:
        log.info("a line is a question; /help lists the commands, Ctrl-D ends")
    for line in _typed_lines() if interactive else _piped_lines():
        if line == "/quit":
            break
        if line.startswith("/"):
            _obey(line, dialogue)
            continue
        try:
            dialogue.ask(line, print_text)
        except KeyboardInterrupt:
            if not interactive:
                raise
        except RefgptError as error:
            if not interactive:
                raise
            log.error("%s", error)
            continue
        print_line()
    return 0


def _check_tokenizer(config: AnyConfig, tokenizer: Tokenizer | None) -> None:
    if tokenizer is None:
        raise NoTokenizer(f"{NO_TOKENIZER}, but chat needs one", where="--model", fix=BESIDE)


def _obey(line: str, dialogue: Dialogue) -> None:
    """Run a command such as /reset."""
    if line == "/reset":
        dialogue.reset()
    elif line == "/help":
        print_text(HELP + "\n", sys.stderr)
    else:
        log.error("there is no command %s; /help lists them%s", listed([line]), did_you_mean(line, COMMANDS))


def _typed_lines() -> Iterator[str]:
    """Yield the typed lines until Ctrl-D. Ctrl-C discards a line."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing and history
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print_line()
            return
        except KeyboardInterrupt:
            print_line()
            continue
        if line:
            yield line


def _piped_lines() -> Iterator[str]:
    """Yield the lines of standard input that are not blank."""
    read = sys.stdin.buffer.readline
    n = 0
    while True:
        n += 1
        where = f"standard input, line {n}"
        try:
            with reading(where, GenerationError):
                raw = read(MOST_BYTES + 1)
            if len(raw) > MOST_BYTES:
                raise GenerationError("the line is too long", where=where, wanted=f"at most {MOST_BYTES} bytes")
            line = raw.decode("utf-8-sig" if n == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise GenerationError("is not UTF-8 text", where=where, got=f"byte {error.start}") from None
        if not raw:
            return
        if line:
            yield line
