"""``refgpt evaluate`` and ``refgpt lm-eval``: tables, files that a later run continues, and comparisons."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import refgpt
from refgpt import cli, training
from refgpt.cli import lm_eval, loading
from refgpt.evaluation import TASKS, PairedRuns, ZeroShot, evaluate, read_rows
from refgpt.generation import identity
from refgpt.numbers.adapted import Adapted
from tests.helpers.evaluation_models import DATA
from tests.helpers.raft_files import write_task
from tests.helpers.terminal import shown_on_terminal

HELLASWAG = DATA / "hellaswag.jsonl"


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(loading, "start", lambda *_, **__: pytest.fail("the weights were loaded"))


def lines_of(path):
    """The records of a file of results, without times."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_prints_a_table(run, task):
    got = run("evaluate", task, "--data", DATA / f"{task}.jsonl", "--limit", 4)
    assert (got.code, got.err) == (0, "")
    about, header, *rows = got.out.splitlines()
    name = "lambada_openai" if task == "lambada" else task
    assert about == f"{name}: 4 items, 95% intervals" and header.startswith("metric")
    measure = ZeroShot(TASKS[task], read_rows(DATA / f"{task}.jsonl"), n_rows=4)
    assert [row.split()[0] for row in rows] == [metric.name for metric in measure.metrics]
    results = evaluate(refgpt.load(), measure).results
    assert re.search(rf"^acc \(%\) +{100 * results['acc'].value:.1f} \[", got.out, re.MULTILINE)


def test_json_and_a_file_of_records(run, tmp_path):
    out = tmp_path / "out.jsonl"
    got = run("evaluate", "hellaswag", "--data", HELLASWAG, "--json", "-o", out)
    assert (got.code, got.err) == (0, "")
    found = json.loads(got.out)["runs"][0]
    want = evaluate(refgpt.load(), ZeroShot(TASKS["hellaswag"], read_rows(HELLASWAG)))
    assert found["results"]["acc_norm"]["value"] == want.results["acc_norm"].value
    assert found["published"]["acc_norm"]["GPT-J 6B"] == 66.1 and found["n_items"] == 6 and found["seconds"] > 0
    assert lines_of(out)[1:] == [
        {"task": "hellaswag", **{key: value for key, value in record.items() if key != "seconds"}}
        for record in want.records
    ]
    # What is known is not computed again, and what is of another run is not written over.
    before = out.read_bytes()
    again = run("evaluate", "hellaswag", "--data", HELLASWAG, "--json", "-o", out)
    assert (again.code, again.out) == (0, got.out) and out.read_bytes() == before
    other = run("evaluate", "hellaswag", "--data", HELLASWAG, "--dtype", "q4", "-o", out)
    assert other.code == 1 and "out.jsonl: holds the results of a run with another settings" in other.err
    assert out.read_bytes() == before


def test_a_comparison_is_paired(run):
    got = run("evaluate", "hellaswag", "--data", HELLASWAG, "--compare", "dtype=q4,mask=prefix")
    assert got.code == 0 and got.err.startswith("refgpt: prefix mask: ")
    _, header, acc, normed, changed, *_ = got.out.splitlines()
    assert header.split("  ")[-1] == "difference" and "dtype q4, mask prefix" in header
    measure = ZeroShot(TASKS["hellaswag"], read_rows(HELLASWAG))
    runs = [
        evaluate(model, measure) for model in (refgpt.load(), refgpt.load(dtype="q4", mask="prefix", kv_dtype=None))
    ]
    comparison = PairedRuns(*runs)
    assert f"{100 * comparison.differences['acc'].value:+.1f} [" in acc
    assert f"{100 * comparison.differences['acc_norm'].value:+.1f} [" in normed
    assert changed.startswith(f"{len(comparison.changed)} of 6 items changed: ")
    as_json = run("evaluate", "hellaswag", "--data", HELLASWAG, "--compare", "dtype=q4,mask=prefix", "--json")
    found = json.loads(as_json.out)
    assert [one["setting"]["dtype"] for one in found["runs"]] == [None, "q4"]
    assert [(one["item"], one["right"]) for one in found["comparisons"][0]["changed"]] == comparison.changed


def test_a_comparison_of_arithmetic_in_bfloat16(run, tmp_path):
    options = ["--dtype", "bf16", "--compare", "compute=bf16", "--json", "-o", tmp_path / "out.jsonl"]
    found = json.loads(run("evaluate", "hellaswag", "--data", HELLASWAG, "--limit", 2, *options).out)
    assert ["compute" in one["setting"] for one in found["runs"]] == [False, True]
    first, second = ([one | {"setting": 0} for one in lines_of(tmp_path / "out.jsonl")[1:]][i : i + 2] for i in (0, 2))
    assert [one["item"] for one in first] == [one["item"] for one in second] and first != second


def write_adapter(directory, b=0.02):
    """An adapter of the included model, all of whose B are ``b``. -> the model with it"""
    model = refgpt.load(dtype="f32")
    training.new_adapter(model, rank=2, targets="fc_in", seed=1)
    tree = model.engine.kept()
    for _, leaf in tree.items():
        if isinstance(leaf, Adapted):
            leaf.b[...] = b
    model.engine.adopt(tree)
    training.Trainer(model).write(directory)
    return model


@pytest.mark.parametrize("n_known", [2, 3])
def test_records_of_other_weights_at_the_same_place_are_refused(run, tmp_path, n_known):
    """Whether some items are still to be asked or none. Records without a model, as older versions wrote, are taken."""
    out, adapter = tmp_path / "out.jsonl", tmp_path / "adapter"
    command = ["evaluate", "hellaswag", "--data", HELLASWAG, "--limit", 3, "--dtype", "f32", "--adapter", adapter]
    write_adapter(adapter)
    whole = run(*command, "-o", out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[: 1 + n_known]))
    kept = out.read_bytes()
    shutil.rmtree(adapter)
    write_adapter(adapter, 0.03)
    other = run(*command, "-o", out)
    assert (other.code, other.out) == (1, "") and out.read_bytes() == kept
    assert "hellaswag: the results in the file are of another model" in other.err
    shutil.rmtree(adapter)
    write_adapter(adapter)
    again = run(*command, "-o", out)
    assert (again.code, again.out) == (0, whole.out) and out.read_bytes().startswith(kept)
    records = lines_of(out)
    assert len({record.pop("model") for record in records[1:]}) == 1
    out.write_text("".join(json.dumps(record) + "\n" for record in records))  # as older versions wrote them
    assert (got := run(*command, "-o", out)).code == 0 and got.out == whole.out


def test_a_comparison_of_a_model_with_an_adapter(run, tmp_path):
    model = write_adapter(tmp_path / "adapter")
    data = ["hellaswag", "--data", HELLASWAG, "--dtype", "f32", "--limit", 3]
    got = run("evaluate", *data, "--compare", f"adapter={tmp_path / 'adapter'}", "--json")
    assert got.code == 0, got.err
    one, two = json.loads(got.out)["runs"]
    assert one["setting"]["adapter"] is None and two["setting"]["adapter"] == str(tmp_path / "adapter")
    out = tmp_path / "out.jsonl"
    assert run("evaluate", *data, "--adapter", tmp_path / "adapter", "-o", out).code == 0
    want = evaluate(model, ZeroShot(TASKS["hellaswag"], read_rows(HELLASWAG), n_rows=3))
    assert [one["loglikelihoods"] for one in lines_of(out)[1:]] == [one["loglikelihoods"] for one in want.records]
    plain = evaluate(refgpt.load(dtype="f32"), want.measure)
    assert [one["loglikelihoods"] for one in plain.records] != [one["loglikelihoods"] for one in want.records]


def test_a_bar_counts_where_somebody_watches(monkeypatch):
    shown = shown_on_terminal(monkeypatch, lambda: cli.main(["evaluate", "piqa", "--data", str(DATA / "piqa.jsonl")]))
    assert "piqa:   0%" in shown and "/5 [" in shown


def test_perplexity_of_a_book(run):
    got = run("evaluate", "perplexity", "--data", DATA.parent / "oz.txt", "--dtype", "q8")
    assert got.code == 0 and got.out.startswith("perplexity: 1 item, 95% intervals\n")
    value = float(got.out.split("token_perplexity  ")[1].split()[0])
    model = refgpt.load(dtype="q8")
    ids = [model.config.bos_id, *model.tokenizer.encode((DATA.parent / "oz.txt").read_text(encoding="utf-8"))]
    n_ctx, n_tokens = model.config.n_ctx, len(ids) - 1
    starts = [min(i, n_tokens - n_ctx) for i in range(0, n_tokens, n_ctx)]  # the last window is as long as the others
    scored = [model.score(ids[i : i + 1], [ids[i + 1 : i + 1 + n_ctx]])[0] for i in starts]
    scored[-1] = scored[-1][-(n_tokens % n_ctx) :]
    assert value == pytest.approx(np.exp(-np.concatenate(scored).sum() / n_tokens), abs=0.006)


def test_summaries(run, tmp_path):
    pytest.importorskip("rouge_score", reason='needs the extra "eval"')
    out = tmp_path / "out.jsonl"
    got = run("evaluate", "cnn-dailymail", "--data", DATA / "cnn_dailymail.json", "--limit", 1, "-o", out)
    assert (got.code, got.err) == (0, "")
    header, rouge1, *_, rate = got.out.splitlines()[1:]
    assert header.endswith("  MLPerf's reference  99 % of it")
    assert rouge1.split()[-2:] == ["42.9865", "42.5566"] and rate.endswith("tokens/s (offline)")
    records = lines_of(out)[1:]
    assert [record["item"] for record in records] == [0] and all(30 <= one["tokens"] <= 128 for one in records)


def test_raft(run, tmp_path, monkeypatch):
    digested, digest = [], identity.tokenizer_digest
    monkeypatch.setattr(identity, "tokenizer_digest", lambda one: digested.append(one) or digest(one))
    write_task(tmp_path / "raft", "overruling", ["yes", "no"] * 5)
    write_task(tmp_path / "raft", "tweet_eval_hate", ["no", "yes", "yes"] * 4)
    options = ["--method", "likelihood", "--trials", 2, "--limit", 2, "--shots", 1]
    got = run("evaluate", "raft", "--data", tmp_path / "raft", *options, "--compare", "mask=prefix")
    assert got.code == 0
    assert len(digested) == 2  # once a model, not once a task: digests read all weights
    lines = got.out.splitlines()
    assert lines[0] == "overruling: 4 items, 95% intervals" and "exact (%)" in lines[2]
    assert any(line.startswith("tweet_eval_hate: 4 items") for line in lines)
    assert sum("of 4 items changed" in line for line in lines) == 2
    means = lines[lines.index("mean of 2 tasks:") + 1 :]
    assert [line.split()[0] for line in means] == ["exact", "quasi-exact", "macro-F1"]
    assert all(line.count("[") == 3 for line in means)
    alone = run("raft", tmp_path / "raft", "--method", "likelihood", "--trials", 2, "--rows", 2, "--shots", 1)
    exact = alone.out.splitlines()[1].split()[2]
    assert alone.out.splitlines()[3].split()[3] == means[0].split()[1]
    assert f"{100 * float(exact):.1f} [" in lines[2]


ENDED = """
import os, signal, sys
from refgpt import cli
from refgpt._common import record_file
add, n = record_file.RecordFile.add, 0
def watched(self, record):
    global n
    add(self, record)
    n += 1
    if n == 3:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
record_file.RecordFile.add = watched
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("name", "command"), [("SIGINT", "raft"), ("SIGKILL", "evaluate")])
def test_a_run_that_was_cut_off_goes_on(run, tmp_path, name, command):
    """The run ends itself after its third record; the next has all records, those of the first among them."""
    write_task(tmp_path / "raft", "overruling", ["yes", "no"] * 4)
    given = {
        "raft": ["raft", tmp_path / "raft", "--trials", 1, "--method", "likelihood"],
        "evaluate": ["evaluate", "hellaswag", "--data", HELLASWAG, "--compare", "mask=prefix"],
    }[command]
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    words = [str(one) for one in given]
    done = subprocess.run([sys.executable, "-c", ENDED, name, *words, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[name]
    first = out.read_bytes()
    assert first.count(b"\n") == 4
    assert name == "SIGKILL" or f"{out} holds 3 records: the same command goes on there" in done.stderr
    got, want = run(*given, "-o", out), run(*given, "-o", whole)
    assert got.code == 0 and got.out == want.out
    assert out.read_bytes().startswith(first) and lines_of(out) == lines_of(whole)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["hellaswag", "--data", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["piqa", "--data", str(HELLASWAG)], "hellaswag.jsonl, line 1: lacks a column"),
        (["hellaswag", "--data", str(HELLASWAG), "--limit", "0"], "--limit: cannot be used; got 0"),
        (["hellaswag", "--data", str(HELLASWAG), "-o", "out.csv"], "--output: cannot be written; got out.csv"),
        (["hellaswag", "--data", str(HELLASWAG), "--compare", "dtype"], "--compare: cannot be used; got 'dtype'"),
        (["hellaswag", "--data", str(HELLASWAG), "--compare", "dtype=q2"], "--dtype: cannot be used; got 'q2'"),
        (["hellaswag", "--data", str(HELLASWAG), "--compare", "mask=left"], "--mask: cannot be used; got 'left'"),
        (
            ["hellaswag", "--data", str(HELLASWAG), "--compare", "threads=x"],
            "--compare: cannot be used; got 'threads=x'",
        ),
        (
            ["hellaswag", "--data", str(HELLASWAG), "--compare", "adapter=nowhere"],
            "nowhere/adapter_config.json: there is no such file",
        ),
        (["hellaswag", "--data", str(HELLASWAG), "--variant", "openai"], "--variant: there is no such version"),
        (["hellaswag", "--data", str(HELLASWAG), "-o", str(HELLASWAG)], "is also an input of this run"),
    ],
)
def test_mistakes_are_found_before_the_weights_are_read(run, no_weights, arguments, said):
    got = run("evaluate", *arguments)
    assert (got.code, got.out) == (1, "") and said in got.err and got.err.count("\n") == 1


def test_lm_evals_arguments():
    assert lm_eval.with_model(["--tasks", "piqa"]) == ["run", "--model", "refgpt", "--tasks", "piqa"]
    assert lm_eval.with_model(["run", "--tasks", "piqa"]) == ["run", "--model", "refgpt", "--tasks", "piqa"]
    for given in (["ls", "tasks"], ["--help"], [], ["run"]):
        assert lm_eval.with_model(given) == given
    assert lm_eval.with_model(["--model=hf", "--tasks", "piqa"]) == ["run", "--model=hf", "--tasks", "piqa"]


def test_without_lm_eval_the_error_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "refgpt.evaluation.lm_eval", raising=False)
    got = run("lm-eval", "--tasks", "piqa")
    assert got.code == 1 and 'pip install "refgpt[eval]"' in got.err and got.err.count("\n") == 1
