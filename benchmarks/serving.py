"""Load a server on this machine: clients ask for a new stream as soon as one ends, for a given time.

    python -m benchmarks.serving [--clients 64] [--seconds 60] [-m MODEL] [--slots 16] [--late 60]

Every answer is compared with that of ``Model.generate``, which computes the same request alone. An answer that is
lost, cut, mixed with another's, or not whole in time is counted, and fails the run. Some clients leave in the middle
of a stream, and ``/health`` is asked once a second. It prints the rate, the time to the first token and between tokens,
and the server's memory in the first and the last quarter of the time, with a line of progress each minute. A long run
fails if the memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import refgpt
from benchmarks.quick import sized

#: Kinds of requests, with the lengths of their prompts and texts; each has its own seed.
KINDS = 40
PROMPT = "There was once upon a time a poor man who had nothing but a little house and a goat. "
#: One of so many requests is left by its client.
LEAVES = 20
#: Seconds between lines of progress, and the most seconds until a server is idle after its clients have gone.
PROGRESS, IDLE = 60, 20
#: How many times as large the memory may be in the last quarter of a run as in the first, and the shortest run in which
#: this is checked, in seconds.
GROWTH, LONG = 1.05, 600


@dataclass
class Counts:
    """The results of the requests, and the measurements. They are arrays, since an hour has millions of tokens."""

    whole: int = 0
    left: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    first: array = field(default_factory=lambda: array("f"))
    between: array = field(default_factory=lambda: array("f"))
    health: array = field(default_factory=lambda: array("f"))
    memory: list[float] = field(default_factory=list)


def request_of(kind: int) -> dict[str, object]:
    """The parameters of a kind of request."""
    prompt = (PROMPT * (1 + kind % 4))[: 20 + 37 * (kind % 24)] + f"{kind} "
    return {"prompt": prompt, "max_tokens": 8 + 5 * (kind % 9), "seed": kind, "temperature": 0.5 + 0.05 * (kind % 10)}


def expected(model: refgpt.Model) -> list[tuple[str, str]]:
    """Text and finish reason of each kind, from the library."""
    found = []
    for kind in range(KINDS):
        asked = dict(request_of(kind))
        prompt, n = asked.pop("prompt"), asked.pop("max_tokens")
        one = model.generate(prompt, max_new_tokens=n, **asked)
        found.append((one.text, one.finish_reason))
    return found


async def client(
    number: int, port: int, until: float, late: float, want: list[tuple[str, str]], counts: Counts
) -> None:
    """Ask again and again until the time is over."""
    random_kind = random.Random(number)
    while time.perf_counter() < until:
        kind, leaves = random_kind.randrange(KINDS), random_kind.randrange(LEAVES) == 0
        try:
            await asyncio.wait_for(ask(kind, leaves, port, want[kind], counts), late)
        except asyncio.TimeoutError:
            counts.wrong.append(f"late: kind {kind}")
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            counts.wrong.append(f"lost: kind {kind}: {error!r}")


@asynccontextmanager
async def sent(port: int, method: str, path: str, body: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """Send a request, and read the head of its answer, which must have status 200. Returns the reader of its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        writer.write("\r\n".join(head).encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(f"answered with {status!r}")
        await reader.readuntil(b"\r\n\r\n")
        yield reader
    finally:
        writer.close()


async def ask(kind: int, leaves: bool, port: int, want: tuple[str, str], counts: Counts) -> None:
    """Read one stream, and compare it with the expected text."""
    body = json.dumps({**request_of(kind), "stream": True}).encode()
    began = last = time.perf_counter()
    text, reason, n, done = "", None, 0, False
    async with sent(port, "POST", "/v1/completions", body) as answer:
        async for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]\n":
                done = True
                continue
            now = time.perf_counter()
            (counts.first if n == 0 else counts.between).append(now - last)
            last, n = now, n + 1
            (choice,) = json.loads(line[6:])["choices"]
            text, reason = text + choice["text"], choice["finish_reason"] or reason
            if leaves and n == 3:
                counts.left += 1
                return
    counts.tokens += n
    if done and (text, reason) == want:
        counts.whole += 1
    else:
        counts.wrong.append(f"other text after {now - began:.1f} s: kind {kind}: {text!r}, {reason}")


async def read(port: int, path: str) -> str:
    """The answer to GET."""
    async with sent(port, "GET", path) as answer:
        return (await answer.read()).decode()


async def watch(port: int, began: float, late: float, process: subprocess.Popen, counts: Counts) -> None:
    """Once a second, note the server's memory and how long ``/health`` takes; print a line each minute."""
    while True:
        await asyncio.sleep(1)
        counts.memory.append(resident(process))
        asked = time.perf_counter()
        try:
            await asyncio.wait_for(read(port, "/health"), late)
            counts.health.append(time.perf_counter() - asked)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            counts.wrong.append(f"/health: {error!r}")
        seconds = time.perf_counter() - began
        if len(counts.memory) % PROGRESS == 0:
            told = f"{counts.whole} whole texts, {counts.left} left, {len(counts.wrong)} wrong"
            print(f"{seconds:6.0f} s: {told}, {counts.memory[-1]:.0f} MB", flush=True)


async def idle(port: int) -> bool:
    """Whether the server soon becomes idle after its clients have gone."""
    for _ in range(IDLE * 10):
        found = dict(line.rsplit(" ", 1) for line in (await read(port, "/metrics")).splitlines())
        if found["refgpt_requests_running"] == found["refgpt_requests_waiting"] == "0":
            return True
        await asyncio.sleep(0.1)
    return False


def start(arguments: argparse.Namespace) -> tuple[subprocess.Popen, int]:
    """A server in a process of its own, and its port."""
    command = [sys.executable, "-m", "refgpt", "serve", "-q", "--port", "0", "--max-slots", str(arguments.slots)]
    command += ["--max-queue", "4096", *(["-m", arguments.model] if arguments.model else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r":(\d+)/", process.stdout.readline())
    assert found, "the server did not start"
    return process, int(found[1])


def resident(process: subprocess.Popen) -> float:
    """Megabytes of memory that a process takes; NaN if the system does not say."""
    path = Path(f"/proc/{process.pid}/status")
    found = re.search(r"VmRSS:\s+(\d+)", path.read_text()) if path.exists() else None
    return int(found[1]) / 1000 if found else float("nan")


async def load(
    port: int, arguments: argparse.Namespace, want: list[tuple[str, str]], process: subprocess.Popen
) -> Counts:
    """Run the clients, and print the results."""
    counts, began, late = Counts(), time.perf_counter(), arguments.late
    until = began + arguments.seconds
    watcher = asyncio.ensure_future(watch(port, began, late, process, counts))
    await asyncio.gather(*(client(i, port, until, late, want, counts) for i in range(arguments.clients)))
    seconds = time.perf_counter() - began
    watcher.cancel()
    if not await idle(port):
        counts.wrong.append("the server is not idle, although all clients have gone")
    print(f"{arguments.clients} clients, {seconds:.0f} s: {counts.whole} whole texts, {counts.left} left in the middle")
    print(f"wrong: {len(counts.wrong)}", *counts.wrong[:10], sep="\n  ")
    print(f"events per second: {counts.tokens / seconds:.0f}")
    measured = ("to the first token", counts.first), ("between tokens", counts.between), ("of /health", counts.health)
    for name, found in measured:
        if found:
            p50, p99, most = percentiles(found, 50, 99, 100)
            print(f"{name}: median {1000 * p50:.0f} ms, 99 % below {1000 * p99:.0f} ms, most {1000 * most:.0f} ms")
    return counts


def percentiles(found: Sequence[float], *wanted: int) -> list[float]:
    """Some percentiles of the measurements."""
    ordered = sorted(found)
    return [ordered[min(len(ordered) - 1, len(ordered) * one // 100)] for one in wanted]


def grew(memory: Sequence[float]) -> bool:
    """Print the memory in the first and the last quarter of a run. Returns whether it grew over a long run."""
    n = len(memory) // 4
    if not n:
        return False
    first, last = median(memory[:n]), median(memory[-n:])
    print(f"memory of the server: {first:.0f} MB in the first quarter of the time, {last:.0f} MB in the last (medians)")
    return len(memory) >= LONG and last > GROWTH * first


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that it ends the servers that it has started."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))


def main() -> None:
    """Start a server, load it, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    parser.add_argument("--clients", type=int, default=sized(64, 8))
    parser.add_argument("--seconds", type=float, default=sized(60.0, 5.0))
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--late", type=float, default=60.0, help="seconds within which an answer has to be whole")
    arguments = parser.parse_args()
    end_on_sigterm()
    want = expected(refgpt.load(arguments.model))
    process, port = start(arguments)
    try:
        counts = asyncio.run(load(port, arguments, want, process))
    finally:
        process.terminate()
        status = process.wait()
    assert status == 0, "the server did not end in order"
    if grew(counts.memory) or counts.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
