"""Load on a server: streams that begin again as soon as they end, for as long as it is asked for, on this machine.

    python -m benchmarks.serving [--clients 64] [--seconds 60] [-m MODEL] [--slots 16]

Every answer is compared with ``Model.generate``: a text that is lost, cut, mixed with another's or late is counted,
and fails the run. Some clients leave in the middle of a stream. It prints the rate, the time to the first token and
between tokens, and how much the server's memory grew after the first tenth of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import refgpt
from benchmarks.quick import sized

#: What is asked for: kinds of requests with their prompts' and texts' lengths, each with its own seed.
KINDS = 24
PROMPT = "There was once upon a time a poor man who had nothing but a little house and a goat. "
#: A stream that says nothing for so many seconds is late.
LATE = 60.0
#: One of so many requests is left by its client.
LEAVES = 20


@dataclass
class Counts:
    """What became of the requests."""

    whole: int = 0
    left: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def request_of(kind: int) -> dict[str, object]:
    """The parameters of a kind of request."""
    prompt = (PROMPT * (1 + kind % 4))[: 20 + 37 * kind]
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


async def client(number: int, port: int, until: float, want: list[tuple[str, str]], counts: Counts) -> None:
    """Ask again and again until the time is over."""
    random_kind = random.Random(number)
    while time.perf_counter() < until:
        kind, leaves = random_kind.randrange(KINDS), random_kind.randrange(LEAVES) == 0
        try:
            await asyncio.wait_for(ask(kind, leaves, port, want[kind], counts), LATE)
        except asyncio.TimeoutError:
            counts.wrong.append(f"late: kind {kind}")
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            counts.wrong.append(f"lost: kind {kind}: {error!r}")


async def ask(kind: int, leaves: bool, port: int, want: tuple[str, str], counts: Counts) -> None:
    """One stream, compared with what it should be."""
    body = json.dumps({**request_of(kind), "stream": True}).encode()
    began = last = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = ["POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        writer.write("\r\n".join(head).encode() + body)
        text, reason, n, done = "", None, 0, False
        async for line in reader:
            if n == 0 and line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise ValueError(line.decode())
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
    finally:
        writer.close()


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
    """Megabytes of memory that a process takes; NaN where the system does not tell."""
    path = Path(f"/proc/{process.pid}/status")
    found = re.search(r"VmRSS:\s+(\d+)", path.read_text()) if path.exists() else None
    return int(found[1]) / 1000 if found else float("nan")


async def load(
    port: int, arguments: argparse.Namespace, want: list[tuple[str, str]], process: subprocess.Popen
) -> None:
    """Run the clients, and print what became of them."""
    counts, began = Counts(), time.perf_counter()
    until = began + arguments.seconds
    clients = [asyncio.ensure_future(client(i, port, until, want, counts)) for i in range(arguments.clients)]
    await asyncio.sleep(arguments.seconds / 10)
    early = resident(process)
    await asyncio.gather(*clients)
    seconds, late = time.perf_counter() - began, resident(process)
    print(f"{arguments.clients} clients, {seconds:.0f} s: {counts.whole} whole texts, {counts.left} left in the middle")
    print(f"wrong: {len(counts.wrong)}", *counts.wrong[:10], sep="\n  ")
    print(f"events per second: {counts.tokens / seconds:.0f}")
    for name, found in (("to the first token", counts.first), ("between tokens", counts.between)):
        found.sort()
        if found:
            p50, p99 = found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)]
            print(f"{name}: median {1000 * p50:.0f} ms, 99 of 100 below {1000 * p99:.0f} ms")
    print(f"memory of the server: {early:.0f} MB after a tenth of the time, {late:.0f} MB at the end")
    if counts.wrong:
        raise SystemExit(1)


def main() -> None:
    """Start a server, load it, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    parser.add_argument("--clients", type=int, default=sized(64, 8))
    parser.add_argument("--seconds", type=float, default=sized(60.0, 3.0))
    parser.add_argument("--slots", type=int, default=16)
    arguments = parser.parse_args()
    want = expected(refgpt.load(arguments.model))
    process, port = start(arguments)
    try:
        asyncio.run(load(port, arguments, want, process))
    finally:
        process.terminate()
        assert process.wait() == 0, "the server did not end in order"


if __name__ == "__main__":
    main()
