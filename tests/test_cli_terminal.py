"""Strangers' files and a model's words before a terminal, and in a pipe."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import refgpt
from refgpt.inspect import build_report
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.pages import data_of
from tests.helpers.terminal import told_to_terminal
from tests.helpers.tiny import random_params, tiny_config

EVIL = "\x1b[2J\x1b]0;owned\x07 \u202efine\nmodel       /a/trusted/name\x9b31m"
REFGPT = [sys.executable, "-m", "refgpt"]
CONFIG = tiny_config(eos_id=0, bos_id=0)


def obeyed(raw: bytes) -> list[str]:
    """What in a command's output a terminal would obey, but for the ends of its lines."""
    text = raw.decode().replace("\r\n", "\n")
    return [c for c in text if c != "\n" and (c in "\u202e\u2066" or ord(c) < 32 or 127 <= ord(c) < 160)]


@pytest.fixture(params=["name", "folder", "tensor", "token", "config", "library"])
def strange(request, tmp_path):
    """A model whose files hold what a terminal obeys: in its name, its folder, a tensor's, a token, a wrong setting."""
    folder = tmp_path / (EVIL.replace("/", " ") if request.param == "folder" else "model")
    write_tokenizer(write_model(folder, CONFIG, random_params(CONFIG, 2, "f16")))
    config = json.loads((folder / "config.json").read_text())
    if request.param == "name":
        config["_name_or_path"] = "gpt-jt" + EVIL
    elif request.param == "config":
        config["activation_function"] = EVIL
    elif request.param == "tensor":
        raw = (folder / "model.safetensors").read_bytes()
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n])
        header[EVIL] = header.pop("transformer.ln_f.bias")
        head = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + n :])
    elif request.param == "token":
        vocab = json.loads((folder / "vocab.json").read_text())
        vocab[EVIL] = vocab.pop(next(reversed(vocab)))
        (folder / "vocab.json").write_text(json.dumps(vocab))
    elif request.param == "library":  # which quotes it in an exception of its own
        step = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": EVIL, "invert": False}
        steps = {"type": "Sequence", "pretokenizers": [step, {"type": "ByteLevel"}]}
        model = {"type": "BPE", "vocab": json.loads((folder / "vocab.json").read_text()), "merges": []}
        (folder / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": steps, "model": model}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["info", "--tensors"],
        ["info", "-v"],
        ["verify"],
        ["bench", "-p", "4", "-n", "1", "-r", "1"],
        ["generate", "Hi", "-n", "4", "--seed", "4", "-m"],
    ],
)
def test_a_strangers_files_tell_a_terminal_nothing_to_obey(strange, command):
    """With this seed, the text has the strange token. A text may have any lines, and a pipe gets it as it is."""
    given = [*REFGPT, *command, *(["-m"] if command[0] == "bench" else []), str(strange)]
    piped = subprocess.run(given, capture_output=True)
    if command[0] == "generate":
        is_in_vocabulary = EVIL in json.loads((strange / "vocab.json").read_text())
        assert (EVIL.encode() in piped.stdout) == is_in_vocabulary
        everything = [told_to_terminal(given), piped.stderr]
    else:
        everything = [told_to_terminal(given), piped.stdout + piped.stderr]
    assert everything[0] and (piped.stdout or piped.stderr)
    assert not any(map(obeyed, everything))
    for told in everything[command[0] == "generate" :]:
        assert not any(line.startswith(b"model       /a/trusted") for line in told.splitlines())


WRITES = """
import sys
import refgpt
from refgpt import cli
refgpt.Model.stream = lambda self, ids, params: iter(["one\\x1b[2J", "\\ttwo\\n\\u202e\\x9bthree \\U0001f642"])
sys.exit(cli.main(["generate", "Hi\\x07", "--echo"]))
"""


def test_what_a_model_writes_is_escaped_on_a_terminal_alone():
    command = [sys.executable, "-c", WRITES]
    raw = "Hi\x07one\x1b[2J\ttwo\n\u202e\x9bthree \U0001f642\n"
    assert subprocess.run(command, capture_output=True).stdout.decode() == raw
    shown = told_to_terminal(command).decode().replace("\r\n", "\n")
    assert shown == "Hi\\x07one\\x1b[2J\ttwo\n\\u202e\\x9bthree \U0001f642\n"


def test_a_table_is_escaped_on_a_terminal_alone(tmp_path):
    (tmp_path / "table.csv").write_text("text\nred\x1b[31m\n")
    command = [*REFGPT, "classify", str(tmp_path / "table.csv"), "--labels", "a,b"]
    assert b"red\x1b[31m,a" in (out := subprocess.run(command, capture_output=True).stdout) or b"red\x1b[31m,b" in out
    assert b"red\\x1b[31m," in (shown := told_to_terminal(command)) and not obeyed(shown)


def test_a_page_shows_what_files_say_as_plain_text(tmp_path):
    folder = write_tokenizer(write_model(tmp_path / "model", CONFIG, random_params(CONFIG, 2, "f16")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "gpt-jt" + EVIL}))
    facts = dict(data_of(build_report(refgpt.load(folder), "Hi", verify=False))["facts"])
    assert "gpt-jt\\x1b[2J" in facts["mask"] and all(value.isprintable() for value in facts.values())
