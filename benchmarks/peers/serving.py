"""Compare servers of refgpt, llama.cpp and CTranslate2, whose clients ask again as soon as they are answered.

    python -m benchmarks.peers serve --family gpt-neox --dir DIRECTORY

All servers have the same model. They run at the same time and get their load in turn, round by round. Each streams
greedy texts of the same length after different prompts. The result is ``serving.json`` and ``serving.md``: tokens of
all clients per second, the time to the first token, and the time between tokens. llama.cpp is measured as the server of
llama-cpp-python, which generates one text at a time, and, if it was built, as its own ``llama-server``, which batches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.install import llama_server_of
from benchmarks.peers.lineup import SERVED, is_wanted
from benchmarks.peers.measure import turn, wait_for_quiet
from benchmarks.peers.options import stage_parser
from benchmarks.peers.processors import machine
from benchmarks.peers.report import number, table
from benchmarks.quick import sized
from benchmarks.serving import end_on_sigterm, percentiles, read, sent

ROOT = Path(__file__).resolve().parents[2]
#: Clients; tokens of each prompt (one byte of its text is one token) and of each text; texts of each client in a round.
CLIENTS, N_PROMPT, N_NEW, N_TEXTS = sized(16, 2), sized(64, 8), sized(64, 4), sized(2, 1)
#: Bytes of prompts, without those of the tokenizer's only merge.
LETTERS = "cdefghijklmnopqrstuvwxyz "
LOAD_SECONDS, ANSWER_SECONDS, END_SECONDS = 300, 600, 20


@dataclass(frozen=True)
class Server:
    """One row of the table.

    Attributes
    ----------
    name : str
    form : str
        Which of ``lineup.FORMS`` it loads.
    ready : str
        A path that answers 200 when the server is ready.
    command : callable
        Makes the command from the model's path, the number of threads and the port.
    """

    name: str
    form: str
    ready: str
    command: Callable[[Path, int, int], list[str]]


def refgpt_server(dtype: str) -> Server:
    """``refgpt serve`` with its defaults; keys and values in 16 bits, as in llama.cpp."""

    def command(path: Path, threads: int, port: int) -> list[str]:
        options = ["-m", str(path), "--dtype", dtype, "--kv-dtype", "f16", "--threads", str(threads)]
        return [sys.executable, "-m", "refgpt", "serve", "-q", "--port", str(port), *options]

    return Server(f"refgpt {dtype}", SERVED["refgpt"], "/health", command)


def llama_cpp_python(path: Path, threads: int, port: int) -> list[str]:
    """llama-cpp-python's server. By default a new request would end the text that is being generated."""
    options = ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "false"]
    return [sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--port", str(port), *options]


def llama_server(work: Path) -> Callable[[Path, int, int], list[str]]:
    """llama.cpp's own server, with a slot and a context for each client."""

    def command(path: Path, threads: int, port: int) -> list[str]:
        options = ["-np", str(CLIENTS), "-c", str(CLIENTS * 1024), "-t", str(threads), "-tb", str(threads)]
        return [str(llama_server_of(work)), "-m", str(path), "--port", str(port), *options]

    return command


def minimal(path: Path, threads: int, port: int) -> list[str]:
    """CTranslate2 behind ``minimal_server``."""
    return [sys.executable, "-m", "benchmarks.peers.minimal_server", str(path), "int8", str(threads), str(port)]


def lineup(work: Path, wanted: str | None = None) -> list[Server]:
    """The servers whose names contain one of the wanted words; ratios are against the first."""
    servers = [
        refgpt_server("q4"),
        refgpt_server("q8"),
        Server("llama.cpp Q4_0, llama-cpp-python", SERVED["llama.cpp"], "/v1/models", llama_cpp_python),
        Server("llama.cpp Q4_0, llama-server", SERVED["llama.cpp"], "/health", llama_server(work)),
        Server("CTranslate2 int8, minimal server", SERVED["CTranslate2"], "/health", minimal),
    ]
    return [server for server in servers if is_wanted(server.name, wanted)]


class ServerFailed(Exception):
    """A server that cannot be measured; the text says why."""


class Running:
    """A server in a process of its own."""

    def __init__(self, server: Server, models: Path, threads: int, logs: Path) -> None:
        self.log = logs / f"serving-{server.name.replace(' ', '-').replace(',', '')}.log"
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port: int = taken.getsockname()[1]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as file:
            try:
                self.process = subprocess.Popen(
                    server.command(models / server.form, threads, self.port),
                    cwd=ROOT,
                    stdout=file,
                    stderr=file,
                    env=environment,
                )
            except OSError as error:
                raise ServerFailed(str(error)) from None

    async def wait(self, path: str) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ServerFailed(f"ended with status {self.process.returncode}" + "".join(f": {one}" for one in last))
            with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
                await read(self.port, path)
                return
            await asyncio.sleep(0.1)
        raise ServerFailed(f"does not serve within {LOAD_SECONDS} s")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def prompt(seed: int) -> str:
    """A prompt that no other has."""
    draw = random.Random(seed)
    return "".join(draw.choice(LETTERS) for _ in range(N_PROMPT))


async def text(port: int, seed: int, n_new: int) -> list[float]:
    """Ask for one text. Returns the time of the request, and when each piece of the text arrived."""
    body = {"prompt": prompt(seed), "max_tokens": n_new, "temperature": 0, "stream": True, "ignore_eos": True}
    times, reason = [time.perf_counter()], None
    async with sent(port, "POST", "/v1/completions", json.dumps(body).encode()) as answer:
        async for line in answer:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            found = json.loads(line[6:])
            if "error" in found:
                raise ValueError(str(found["error"]))
            for choice in found["choices"]:
                reason = choice.get("finish_reason") or reason
                if choice["text"]:
                    times.append(time.perf_counter())
    if reason != "length" or len(times) < 2:
        raise ValueError(f"the text ended with {reason!r} after {len(times) - 1} pieces, wanted {n_new}")
    return times


async def round_of(port: int, n: int) -> dict[str, Any]:
    """Run all clients for a round. Returns tokens per second, and the seconds to first tokens and between tokens."""

    async def client(i: int) -> list[list[float]]:
        seeds = (CLIENTS * (N_TEXTS * n + j) + i for j in range(N_TEXTS))
        return [await text(port, seed, N_NEW) for seed in seeds]

    began = time.perf_counter()
    texts = [one for some in await asyncio.gather(*map(client, range(CLIENTS))) for one in some]
    seconds = time.perf_counter() - began
    return {
        "tokens/s": CLIENTS * N_TEXTS * N_NEW / seconds,
        "first": [times[1] - times[0] for times in texts],
        "between": [after - before for times in texts for before, after in pairwise(times[1:])],
    }


async def measure(servers: Sequence[Server], models: Path, logs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load all servers, and ask them in turn."""
    found: dict[str, Any] = {"failed": {}, "records": []}
    running: dict[str, Running] = {}
    try:
        for server in servers:
            try:
                if not (models / server.form).exists():
                    raise ServerFailed(f"{models / server.form} is not there")
                running[server.name] = Running(server, models, arguments.threads, logs)
                await running[server.name].wait(server.ready)
                await text(running[server.name].port, -1, 2)
            except (ServerFailed, OSError, ValueError, asyncio.IncompleteReadError) as fault:
                print(f"{server.name}: left out: {fault}", flush=True)
                found["failed"][server.name] = str(fault)
                if server.name in running:
                    running.pop(server.name).close()
        for n in range(arguments.rounds):
            for name in turn(list(running), n):
                wait_for_quiet([os.getpid(), *(one.process.pid for one in running.values())], arguments.patience)
                try:
                    record = await asyncio.wait_for(round_of(running[name].port, n), ANSWER_SECONDS)
                except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError) as fault:
                    print(f"{name}: left out: {fault!r}", flush=True)
                    found["failed"][name] = repr(fault)
                    running.pop(name).close()
                    continue
                print(f"round {n}: {name}: {record['tokens/s']:.1f} tokens/s", flush=True)
                found["records"].append({"engine": name, "round": n, **record})
    finally:
        for one in running.values():
            one.close()
    return found


def report(results: dict[str, Any]) -> Iterator[str]:
    """The table, in Markdown."""
    records = results["records"]
    names = [name for name in results["engines"] if any(record["engine"] == name for record in records)]
    machine_ = results["machine"]
    yield (
        f"{machine_['cpu']}, {machine_['processors']} processors, {results['date']}. {results['layers']} of "
        f"Pythia 6.9B's layers, {results['threads']} threads; {results['clients']} clients, prompts of "
        f"{results['n_prompt']} tokens, texts of {results['n_new']}; {results['rounds']} rounds."
    )
    yield ""

    def mine(name: str, what: str) -> list[float]:
        return [value for record in records if record["engine"] == name for value in record[what]]

    def milliseconds(values: Sequence[float]) -> str:
        return " / ".join(number(1000 * value) for value in percentiles(values, 50, 95)) if values else "–"

    def rate(name: str) -> float:
        return median(record["tokens/s"] for record in records if record["engine"] == name)

    rows = [
        [
            name,
            number(rate(name)),
            milliseconds(mine(name, "first")),
            milliseconds(mine(name, "between")),
            f"{rate(names[0]) / rate(name):.2f}",
        ]
        for name in names
    ]
    columns = [
        "server",
        "tokens/s of all clients",
        "first token, ms, median / 95 %",
        "between tokens, ms, median / 95 %",
    ]
    yield from table([*columns, f"{names[0] if names else ''} / this"], rows)
    if results["failed"]:
        yield from ("", "Left out:", "", *(f"- {name}: {why}" for name, why in results["failed"].items()))


def main() -> None:
    """Measure the servers, and write the results."""
    arguments = stage_parser().parse_args()
    end_on_sigterm()
    work, logs = arguments.work, arguments.work / "logs"
    logs.mkdir(exist_ok=True)
    servers = lineup(work, arguments.engines)
    models = work / f"models-{arguments.family}-{arguments.layers}"
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        **{name: getattr(arguments, name) for name in ("layers", "rounds", "threads")},
        **{"clients": CLIENTS, "n_prompt": N_PROMPT, "n_new": N_NEW, "engines": [server.name for server in servers]},
        **asyncio.run(measure(servers, models, logs, arguments)),
    }
    (work / "serving.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    told = "\n".join(report(results)) + "\n"
    (work / "serving.md").write_text(told, encoding="utf-8")
    print(told)
    if not results["records"]:
        sys.exit("no server could be measured")


if __name__ == "__main__":
    main()
