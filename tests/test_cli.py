"""The command line: what it prints where, and with which exit status."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from types import SimpleNamespace

import pytest

import refgpt
from refgpt import cli
from refgpt._load import start
from refgpt._open import open_model
from refgpt.cli import loading
from refgpt.kernels import force_isa, list_kernels
from refgpt.runtime import Runtime
from tests.helpers.cli_models import write_both_ways, write_tiny
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.terminal import shown_on_terminal
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.work import HANGS

#: Of ``refgpt generate``: those of the library draw from the model's own distribution.
DEFAULTS = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.15}
REFGPT = [sys.executable, "-m", "refgpt"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def prefix_path(tmp_path_factory):
    return write_both_ways(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_generate_prints_what_the_model_writes(run, path, backend):
    got = run("generate", "-m", path, "Once upon", "--seed", 5, "-n", 12, "--backend", backend)
    model = refgpt.load(path, backend=backend)
    want = model.generate("Once upon", seed=5, max_new_tokens=12, **DEFAULTS).text
    assert (got.code, got.out, got.err) == (0, want + "\n", "")
    assert run("generate", "-m", path, "Once upon", "--seed", 5, "-n", 12, "--echo").out == f"Once upon{want}\n"


def test_every_option_reaches_the_model(path, monkeypatch, run):
    asked = {}

    def stream(self, ids, params, draft=None):
        asked.update(vars(params))
        return iter([self.tokenizer.decode(ids)])

    monkeypatch.setattr(refgpt.Model, "stream", stream)
    options = [
        "--max-new-tokens",
        3,
        "--temperature",
        0.5,
        "--top-k",
        4,
        "--top-p",
        0.6,
        "--repetition-penalty",
        1.2,
        "--presence-penalty",
        0.1,
        "--frequency-penalty",
        0.2,
        "--seed",
        9,
        "--stop",
        "a\\nb",
        "--stop",
        "c",
        "--ignore-eos",
        "--speculate",
        "3",
        "--truncate",
        "left",
        "--repeat-last-n",
        20,
        "--no-repeat-ngram-size",
        4,
        "--min-p",
        0.01,
        "--typical-p",
        0.95,
        "--epsilon-cutoff",
        0.001,
        "--eta-cutoff",
        0.002,
        "--min-new-tokens",
        2,
        "--suppress-token",
        5,
        "--suppress-token",
        6,
        "--length-penalty",
        2,
        "--early-stopping",
        "never",
    ]
    assert run("generate", "-m", path, "hi", *options).out == "hi\n"
    defaults = {field.name: field.default for field in fields(refgpt.GenerationParams)}
    assert {name: value for name, value in asked.items() if value != defaults[name]} == {
        "max_new_tokens": 3,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.6,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "seed": 9,
        "stop": ["a\nb", "c"],
        "ignore_eos": True,
        "speculate": 3,
        "truncate": "left",
        "repeat_last_n": 20,
        "no_repeat_ngram_size": 4,
        "min_p": 0.01,
        "typical_p": 0.95,
        "epsilon_cutoff": 0.001,
        "eta_cutoff": 0.002,
        "min_new_tokens": 2,
        "suppress_tokens": (5, 6),
        "length_penalty": 2.0,
        "early_stopping": "never",
    }


@pytest.mark.parametrize("early, said", [("yes", True), ("no", False), ("never", "never")])
def test_several_texts_are_printed_with_a_line_between_them(path, run, early, said):
    options = ["--num-return-sequences", 2, "-n", 5]
    got = run("generate", "-m", path, "hi", *options, "--seed", 3, "--echo")
    one, two = refgpt.load(path).generate("hi", n=2, seed=3, max_new_tokens=5, **DEFAULTS)
    assert got.out == f"hi{one.text}\n---\nhi{two.text}\n"
    got = run("generate", "-m", path, "hi", *options, "--num-beams", 3, "--early-stopping", early)
    asked = {"num_beams": 3, "early_stopping": said, "num_return_sequences": 2}
    one, two = refgpt.load(path).generate("hi", max_new_tokens=5, **asked, **DEFAULTS)
    assert got.out == f"{one.text}\n---\n{two.text}\n"


def test_loading_options_reach_the_loader(path, monkeypatch, run):
    told, bar = {}, object()
    checkpoint, tokenizer = open_model()  # whatever the path: the tiny one has not the letters of a demonstration

    def record(function, result):
        def told_to(*given, **named):
            told[function.__name__] = inspect.signature(function).bind(*given, **named).arguments
            if result is None:
                raise refgpt.RefgptError("far enough")
            return result

        monkeypatch.setattr(loading, function.__name__, told_to)

    record(open_model, (checkpoint, tokenizer))
    record(start, None)
    record(refgpt.load, None)
    monkeypatch.setattr(loading, "progress_bar", lambda: contextlib.nullcontext(bar))
    options = [
        "--mask",
        "prefix",
        "--dtype",
        "f16",
        "--kv-dtype",
        "f16",
        "-t",
        "2",
        "--revision",
        "r1",
        "--tokenizer",
        "t",
        "--copy",
        "--compute=float32",
    ]
    files = {"path": path, "mask": "prefix", "progress": bar, "revision": "r1", "tokenizer": "t"}
    running = {"dtype": "f16", "kv_dtype": "f16", "threads": 2, "progress": bar, "copy": True, "compute": "f32"}
    for command in (["generate", "-m", path, "hi"], ["demo", "-m", path, "qa", "hi"]):
        told.clear()
        run(*command, "--backend", "numpy", *options)
        assert told == {
            "open_model": files,
            "start": {
                **running,
                "backend": "numpy",
                "checkpoint": checkpoint,
                "tokenizer": tokenizer,
                "asked_mask": "prefix",
                "pairs": {},
                "named": {},
            },
        }
    told.clear()
    run("verify", path, *options, "--adapter", "a")
    assert told == {"load": {**files, **running, "backend": "c", "adapter": "a", "adapters": {}}}


@pytest.mark.parametrize("command", [["generate", "Hi"], ["demo", "qa", "Hi"]])
def test_a_model_is_opened_once(monkeypatch, run, command):
    opened = []
    for name in ("open_checkpoint", "find_tokenizer"):
        function = getattr(refgpt._open, name)
        monkeypatch.setattr(refgpt._open, name, lambda *given, f=function: opened.append(f.__name__) or f(*given))
    assert run(*command, "-n", 1).code == 0
    assert opened == ["open_checkpoint", "find_tokenizer"]


@pytest.mark.parametrize("given", [b"Once upon", b"Once upon\n", b"Once upon\r\n", b"\xef\xbb\xbfOnce upon\r\n"])
@pytest.mark.parametrize("dash", [[], ["-"]])
def test_the_prompt_can_come_from_standard_input(run, path, monkeypatch, given, dash):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    got = run("generate", "-m", path, *dash, "--echo", "-n", 1, "--temp", 0)
    assert got.code == 0 and got.out.startswith("Once upon") and len(got.out) == len("Once upon") + 2


def test_the_prompt_can_come_from_a_file(run, path, tmp_path):
    story = tmp_path / "story.txt"
    story.write_text("It was\n")
    assert run("generate", "-m", path, "-f", story, "--echo", "-n", 1).out.startswith("It was")
    both = run("generate", "-m", path, "-f", story, "more")
    assert (both.code, both.out) == (1, "") and "given twice" in both.err
    story.write_bytes(b"\xef\xbb\xbfIt was\n")  # with a byte-order mark
    assert run("generate", "-m", path, "-f", story, "--echo", "-n", 1).out.startswith("It was")
    assert "far too long for a prompt" in run("generate", "-m", path, "-f", "/dev/zero").err
    story.write_bytes("It was".encode("utf-16"))
    assert "is not UTF-8 text; got byte 0; save it as UTF-8" in run("generate", "-m", path, "-f", story).err
    story.write_bytes(b"ab\xff")
    assert f"{story}: is not UTF-8 text; got byte 2" in run("generate", "-m", path, "-f", story).err
    assert "there is no such file" in run("generate", "-m", path, "-f", tmp_path / "absent").err


def test_without_a_prompt_at_a_terminal(run, path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    got = run("generate", "-m", path)
    assert got.code == 1 and 'refgpt generate "Once upon a time"' in got.err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-m", "/nowhere", "hi"], "/nowhere"),
        (["hi", "--temperature", "-1"], "--temperature: cannot be used; got -1.0"),
        (["hi", "--top-p", "nan"], "--top-p: cannot be used; got nan"),
        (["hi", "--stop", ""], "--stop: cannot be used"),
        (["hi", "--dtype", "f64"], "--dtype: cannot be used; got 'f64'"),
        (["hi", "--threads", "0"], "--threads: cannot be used; got 0"),
        (["a" * 64], "or keep only its end: --truncate left\n"),
    ],
)
def test_unusable_input_is_one_line_and_status_1(run, path, arguments, said):
    got = run("generate", *([] if "-m" in arguments else ["-m", path]), *arguments)
    assert (got.code, got.out) == (1, "")
    assert re.fullmatch(r"refgpt: error: [^\n]+\n", got.err) and said in got.err


def test_a_prompt_that_is_too_long_is_found_before_the_weights_are_read(run, path, monkeypatch):
    monkeypatch.setattr(loading, "start", lambda *_, **__: pytest.fail("the weights were read first"))
    assert run("generate", "-m", path, "a" * 64).code == 1


@pytest.mark.parametrize("options", [["--dtype", "f64"], ["--threads", "0"]])
def test_an_option_that_cannot_be_used_is_found_before_the_files_are_opened(run, path, monkeypatch, options):
    monkeypatch.setattr(loading, "open_model", lambda *_, **__: pytest.fail("the files were opened first"))
    assert "cannot be used" in run("generate", "-m", path, "hi", *options).err


def test_a_prompt_that_is_too_long_can_be_cut(run, path):
    got = run("generate", "-m", path, "a" * 64, "--truncate", "left", "-n", 4)
    assert (got.code, got.err) == (0, "refgpt: kept the last 60 of the prompt's 64 tokens\n")


def test_bad_usage_exits_with_2_and_help_with_0(capsys):
    for arguments, status in [
        (["dance"], 2),
        (["generate", "--top-k", "many"], 2),
        (["--help"], 0),
        (["-V"], 0),
        (["generate", "-h"], 0),
        (["verify", "-h"], 0),
        (["--version"], 0),
    ]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == status
    printed = capsys.readouterr().out
    assert refgpt.__version__ in printed and 'refgpt generate "Once upon a time"' in printed


def test_the_prefix_mask_is_mentioned_on_standard_error(run, prefix_path):
    got = run("verify", prefix_path)
    assert got.err.count("prefix mask: all tokens of a prompt see each other (attn.bias") == 1
    assert got.code == 0


def test_a_text_for_a_model_without_a_tokenizer(run, prefix_path):
    got = run("generate", "-m", prefix_path, "hi")
    assert got.code == 1 and "no tokenizer" in got.err


@pytest.mark.parametrize("options", [[], ["--dtype", "f16", "--kv-dtype", "f16"], ["--prompt", "Hi there", "-t", "2"]])
def test_verify_passes_on_a_good_model(run, path, prefix_path, options):
    got = run("verify", path, *options)
    assert got.code == 0 and "first divergence: none" in got.out and "BROKEN" not in got.out
    if "--prompt" not in options:
        assert run("verify", prefix_path, *options).code == 0


def test_verify_names_a_broken_activation_and_exits_with_1(run, path, monkeypatch):
    right = Runtime.logits

    def wrong(self, ids, prefix_len=0, tap=None):
        def spoilt(name, value):
            return tap(name, -value if name == "blocks.1.attn_out" else value)

        return right(self, ids, prefix_len, spoilt)

    monkeypatch.setattr(Runtime, "logits", wrong)
    got = run("verify", path)
    assert got.code == 1 and "first divergence: blocks.1.attn_out" in got.out


def test_verify_of_text_without_a_tokenizer(run, prefix_path):
    got = run("verify", prefix_path, "--prompt", "hi")
    assert got.code == 1 and "--prompt: is a text, but this model has no tokenizer" in got.err


def test_kernels_is_a_table_of_ops_and_instruction_sets(run):
    kernels = list_kernels()
    got = run("kernels")
    table, _, notes = got.out.partition("\n\n")
    header, *rows = table.splitlines()
    assert got.code == 0 and header.split()[0] == "op"
    starts = {isa: re.search(rf"\b{isa}\b", header).start() for isa in header.split()[1:]}
    assert starts.keys() == {kernel.isa for kernel in kernels}
    assert [row.split()[0] for row in rows] == sorted({kernel.op for kernel in kernels})
    lines = {row.split()[0]: row for row in rows}
    for kernel in kernels:
        cell = lines[kernel.op][starts[kernel.isa] :][: len(kernel.isa)].strip()
        assert cell == ("used" if kernel.active else "-" if kernel.obstacle else "ok"), kernel
        assert not kernel.obstacle or f"\n{kernel.isa}: {kernel.obstacle}\n" in notes


def test_kernels_shows_what_is_forced(run):
    with force_isa("scalar"):
        row = run("kernels").out.splitlines()[1]
        assert row.split().count("used") == 1 and json.loads(run("kernels", "--json").out)["forced_isa"] == "scalar"


def test_ctrl_c_ends_with_the_text_so_far(path, monkeypatch, run):
    def stream(self, prompt, params, draft=None):
        yield "so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(refgpt.Model, "stream", stream)
    got = run("generate", "-m", path, "hi")
    assert (got.code, got.out, got.err) == (130, "so far\n", "")


def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    config = tiny_config(n_ctx=4096, n_layer=2)
    write_tokenizer(write_model(tmp_path, config, random_params(config, 0, "f16")))
    command = [*REFGPT, "generate", "-m", str(tmp_path), "Hi", "-n", "4000", "--ignore-eos", "--backend", "numpy"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, err) == (130, b"")
    assert first and out.endswith(b"\n")


def test_ctrl_c_in_a_pipeline_whose_reader_went_first(path):
    interrupted = (
        "import sys, refgpt\n"
        "from refgpt import cli\n"
        "def stream(self, prompt, params, draft=None):\n"
        "    sys.stdin.readline()\n"
        "    raise KeyboardInterrupt\n"
        "    yield\n"
        "refgpt.Model.stream = stream\n"
        f"sys.exit(cli.main(['generate', '-m', {path!r}, 'Hi', '--backend', 'numpy']))\n"
    )
    command = [sys.executable, "-c", interrupted]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 130


@pytest.mark.parametrize("command", ["generate -m {} Hi --backend numpy", "info {}"])
@pytest.mark.parametrize(
    "redirected, said",
    [
        (">/dev/full", b"refgpt: error: the output cannot be written (No space left on device)\n"),
        (">&-", b"refgpt: error: standard output is closed\n"),
        (">/dev/full 2>&-", b""),
    ],
)
def test_output_that_cannot_be_written_is_one_line_and_status_1(path, command, redirected, said):
    shell = f'"{sys.executable}" -m refgpt {command.format(path)} {redirected}'
    done = subprocess.run(shell, shell=True, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, said)


def test_a_file_that_the_system_refuses_is_not_called_the_output(path, monkeypatch, run):
    monkeypatch.setattr(refgpt.Model, "stream", lambda *_, **__: open("/nowhere/at\x1b"))  # noqa: SIM115
    got = run("generate", "-m", path, "hi")
    assert (got.code, got.err) == (1, "refgpt: error: '/nowhere/at\\x1b': No such file or directory\n")


def test_what_a_signal_handler_raises_comes_out_as_itself(path, monkeypatch):
    def stream(self, prompt, params, draft=None):
        raise TimeoutError("too slow")

    monkeypatch.setattr(refgpt.Model, "stream", stream)
    with pytest.raises(TimeoutError, match="too slow"):
        cli.main(["generate", "-m", path, "hi"])


def test_standard_input_that_is_closed_holds_no_prompt(path):
    done = subprocess.run(f'"{sys.executable}" -m refgpt generate -m {path} <&-', shell=True, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.startswith(b"refgpt: error: there is no prompt")


def test_a_reader_that_leaves_early_is_no_error(path):
    command = [*REFGPT, "generate", "-m", path, "Hi", "-n", "60", "--ignore-eos", "--backend", "numpy"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(HANGS) == 0


def test_text_is_streamed_and_nothing_else_when_piped(path):
    command = [*REFGPT, "generate", "-m", path, "Hi", "-n", "20", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, timeout=HANGS)
    want = refgpt.load(path).generate("Hi", max_new_tokens=20, seed=1, **DEFAULTS).text
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, want + "\n", b"")


def test_a_terminal_that_cannot_show_a_character_shows_the_rest(path, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(refgpt.Model, "stream", lambda self, prompt, params: iter(["caf", "é!"]))
    assert cli.main(["generate", "-m", path, "hi"]) == 0
    assert shown.getvalue() == b"caf?!\n"


def progress_shown(monkeypatch, n_total):
    """What a terminal on standard error shows while ``n_total`` bytes are loaded."""

    def load():
        with loading.progress_bar() as progress:
            for done in (n_total // 2, n_total):
                time.sleep(0.15)
                progress(done, n_total)

    return shown_on_terminal(monkeypatch, load)


def test_a_progress_bar_for_long_loads_at_a_terminal_only(monkeypatch):
    assert "loading: 100%" in progress_shown(monkeypatch, 12_000_000_000)
    assert progress_shown(monkeypatch, 20_000_000) == ""
    with loading.progress_bar() as progress:  # captured, not a terminal
        assert progress is None
