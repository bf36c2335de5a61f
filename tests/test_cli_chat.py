"""``refgpt chat``: prompts of each template, what still fits, and a conversation in a terminal and from a pipe."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

import refgpt
from refgpt import cli
from refgpt._common.errors import GenerationError
from refgpt.cli.chat import MOST_BYTES
from refgpt.cli.dialogue import Dialogue, fitting
from refgpt.generation.chat_templates import TEMPLATES
from refgpt.generation.params import GenerationParams
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.work import HANGS

CONFIG = tiny_config(eos_id=0, bos_id=0)


@pytest.mark.parametrize(
    "name, want",
    [
        (
            "alpaca",
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nHi\n\n### Response:\nHello.\n\n### Instruction:\nWho {are} you?\n\n### Response:\n",
        ),
        (
            "dolly",
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nHi\n\n### Response:\nHello.\n\n### End\n\n"
            "### Instruction:\nWho {are} you?\n\n### Response:\n",
        ),
        ("pygmalion", "Ada's Persona: She knows algebra.\n<START>\nYou: Hi\nAda: Hello.\nYou: Who {are} you?\nAda:"),
        (
            "gpt-jt",
            "Please answer the following question:\n\n"
            "Question: Hi\nAnswer: Hello.\n\nQuestion: Who {are} you?\nAnswer:",
        ),
        (
            "base",
            "A conversation between a curious person and a helpful assistant.\n\n"
            "User: Hi\nAssistant: Hello.\nUser: Who {are} you?\nAssistant:",
        ),
    ],
)
def test_prompts_are_those_that_models_were_trained_on(name, want):
    template = TEMPLATES[name].with_character("Ada", "She knows algebra.")
    assert template.prompt([("Hi", "Hello.")], "Who {are} you?") == want
    assert name != "pygmalion" or "\nAda:" in template.stop


def test_every_template_stops_where_the_next_turn_would_begin():
    for original in TEMPLATES.values():
        template = original.with_character("Ada", "")
        after = template.prompt([("Q", "@@")], "Q").partition("@@")[2]
        assert any(stop in after for stop in template.stop)


class Letters:
    """A tokenizer with one token a letter."""

    def encode(self, text):
        return list(text.encode())


def test_the_oldest_turns_are_forgotten_first():
    template, turns = TEMPLATES["base"], [(f"question {i}", f"answer {i}") for i in range(5)]
    whole = len(template.prompt(turns, "last"))
    for n_tokens in range(20, whole + 20):
        kept, prompt = fitting(template, turns, "last", Letters(), n_tokens)
        assert kept == turns[5 - len(kept) :] and prompt == template.prompt(kept, "last")
        assert len(prompt) <= n_tokens or not kept
        assert len(kept) == 5 or len(template.prompt(turns[4 - len(kept) :], "last")) > n_tokens


class Told:
    """A model that says what it is told to, and keeps the prompts that it was given."""

    def __init__(self, *answers):
        self.answers, self.prompts = list(answers), []
        self.config, self.tokenizer = SimpleNamespace(n_ctx=400, n_vocab=256, bos_id=0, eos_id=0), Letters()

    def stream(self, ids, params, draft=None):
        self.prompts.append(bytes(ids).decode())
        for piece in self.answers.pop(0):
            if isinstance(piece, type):
                raise piece
            yield piece


def test_answers_lose_the_blanks_around_them_and_become_part_of_the_next_prompt():
    model, written = Told([" ", "\n He", "llo ", "you", "\n", "\n"], ["x"]), []
    dialogue = Dialogue(model, TEMPLATES["base"], GenerationParams())
    dialogue.ask("Hi", written.append)
    assert written == ["He", "llo", " you"] and dialogue.turns == [("Hi", "Hello you")]
    dialogue.ask("And?", written.append)
    assert "User: Hi\nAssistant: Hello you\nUser: And?\nAssistant:" in model.prompts[1]
    dialogue.reset()
    assert dialogue.turns == []


def test_an_answer_that_is_stopped_stays_as_far_as_it_went():
    dialogue = Dialogue(Told(["so far ", KeyboardInterrupt]), TEMPLATES["base"], GenerationParams())
    with pytest.raises(KeyboardInterrupt):
        dialogue.ask("Hi", lambda _: None)
    assert dialogue.turns == [("Hi", "so far")]


def test_a_question_that_is_too_long_changes_nothing():
    dialogue = Dialogue(Told(["a"]), TEMPLATES["base"], GenerationParams())
    dialogue.ask("Hi", lambda _: None)
    with pytest.raises(GenerationError, match="no token of the context remains"):
        dialogue.ask("x" * 400, lambda _: None)
    assert dialogue.turns == [("Hi", "a")]


@pytest.fixture
def pipe(run, monkeypatch):
    """A function: ``refgpt chat`` with bytes at its standard input."""

    def pipe(raw, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return run("chat", "-n", 8, "--temperature", 0, *arguments)

    return pipe


def test_from_a_pipe_there_are_answers_and_nothing_else(pipe):
    got = pipe(b"\xef\xbb\xbfHello\r\n\n  \nWho?")
    model = refgpt.load()
    dialogue, answers = (
        Dialogue(
            model,
            TEMPLATES["base"],
            GenerationParams(max_new_tokens=8, temperature=0, repetition_penalty=1.15, stop=TEMPLATES["base"].stop),
        ),
        [],
    )
    for question in ("Hello", "Who?"):
        dialogue.ask(question, answers.append)
        answers.append("\n")
    assert (got.code, got.err, got.out) == (0, "", "".join(answers))


def test_commands_are_obeyed(pipe, monkeypatch):
    one = pipe(b"Hello\n").out
    assert pipe(b"Hello\n/reset\nHello\n").out == 2 * one
    assert pipe(b"Hello\n/quit\nHello\n").out == one
    got = pipe(b"/rest\n/help\n")
    assert got.out == "" and "there is no command /rest; /help lists them; did you mean /reset?" in got.err
    assert "/reset   forget" in got.err


@pytest.mark.parametrize(
    "raw, said",
    [
        (b"ok\nab\xff\n", "standard input, line 2: is not UTF-8 text; got byte 2"),
        (b"x" * (MOST_BYTES + 5), "standard input, line 1: the line is too long"),
        (b"long " * 900, "is too long: no token of the context remains"),
    ],
)
def test_what_cannot_be_used_ends_a_pipe(pipe, raw, said):
    got = pipe(raw)
    assert got.code == 1 and said in got.err and got.err.count("\n") == 1


def test_closed_input_and_missing_tokenizers_are_found_first(run, monkeypatch, tmp_path):
    path = write_model(tmp_path, CONFIG, random_params(CONFIG, 1, "f16"))
    monkeypatch.setattr(cli.loading, "start", lambda *_, **__: pytest.fail("the weights were read first"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    assert "--model: this model has no tokenizer" in run("chat", "-m", path).err
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in run("chat").err


def test_ctrl_c_discards_a_line(run, monkeypatch):
    def typed(prompt, lines=iter([KeyboardInterrupt, "/help", "/quit"])):  # noqa: B008
        line = next(lines)
        if line is KeyboardInterrupt:
            raise line
        return line

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", typed)
    got = run("chat")
    assert (got.code, got.out) == (0, "\n") and "/reset   forget" in got.err


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends():
    """Also: a question that cannot be used is one line, and the conversation goes on."""
    program = (
        "import sys, time, refgpt\n"
        "from refgpt import cli\n"
        "def stream(self, ids, params, draft=None):\n"
        "    yield 'so far'\n"
        "    time.sleep(3600)\n"
        "refgpt.Model.stream = stream\n"
        "sys.exit(cli.main(['chat', '--template', 'pygmalion', '--character', 'Ada']))\n"
    )
    mine, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            read_until(mine, "Ctrl-D ends", "> ")
            os.write(mine, b"Hi\n")
            read_until(mine, "so far")
            process.send_signal(signal.SIGINT)
            read_until(mine, "\r\n> ")
            os.write(mine, b"word " * 600 + b"\n")
            read_until(mine, "is too long: no token of the context remains", "> ")
            os.write(mine, b"/help\n")
            read_until(mine, "Ctrl-C stops an answer", "> ")
            os.write(mine, b"\x04")
            assert process.wait(HANGS) == 0
        finally:
            process.kill()
            os.close(mine)


def read_some(terminal):
    assert select.select([terminal], [], [], 120)[0], "nothing more is shown"
    return os.read(terminal, 10_000).decode(errors="replace")


def read_until(terminal, *wanted):
    """What a terminal shows until each of some texts has appeared, in this order."""
    shown, start = "", 0
    for text in wanted:
        while text not in shown[start:]:
            shown += read_some(terminal)
        start = shown.index(text, start) + len(text)
    return shown
