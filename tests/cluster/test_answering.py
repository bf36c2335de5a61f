"""``refgpt batch`` and ``refgpt evaluate`` on the hosts of a cluster: what they write is what one machine writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refgpt.cluster import answering
from tests.helpers.evaluation_models import DATA

pytest.importorskip("ray", reason='needs the extra "ray"')
HELLASWAG = DATA / "hellaswag.jsonl"
OPTIONS = ["--seed", "3", "--slots", "4", "-q"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    requests = [{"prompt": f"{i} times upon", "max_new_tokens": 10 + i % 30, "ignore_eos": True} for i in range(40)]
    lines = [json.dumps(one) for one in requests]
    lines[7], lines[19] = "{", json.dumps({"prompt": "x " * 600})
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def wanted(prompts, run):
    """What one machine writes."""
    out = prompts.with_name("wanted.jsonl")
    assert run("batch", prompts, "-o", out, *OPTIONS).code == 0
    return out.read_bytes()


def without_times(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_records_are_those_of_one_machine_in_either_order(cluster_of_two, prompts, wanted, run):
    out, hosts = prompts.with_name("out.jsonl"), ["--ray-address", cluster_of_two.address]
    got = run("batch", prompts, "-o", out, *OPTIONS, *hosts)
    assert (got.code, got.err) == (0, "") and out.read_bytes() == wanted
    assert sum("error" in json.loads(line) for line in wanted.splitlines()) == 2
    printed = run("batch", prompts, "--order", "completion", *OPTIONS, *hosts)
    assert printed.code == 0 and sorted(printed.out.encode().splitlines()) == sorted(wanted.splitlines())
    assert printed.out.encode() != wanted


def test_a_killed_run_goes_on_and_may_end_on_one_machine(cluster_of_two, prompts, wanted, run):
    out = prompts.with_name("out.jsonl")
    journal, hosts = Path(f"{out}.partial"), ["--ray-address", cluster_of_two.address]
    command = [sys.executable, "-m", "refgpt", "batch", str(prompts), "-o", str(out), *OPTIONS, *hosts]
    with subprocess.Popen(command) as process:
        while process.poll() is None and (not journal.exists() or journal.stat().st_size < 2500):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not out.exists()
    before = journal.read_bytes()
    other = run("batch", prompts, "-o", out, *OPTIONS, *hosts, "--temperature", "0.5")
    assert other.code == 1 and "another parameters" in other.err
    assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    half = prompts.with_name("half.jsonl.partial")
    half.write_bytes(journal.read_bytes())
    assert run("batch", prompts, "-o", out, *OPTIONS, *hosts).code == 0
    assert run("batch", prompts, "-o", half.with_suffix(""), *OPTIONS).code == 0
    assert out.read_bytes() == wanted and half.with_suffix("").read_bytes() == wanted
    assert not journal.exists() and not half.exists()


def test_an_evaluation_is_that_of_one_machine_and_goes_on(cluster_of_two, tmp_path, run):
    hosts = ["--ray-address", cluster_of_two.address]
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    wanted = run("evaluate", "hellaswag", "--data", HELLASWAG, "-o", one)
    got = run("evaluate", "hellaswag", "--data", HELLASWAG, "-o", many, *hosts)
    assert (got.code, got.out) == (0, wanted.out), got.err
    assert without_times(many) == without_times(one)
    many.write_bytes(b"".join(many.read_bytes().splitlines(keepends=True)[:4]) + b'{"task": "hel')
    assert run("evaluate", "hellaswag", "--data", HELLASWAG, "-o", many, *hosts).code == 0
    assert without_times(many) == without_times(one)


def test_an_evaluation_on_hosts_that_read_texts_otherwise_is_one_error(cluster_of_two, tmp_path, run, monkeypatch):
    monkeypatch.setattr(answering, "tokenizer_digest", lambda _: "another one")  # in this process, not on the hosts
    got = run("evaluate", "hellaswag", "--data", HELLASWAG, "--ray-address", cluster_of_two.address)
    errors = [line for line in got.err.splitlines() if "error:" in line]
    assert got.code == 1 and len(errors) == 1 and "has another tokenizer than this process" in errors[0]


def test_a_model_that_is_nowhere_is_one_error(cluster_of_two, prompts, run):
    before = sorted(os.listdir(prompts.parent))
    where = ["-m", prompts.parent / "none", "--ray-address", cluster_of_two.address, "-o", prompts.with_name("o.jsonl")]
    got = run("batch", prompts, *where)
    errors = [line for line in got.err.splitlines() if "error:" in line]
    assert got.code == 1 and len(errors) == 1 and "127.0.0.1" in errors[0] and "none" in errors[0]
    assert sorted(os.listdir(prompts.parent)) == before


@pytest.mark.parametrize("command", ["batch", "evaluate"])
def test_a_missing_ray_is_one_clear_error(command, prompts, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    before = sorted(os.listdir(prompts.parent))
    what = [prompts] if command == "batch" else ["hellaswag", "--data", HELLASWAG]
    got = run(command, *what, "--ray-address", "auto", "-o", prompts.with_name("out.jsonl"))
    assert got.code == 1 and 'pip install "refgpt[ray]"' in got.err and sorted(os.listdir(prompts.parent)) == before


@pytest.mark.parametrize("command", ["batch", "evaluate"])
def test_workers_on_hosts_need_hosts(command, prompts, run, capsys):
    what = [prompts] if command == "batch" else ["hellaswag", "--data", HELLASWAG]
    with pytest.raises(SystemExit):
        run(command, *what, "--workers-per-host", 2)
    assert "--ray-address" in capsys.readouterr().err
