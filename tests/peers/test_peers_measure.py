"""The measurement itself, with refgpt as the only engine: it needs no peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refgpt
from benchmarks.peers import measure
from benchmarks.peers.checkpoint import write_checkpoint
from benchmarks.peers.install import fingerprint, requirements
from benchmarks.peers.lineup import SAME_IN_3_BITS, Engine, Group, groups
from benchmarks.peers.measure import ROOT, run_group
from benchmarks.peers.processors import build_peak, machine, peaks, process_ticks
from benchmarks.peers.questions import N_REFERENCE, prompt
from benchmarks.peers.run import agreement
from tests.helpers.tiny import tiny_config
from tests.helpers.work import HANGS

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time is read from /proc")

QUESTIONS = (
    {"do": "text", "n_prompt": 3, "n_new": 2},
    {"do": "texts", "n_seqs": 2, "n_prompt": 3, "n_new": 2},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_checkpoint(directory / "gptj", tiny_config(n_vocab=50400, d_model=16, d_ff=32, n_head=1), quiet=True)
    return directory


@pytest.fixture
def records(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "PAUSE", 0.01)

    def run(*engines: Engine, questions=QUESTIONS) -> list[dict]:
        return list(run_group(Group("g", engines, questions, 1), 2, 0, models, tmp_path))

    return run


REFGPT = Engine("refgpt f16", "refgpt", "f16", "gptj", 1)


def test_an_engine_is_measured_round_by_round(records, models: Path):
    found = records(REFGPT)
    loaded, logits, *rest = found
    assert loaded["about"]["refgpt"] == refgpt.__version__
    n_matrices, n_vectors = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 50400 * 16, 2 * (16 + 16 + 32 + 16) + 2 * 16 + 50400
    assert loaded["n_bytes"] == 2 * n_matrices + 4 * n_vectors  # float16 and float32; without the embedding
    assert [r["round"] for r in rest if len(r) == 1] == [-1, 0, 1]
    told = [r for r in rest if "what" in r]
    assert [(r["round"], r["what"]) for r in told] == [
        (n, what) for n in (0, 1) for what in ("prefill 3", "decode after 3", "8 sequences")
    ]
    assert all(r["tokens/s"] > 0 and r["peak_bytes"] > 1e6 for r in told)
    want = refgpt.load(models / "gptj", backend="numpy").logits(prompt(N_REFERENCE))[-1]
    assert agreement(np.load(logits["logits"]), want)["cosine"] > 0.9999
    assert agreement(-want, want)["cosine"] < -0.9999
    assert "failed" in agreement(-want, want) and "failed" not in agreement(want, want)
    a, b = np.array([1.0, 0.0]), np.array([0.85, np.sqrt(1 - 0.85**2)])  # as in 3 bits
    assert "failed" in agreement(a, b) and "failed" not in agreement(a, b, SAME_IN_3_BITS)


def test_only_the_group_of_3_bits_may_be_further_from_the_spec():
    assert [group.title for group in groups(2) if group.least_cosine == SAME_IN_3_BITS] == ["3 bits"]


def test_engines_that_fail_are_told_of_and_the_others_go_on(records):
    absent = Engine("not installed", "no_such_adapter", "f16", "gptj", 1)
    without = replace(REFGPT, name="no model", form="elsewhere")
    found = records(absent, without, REFGPT)
    failures = {r["engine"]: r["failed"] for r in found if "failed" in r}
    assert "no_such_adapter" in failures["not installed"]
    assert "there is no such file" in failures["no model"]
    assert {r["engine"] for r in found if "what" in r} == {"refgpt f16"}


def test_a_question_that_fails_costs_the_engine_the_rest(records):
    bad = {"do": "text", "n_prompt": 100, "n_new": 0}  # longer than the model's context of 64
    found = records(REFGPT, questions=(QUESTIONS[0], bad))
    assert "100" in next(r["failed"] for r in found if "failed" in r)
    assert not [r for r in found if "what" in r]  # it failed while it warmed up


def test_a_process_that_dies_is_told_of(models: Path, tmp_path: Path):
    worker = measure.Worker(REFGPT, models, tmp_path)
    try:
        worker.read(60)
        worker.process.kill()
        with pytest.raises(measure.EngineFailed, match="status -9"):
            worker.ask(QUESTIONS[0])
    finally:
        worker.close()


def test_an_engine_that_does_not_answer_is_given_up(models: Path, tmp_path: Path):
    worker = measure.Worker(REFGPT, models, tmp_path)
    try:
        with pytest.raises(measure.EngineFailed, match="no answer within 0 s"):
            worker.read(0)
    finally:
        worker.close()
    assert worker.process.returncode == -9


NOISY = """
import os, runpy, sys, types
noisy = types.ModuleType("noisy")
class Adapter:
    about, n_bytes = {}, 0
    def text(self, ids, n_new):
        os.write(1, b"a library writes what it likes")
        print("so does its Python half")
        return 1.0, 2.0
noisy.load = lambda path, precision, threads: Adapter()
sys.modules["benchmarks.peers.engines.noisy"] = noisy
sys.argv[1:] = ["noisy", ".", "f16", "1"]
runpy.run_module("benchmarks.peers.worker", run_name="__main__")
"""


def test_what_a_library_prints_is_no_answer():
    run = subprocess.run(
        [sys.executable, "-c", NOISY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANGS,
        input=json.dumps(QUESTIONS[0]) + "\n",
    )
    loaded, answer = map(json.loads, run.stdout.splitlines())
    assert loaded["about"] == {}
    assert (answer["prefill"], answer["decode"]) == (1.0, 2.0)
    assert "writes what it likes" in run.stderr


def test_time_in_the_system_counts_too():
    before, ticks = os.times(), process_ticks(os.getpid())
    while os.times().system < before.system + 0.2:
        os.urandom(1 << 20)
    after = os.times()
    spent = (process_ticks(os.getpid()) - ticks) / os.sysconf("SC_CLK_TCK")
    assert spent == pytest.approx(after.user + after.system - before.user - before.system, abs=0.1)
    assert process_ticks(1 << 30) == 0  # there is no such process


def test_the_peak_is_measured_where_there_is_a_compiler(tmp_path: Path):
    program = build_peak(tmp_path, "native")
    assert peaks(None, 1) == {}
    if program is None:
        pytest.skip("no C compiler")
    assert peaks(program, 1)["float32"] > 0
    assert machine()["processors"] >= 1


def test_the_command_explains_itself_without_any_package():
    """Before there is an environment the interpreter may have nothing but itself."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = ['--help']; "
        "import runpy; runpy.run_module('benchmarks.peers', run_name='__main__')",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 0, run.stderr
    assert "--dir" in run.stdout


def test_requirements_are_pinned():
    assert all("==" in line for line in requirements())
    assert {line.partition("==")[0] for line in requirements()} >= {"torch", "llama-cpp-python", "ctranslate2"}
    assert len(fingerprint()) == 64
