"""GPT-J-6B's size with random weights: converting it to 8 and 4 bits, and loading what was converted.

    python -m benchmarks.converting DIRECTORY --layers 28

writes a float16 checkpoint (12.1 GB, once), converts it, and starts processes that load the result and write one token.
It needs 23 GB of disk. The table shows the medians of three; the exit status is 1 if one of these does not hold:

- converting takes at most 2 GB of memory,
- a warm process has its first token within 2 seconds of its start,
- its memory stays within the weights, the attention cache and 200 MB,
- a second one has next to no weights of its own: the two share the pages of the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.checkpoint import gptj_config, write_checkpoint
from benchmarks.quick import QUICK, rounds

N_PROMPT, ROUNDS = 16, rounds(3)
MOST_FOR_CONVERTING, MOST_BESIDE, MOST_SECONDS = 2e9, 200e6, 2.0

CONVERT = """
import json, os, sys
from benchmarks.memory import peak_bytes
from refgpt.cli import main
code = main(["convert", sys.argv[1], sys.argv[2], "--dtype", sys.argv[3]])
print(json.dumps({"peak": peak_bytes(), "cpu": sum(os.times()[:2])}))
sys.exit(code)
"""

LOAD = """
import json, sys, time
import refgpt
from benchmarks.memory import own_bytes, peak_bytes
model = refgpt.load(sys.argv[1])
prompt = list(range(100, 100 + int(sys.argv[2])))
model.generate(prompt, max_new_tokens=1, temperature=0)
done = time.time()
print(json.dumps({"done": done, "peak": peak_bytes(), "own": own_bytes(), "weights": model.engine.n_bytes,
                  "cache": model.engine.cache_bytes(len(prompt) + 1)}), flush=True)
sys.stdin.readline()
"""


class Process:
    """One that has loaded the model and waits."""

    def __init__(self, path: Path) -> None:
        started = time.time()
        command = [sys.executable, "-c", LOAD, str(path), str(N_PROMPT)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.found: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.seconds = self.found["done"] - started

    def end(self) -> None:
        self._process.communicate("\n")


def measure(source: Path, dtype: str, directory: Path) -> tuple[dict[str, object], list[str]]:
    """A row of the table, and what does not hold."""
    packed = directory / f"packed-{dtype}"
    row: dict[str, object] = {"dtype": dtype}
    broken = []
    if not packed.exists():
        started = time.time()
        run = subprocess.run(
            [sys.executable, "-c", CONVERT, str(source), str(packed), dtype],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = json.loads(run.stdout.splitlines()[-1])
        row |= {
            "convert s": round(time.time() - started),
            "its CPU s": round(found["cpu"]),
            "its peak GB": round(found["peak"] / 1e9, 2),
        }
        if found["peak"] > MOST_FOR_CONVERTING:
            broken.append(f"{dtype}: converting took {found['peak']} bytes")
    Process(packed).end()  # warms the page cache
    seconds, peaks = [], []
    for _ in range(ROUNDS):
        process = Process(packed)
        seconds.append(process.seconds)
        peaks.append(process.found["peak"] - process.found["weights"] - process.found["cache"])
        process.end()
    first = Process(packed)
    second = Process(packed)
    own = second.found["own"]
    second.end()
    first.end()
    row |= {
        "weights GB": round(first.found["weights"] / 1e9, 2),
        "first token s": round(median(seconds), 2),
        "beside weights and cache MB": round(median(peaks) / 1e6),
        "of its own, a second process MB": round(own / 1e6),
    }
    if median(seconds) > MOST_SECONDS:
        broken.append(f"{dtype}: the first token took {median(seconds):.2f} s")
    broken += [
        f"{dtype}: {what} is {n} bytes"
        for what, n in (("memory beside weights and cache", median(peaks)), ("a second process's own memory", own))
        if n > MOST_BESIDE
    ]
    return row, broken


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert and load a model of GPT-J-6B's size.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    source = arguments.directory / "gptj"
    if not (source / "model.safetensors").exists():
        write_checkpoint(source, gptj_config(arguments.layers))
    rows, broken = zip(*(measure(source, dtype, arguments.directory) for dtype in ("q8", "q4", "q3")), strict=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for row in rows:
        print("| " + " | ".join(str(row.get(key, "")) for key in keys) + " |")
    faults = [fault for some in broken for fault in some]
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults and not QUICK else 0


if __name__ == "__main__":
    sys.exit(main())
