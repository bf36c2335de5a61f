"""The comparison of servers: its client, CTranslate2's minimal server, and the table."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.peers import install, minimal_server, serving
from benchmarks.peers.lineup import SERVED, TWIN, served_forms
from benchmarks.serving import read


class Generator:
    """CTranslate2's interface; writes a prompt's own tokens again, one step of all texts after another."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def generate_batch(self, prompts: list[list[str]], *, max_length: int, callback: Callable, **options: Any) -> None:
        assert options["min_length"] == max_length and options["beam_size"] == 1
        self.batches.append(["".join(prompt) for prompt in prompts])
        for step in range(max_length):
            for i, prompt in enumerate(prompts):
                callback(SimpleNamespace(step=step, batch_id=i, token=prompt[step % len(prompt)]))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLIENTS": 3, "N_PROMPT": 6, "N_NEW": 4, "N_TEXTS": 2}.items():
        monkeypatch.setattr(serving, name, value)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_the_minimal_server_batches_what_arrives_together() -> None:
    async def run() -> tuple[dict[str, Any], list[float]]:
        port = free_port()
        server = asyncio.ensure_future(minimal_server.MinimalServer(generator).serve(port))
        while True:
            try:
                assert await read(port, "/health") == "{}"
                break
            except OSError:
                await asyncio.sleep(0.01)
        record = await serving.round_of(port, 0)
        times = await serving.text(port, 1, 2)
        server.cancel()
        return record, times

    generator = Generator()
    record, times = asyncio.run(run())
    assert sum(map(len, generator.batches)) == 7 and max(map(len, generator.batches)) > 1
    prompts = ["".join(f"<{byte}>" for byte in serving.prompt(seed).encode()) for seed in range(6)]
    assert sorted(text for batch in generator.batches[:-1] for text in batch) == sorted(prompts)
    assert len(record["first"]) == 6 and len(record["between"]) == 6 * 3 and record["tokens/s"] > 0
    assert len(times) == 3  # when it was asked for, and two tokens


def test_texts_that_are_cut_are_no_figures() -> None:
    class Ends(Generator):
        def generate_batch(self, prompts: list[list[str]], *, max_length: int, callback: Callable, **rest: Any) -> None:
            callback(SimpleNamespace(step=max_length - 1, batch_id=0, token="x"))  # the others are lost

    async def run() -> None:
        port = free_port()
        server = asyncio.ensure_future(minimal_server.MinimalServer(Ends()).serve(port))
        await asyncio.sleep(0.1)
        with pytest.raises(ValueError, match="1 pieces, wanted 4"):
            await serving.text(port, 1, 4)
        server.cancel()

    asyncio.run(run())


def test_servers_that_cannot_be_measured_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("starlette")

    def included(path: Path, threads: int, port: int) -> list[str]:
        return [sys.executable, "-m", "refgpt", "serve", "-q", "--port", str(port), "--threads", str(threads)]

    servers = [
        serving.Server("refgpt", "", "/health", included),
        serving.Server("without a model", "twin.gguf", "/health", included),
        serving.Server("without a program", "", "/health", lambda *arguments: [str(tmp_path / "none")]),
        serving.Server("broken", "", "/health", lambda *arguments: [sys.executable, "-c", "raise SystemExit('oh')"]),
    ]
    arguments = Namespace(threads=1, rounds=1, patience=0)
    found = asyncio.run(serving.measure(servers, tmp_path, tmp_path, arguments))
    assert set(found["failed"]) == {"without a model", "without a program", "broken"}
    assert "is not there" in found["failed"]["without a model"] and "oh" in found["failed"]["broken"]
    assert capsys.readouterr().out.count("left out") == 3
    (record,) = found["records"]
    assert record["engine"] == "refgpt" and len(record["first"]) == 6


def test_the_table_and_the_plot(tmp_path: Path) -> None:
    records = [
        {"engine": name, "round": n, "tokens/s": rate + n, "first": [0.1, 0.2], "between": [0.01, 0.02]}
        for name, rate in (("refgpt q4", 100.0), ("other", 50.0))
        for n in range(3)
    ]
    results = {
        **{"date": "2026-01-01", "machine": {"cpu": "a processor", "processors": 2}, "layers": 4, "rounds": 3},
        **{"threads": 2, "clients": 16, "n_prompt": 64, "n_new": 64, "engines": ["refgpt q4", "gone", "other"]},
        **{"failed": {"gone": "no such file"}, "records": records},
    }
    lines = list(serving.report(json.loads(json.dumps(results))))
    assert "| refgpt q4 | 101 | 200 / 200 | 20.0 / 20.0 | 1.00 |" in lines
    assert "| other | 51.0 | 200 / 200 | 20.0 / 20.0 | 1.98 |" in lines and "- gone: no such file" in lines
    pytest.importorskip("matplotlib")
    from benchmarks.peers import serving_plot

    serving_plot.draw(results, [tmp_path / "serving.svg"])
    drawn = (tmp_path / "serving.svg").read_text(encoding="utf-8")
    assert (
        all(f">{text}</text>" in drawn for text in ("refgpt q4", "other", "101", "51.0", "20.0"))
        and "gone" not in drawn
    )


def test_only_the_forms_that_are_needed_are_made() -> None:
    assert served_forms("refgpt") == [SERVED["refgpt"]]
    assert set(served_forms(None)) == {*SERVED.values(), TWIN}
    assert [server.name for server in serving.lineup(Path(), "refgpt")] == ["refgpt q4", "refgpt q8"]
    assert {server.form for server in serving.lineup(Path(), "llama")} == {SERVED["llama.cpp"]}


def test_what_becomes_of_llama_cpps_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It is built from the release that is installed, once; a step that fails is told."""
    seen: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        assert options["cwd"] == tmp_path / "llama.cpp"
        seen.append(command)
        return SimpleNamespace(returncode=7 * (command[:2] == ["cmake", "-S"]))

    monkeypatch.setattr(install.subprocess, "run", run)
    install.install_llama_server(tmp_path, "native")
    (release,) = [line for line in install.requirements() if line.startswith("llama-cpp-python==")]
    source = f"llama_cpp_python-{release.partition('==')[2]}"
    assert [command[-1] for command in seen[:2]] == [release, f"{source}.tar.gz"]
    assert seen[2][2] == f"{source}/vendor/llama.cpp" and "-DGGML_NATIVE=ON" in seen[2] and len(seen) == 3
    assert "left out: cmake: 7" in capsys.readouterr().out
    install.llama_server_of(tmp_path).parent.mkdir(parents=True)
    install.llama_server_of(tmp_path).touch()
    install.install_llama_server(tmp_path, "native")
    assert len(seen) == 3
