"""Work on four hosts (network namespaces of this machine), of which one is lost."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.hosts import RAY_ENVIRONMENT, Hosts, obstacle, ray_address, start_ray
from tests.helpers.finetune_files import PAIRS, write_lines, write_small_model

WHY = 'needs the extra "ray"' if importlib.util.find_spec("ray") is None else obstacle()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)

N_ROUNDS = 90


@pytest.fixture
def files(tmp_path):
    write_small_model(tmp_path / "model")
    write_lines(tmp_path / "train.jsonl", PAIRS * 3)
    return tmp_path


@pytest.fixture
def place():
    """A directory whose name is short enough for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as directory:
        yield Path(directory)


def wait_for(condition, told):
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(told())


def test_a_training_on_four_hosts_outlives_one_of_them(files, place):
    def log():
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(place.glob("*.log")))

    def lines():
        path = files / "out" / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    with Hosts(4, megabits=100) as hosts:
        for host in range(4):
            start_ray(hosts, host, place)
        before = hosts.n_bytes(1)
        options = ["--workers", 3, "--sync", "every:2", "--compress", "int4", "--iters", 2 * N_ROUNDS, "--full"]
        options += ["--address", ray_address(hosts), "--deadline", 2, "--valid", files / "train.jsonl"]
        command = ["-m", files / "model", "--data", files / "train.jsonl", "-o", files / "out", "--lr", 1e-2, *options]
        run = hosts.start(
            0, [sys.executable, "-m", "refgpt", "finetune", *map(str, command)], RAY_ENVIRONMENT, place / "run.log"
        )
        wait_for(lambda: len(lines()) > 3 or run.poll() is not None, log)
        first = lines()
        hosts.kill(3)
        run.communicate()
        assert run.returncode == 0, log()
        after = hosts.n_bytes(1)

    rounds = [line for line in lines() if "workers" in line]
    assert first[1]["workers"] == [0, 1, 2] and rounds[-1]["step"] == 2 * N_ROUNDS
    assert any(len(line["workers"]) == 2 for line in rounds)
    losses = [line["valid_loss"] for line in lines() if "valid_loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert (files / "out" / "model.safetensors").exists()
    # The counters of the interface saw the messages, and all that Ray says besides, but no more than a ring of float16.
    assert rounds[-1]["sent"] < after[0] - before[0]


def test_a_batch_on_four_hosts_outlives_one_of_them(files, place, run):
    lines = [{"prompt": "Say toad!", "max_new_tokens": 40, "seed": i, "ignore_eos": True} for i in range(600)]
    prompts = write_lines(files / "prompts.jsonl", [*lines, "{"])
    batch = ["batch", prompts, "-m", files / "model", "--slots", "4"]
    assert run(*batch, "-o", files / "wanted.jsonl").code == 0

    def log():
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(place.glob("*.log")))

    journal = files / "out.jsonl.partial"
    with Hosts(4) as hosts:
        for host in range(4):
            start_ray(hosts, host, place)
        command = [*batch, "-o", files / "out.jsonl", "--ray-address", ray_address(hosts)]
        asked = [sys.executable, "-m", "refgpt", *map(str, command)]
        first = hosts.start(0, asked, RAY_ENVIRONMENT, place / "first.log")
        wait_for(lambda: (journal.exists() and journal.stat().st_size > 20_000) or first.poll() is not None, log)
        first.kill()  # the command itself; the same command goes on after it
        first.communicate()
        assert first.returncode == -9 and not (files / "out.jsonl").exists(), log()
        second = hosts.start(0, asked, RAY_ENVIRONMENT, place / "second.log")
        size = journal.stat().st_size
        wait_for(lambda: not journal.exists() or journal.stat().st_size > size or second.poll() is not None, log)
        told = (place / "second.log").read_text()
        worker = next(i for i in range(1, 4) if f"{hosts.address(i)}: a worker has started" in told)
        hosts.kill(worker)  # it has work
        second.communicate()
        assert second.returncode == 0, log()
    assert f"{Hosts.address(worker)}: a worker is gone" in (place / "second.log").read_text()
    assert (files / "out.jsonl").read_bytes() == (files / "wanted.jsonl").read_bytes()
