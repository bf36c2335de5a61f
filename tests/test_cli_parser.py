"""What the command line understands, and what it says of what it does not."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import refgpt
from refgpt import cli
from refgpt._common.errors import DataError, GenerationError, RefgptError
from refgpt.cli.flags import BOTH, in_flags
from refgpt.cli.parser import CommandParser
from refgpt.numbers import packing
from refgpt.runtime import kernel_engine
from tests.helpers.cli_models import CONFIG, write_tiny
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params

PARSER = cli.build_parser()
(COMMANDS,) = (action.choices for action in PARSER._actions if isinstance(action, argparse._SubParsersAction))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def refused(capsys):
    """A function: what is said on standard error of arguments that are no usage of the command."""

    def refused(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        got = capsys.readouterr()
        assert (end.value.code, got.out) == (2, "")
        return got.err

    return refused


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["bench", "-p", "x,1"], "got 'x,1'; wanted whole numbers with commas between"),
        (["bench", "-r", "9" * 5000], "wanted a whole number"),
        (["generate", "a", "-n", "1e3"], "got '1e3'; wanted a whole number"),
        (["generate", "a", "--temperature", "warm"], "got 'warm'; wanted a number"),
    ],
)
def test_no_number_is_refused_in_the_words_of_python(refused, arguments, said):
    text = refused(*arguments)
    assert said in text and not re.search(r"invalid|\bint\b|float|_numbers", text)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["raft", ".", "--tasks", "nope"], "--tasks: there is no such task; got nope"),
        (["raft", ".", "--tasks", ""], "--tasks: name no task"),
        (["classify", "{csv}", "--labels", "a\nb,c"], "--labels: cannot be read"),
        (["classify", "{csv}", "--labels", "a," + "b" * 200_000], "--labels: cannot be read"),
        (["classify", "{csv}", "--labels", "a,b", "-o", "x\0.csv"], "--output: cannot be used"),
        (["inspect", "a", "-o", "x\0.html"], "--output: cannot be used"),
        (["generate", "-f", "x\0"], "--file: cannot be used"),
        (["generate", "\udcff"], "the text: holds a lone surrogate"),
        (["bench", "-m", "{odd}", "--mask", "causal", "-r", "0"], "--repetitions: cannot be used; got 0"),
        (["info", ""], "path: cannot be used; got ''"),
        (["generate", "a", "-m", "{odd}"], "say which mask is right with --mask causal or --mask prefix"),
    ],
)
def test_what_cannot_be_used_is_refused_in_the_words_of_the_command_line(run, tmp_path, path, arguments, said):
    (csv := tmp_path / "x.csv").write_text("text\nhello\n")
    odd = write_model(tmp_path / "odd", CONFIG, random_params(CONFIG, 2, "f16"))
    (odd / "config.json").write_text(json.dumps(json.loads((odd / "config.json").read_text()) | {"refgpt_mask": "odd"}))
    got = run(*(argument.format(csv=csv, odd=odd) for argument in arguments))
    assert got.code == 1 and said in got.err and len(got.err) < 1000


def test_advice_that_names_a_keyword_names_its_option_too():
    """And then the command line names the option alone: see ``refgpt.cli.flags``."""
    keyword = re.compile(r"\b(?:dtype|kv_dtype|backend|mask|copy|truncate|threads|revision)=['\"]?\w+")
    for file in Path(refgpt.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                options = re.sub(r"--(compare|model_args) \S+", "", node.value)  # whose values are written so
                assert not keyword.search(BOTH.sub("", options)), f"{file}: {node.value}"


def test_alone_it_prints_its_help(run):
    got = run()
    assert (got.code, got.err) == (0, "") and got.out == PARSER.format_help()
    assert all(f"\n    {name} " in got.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(name):
    text = COMMANDS[name].format_help()
    assert f"refgpt {name}" in text.partition("example")[2]


@pytest.mark.parametrize(
    "arguments, usage, said",
    [
        (["generat", "hi"], "refgpt", "did you mean generate?"),
        (["Bench"], "refgpt", "did you mean bench?"),
        (
            ["generate", "hi", "--temprature", "1"],
            "refgpt generate",
            "unknown option --temprature; did you mean --temp",
        ),
        (["verify", "--promt=hi"], "refgpt verify", "unknown option --promt; did you mean --prompt?"),
        (["info", "--xyzzy"], "refgpt info", "unknown option --xyzzy; refgpt info --help lists the options"),
        (["--vresion"], "refgpt", "unknown option --vresion; did you mean --version?"),
        (
            ["generate", "--backend", "nunpy", "hi"],
            "refgpt generate",
            "there is no nunpy; choose from c, numpy; did you",
        ),
        (["demo", "summarise"], "refgpt demo", "did you mean summarize?"),
        (["generate", "Once", "upon", "a", "time"], "refgpt generate", "unexpected argument upon; put a text that has"),
        (["info", "-m", "a", "b"], "refgpt info", "the model is given twice"),
        (["bench", "a", "--model", "b"], "refgpt bench", "the model is given twice"),
        (["convert", "a"], "refgpt convert", "give a source and a destination"),
        (["convert", "-m", "a", "b", "c"], "refgpt convert", "the source is given twice"),
        (["inspect", "hi"], "refgpt inspect", "-o/--output"),
        (["chat", "--persona", "x"], "refgpt chat", "are for --template pygmalion"),
    ],
)
def test_what_is_mistyped_gets_a_hint_and_its_own_usage(refused, arguments, usage, said):
    told = refused(*arguments)
    assert told.startswith(f"usage: {usage} [") and f"\n{usage}: error: " in told and said in told


@pytest.mark.parametrize("bad", ["--\x1b[31m", "--" + "x" * 100_000, "--a\nb", "--\udcff"])
@pytest.mark.parametrize("place", [[], ["generate"], ["bench", "-r"], ["generate", "--backend"]])
def test_what_is_mistyped_is_repeated_in_a_short_and_harmless_line(refused, place, bad):
    given = bad if len(place) < 2 else bad[2:]
    last = refused(*place, given).splitlines()[-1]
    assert last.startswith("refgpt") and ": error: " in last and last.isprintable() and len(last) < 1300


def test_an_option_that_is_cut_short_is_repeated_harmlessly(refused):
    assert r"--te=\x1b[31m could match" in refused("chat", "--te=\x1b[31m")


@pytest.mark.parametrize("option", ["--labels", "--template", "--text-column", "-o"])
def test_two_dashes_can_be_a_value(option):
    glue = "=" if option.startswith("--") else ""
    base = ["classify", "x.csv", *(["--labels", "a,b"] if option != "--labels" else [])]
    given = PARSER.parse_args([*base, f"{option}{glue}--"])
    assert "--" in vars(given).values()


def test_two_dashes_are_checked_like_any_value(refused):
    assert "there is no --; choose from c, numpy" in refused("generate", "hi", "--backend=--")
    assert "got '--'; wanted a whole number" in refused("generate", "hi", "-n=--".replace("=", ""))


def test_two_dashes_end_the_options():
    assert PARSER.parse_args(["generate", "-n", "3", "--", "--seed"]).prompt == "--seed"
    assert PARSER.parse_args(["generate", "--", "--"]).prompt == "--"


@pytest.mark.parametrize(
    "arguments, prompt",
    [
        (["generate", "-n", "3", "hi"], "hi"),
        (["generate", "hi", "-n", "3"], "hi"),
        (["generate", "-"], "-"),
        (["generate", "-m", "x"], None),
    ],
)
def test_a_prompt_may_stand_before_and_after_options(arguments, prompt):
    assert PARSER.parse_args(arguments).prompt == prompt


def test_an_argument_that_may_be_left_out_can_follow_options():
    given = PARSER.parse_args(["demo", "qa", "-m", "x", "Who?"])
    assert (given.name, given.text, given.model) == ("qa", "Who?", "x")
    given = PARSER.parse_args(["convert", "a", "--dtype", "q4", "b"])
    assert (given.source, given.destination, given.dtype) == ("a", "b", "q4")


@pytest.mark.parametrize("command", ["info", "verify", "bench"])
@pytest.mark.parametrize("given", [["x"], ["-m", "x"], ["--model", "x"], ["--model=x"], ["-q", "x"]])
def test_the_model_has_a_name_and_a_place(command, given):
    assert PARSER.parse_args([command, *given]).model == "x"
    assert PARSER.parse_args([command, "--json", *given]).model == "x"
    assert PARSER.parse_args([command]).model is None


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"kernels", "completion", "lm-eval"}))
def test_every_command_about_a_model_takes_dash_m(command):
    assert COMMANDS[command].flags()["model"] == "--model"


@pytest.mark.parametrize("given", [["{}", "{}/q"], ["-m", "{}", "{}/q"], ["{}/q", "--model", "{}"]])
def test_convert_takes_its_source_either_way(run, path, tmp_path, given):
    destination = str(tmp_path / "q")
    arguments = [destination if text == "{}/q" else text.format(path) for text in given]
    assert run("convert", *arguments).code == 0
    assert run("info", "-m", destination).code == 0


@pytest.mark.parametrize(
    "given, want",
    [
        ("float16", "f16"),
        ("fp16", "f16"),
        ("F32", None),
        ("float32", "f32"),
        ("int8", "q8"),
        ("q4", "q4"),
        ("f8", None),
    ],
)
def test_dtypes_have_other_names(refused, given, want):
    if want is None:
        assert f"there is no {given}; choose from f32, f16" in refused("generate", "hi", "--dtype", given)
    else:
        assert PARSER.parse_args(["generate", "hi", "--dtype", given]).dtype == want
        assert PARSER.parse_args(["convert", "a", "b", "--dtype", given]).dtype == want


def test_arithmetic_in_bfloat16(run, path):
    rounded = ["-m", path, "--compute", "bf16"]
    got = run("generate", "hi", *rounded)
    assert got.code == 1 and "in f16; load with --dtype bf16 or f32, or leave compute out\n" in got.err
    got = run("generate", "hi", *rounded, "--dtype", "f16")
    assert got.code == 1 and "--compute: is not for weights in f16; got 'bf16' and dtype 'f16'" in got.err
    got = run("verify", path, "--compute", "bf16", "--dtype", "bf16")
    assert got.code == 0 and "weights bf16, arithmetic bf16, cache f32" in got.out


def test_errors_name_options(run, path):
    got = run("bench", path, "-p", "9999")
    assert got.code == 1 and "refgpt: error: --n-prompt: cannot be used; got 9999" in got.err


def test_an_error_in_the_words_of_python_is_put_into_those_of_the_command_line():
    arguments = SimpleNamespace(parser=COMMANDS["generate"], prompt="seed")

    def told(error):
        return str(in_flags(error, arguments))

    assert told(GenerationError("is bad", where="top_k", got=1, wanted=2)) == "--top-k: is bad; got 1; wanted 2"
    assert told(GenerationError("is bad", where="seed")) == "seed: is bad"  # here a text that was given
    assert told(DataError("is bad", where="table.csv, line 3")) == "table.csv, line 3: is bad"
    fix = "load with dtype='f64' and backend='numpy' (--dtype f64 --backend numpy), or not"
    assert told(RefgptError("is bad", fix=fix)) == "is bad; load with --dtype f64 --backend numpy, or not"
    assert told(RefgptError("is bad", fix="x (--y)")) == "is bad; x (--y)"
    assert isinstance(in_flags(DataError("x"), arguments), DataError)


def test_quiet_and_verbose(run, path):
    many = ["generate", "-m", path, "a" * 64, "--truncate", "left", "-n", 4]
    assert run(*many).err.startswith("refgpt: kept the last")
    assert run(*many, "-q").err == run("-q", *many).err == ""
    bad = ["info", "/nowhere/at/all"]
    assert run(*bad, "-q").err.count("\n") == 1
    for loud in (run("-v", *bad), run(*bad, "--verbose")):
        assert loud.code == 1 and "Traceback" in loud.err and loud.err.splitlines()[-1].startswith("refgpt: error: ")
    assert logging.getLogger("refgpt").level == logging.NOTSET  # as the caller had it


@pytest.mark.parametrize("name", ["gpt-j", "GPT-J", "gptj", "gpt-j-6b", "gpt-jt", "GPT-JT-6B-v1"])
def test_what_people_call_the_models_is_hinted_at(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    got = run("info", name)
    assert got.code == 1 and "EleutherAI/gpt-j-6b" in got.err and "togethercomputer/GPT-JT-6B-v1" in got.err
    (tmp_path / name).mkdir()  # a directory of this name is meant
    assert "EleutherAI" not in run("info", name).err


def test_other_names_get_no_such_hint(run):
    assert "togethercomputer" not in run("info", "gpt-2").err


def words(script, *typed):
    """What bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in ("refgpt", *typed))
    program = f'{script}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(typed)}\n_refgpt\necho "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_commands_options_and_values(run):
    script = run("completion", "bash").out
    assert set(words(script, "")) == COMMANDS.keys()
    assert words(script, "ver") == ["verify"] and words(script, "-q", "con") == ["convert"]
    assert words(script, "generate", "--top") == ["--top-k", "--top-p"]
    assert words(script, "generate", "hi", "--backend", "") == ["c", "numpy"]
    assert words(script, "chat", "--template", "al") == ["alpaca"]
    assert words(script, "demo", "q") == ["qa"]
    assert words(script, "info", "") == words(script, "info", "-m", "--") == []  # files, which bash adds


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_command_and_option(run, shell):
    script = run("completion", shell).out
    for name, parser in COMMANDS.items():
        assert name in script
        for option in parser.option_strings():
            assert option in script or f"-l {option[2:]}" in script or f"-s {option[1:]}" in script


def test_a_parser_of_its_own_needs_no_command():
    parser = CommandParser(prog="x")
    parser.add_argument("--one-thing")
    assert parser.flags() == {"help": "--help", "one_thing": "--one-thing"}
    assert json.dumps(parser.option_strings()) == '["-h", "--help", "--one-thing"]'


@pytest.mark.parametrize("command", ["generate", "verify"])
def test_copies_are_asked_for_by_a_flag(run, monkeypatch, path, command):
    asked = []
    pack = packing.pack_params
    monkeypatch.setattr(kernel_engine, "pack_params", lambda *args: asked.append(args[-2]) or pack(*args))
    for given in ([], ["--copy"]):
        run(command, "-m", path, *(["hi", "-n", 1] if command == "generate" else []), *given)
    assert asked == [False, True]
