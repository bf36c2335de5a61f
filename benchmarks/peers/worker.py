"""One engine in a process of its own, which answers questions line by line: JSON in, JSON out.

    python -m benchmarks.peers.worker ENGINE PATH PRECISION THREADS

The first line that comes back says that the model is loaded, or why not. A question is {"do": "text", "n_prompt": 32,
"n_new": 16}, "texts" (with "n_seqs") or "logits"; its answer has the seconds, or "error". The process ends with its
input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import peak_bytes
from benchmarks.peers.engines import Adapter
from benchmarks.peers.questions import prompt


def answer(adapter: Adapter, question: dict[str, Any]) -> dict[str, Any]:
    match question:
        case {"do": "text", "n_prompt": n_prompt, "n_new": n_new}:
            prefill, decode = adapter.text(prompt(n_prompt), n_new)
            return {"prefill": prefill, "decode": decode}
        case {"do": "texts", "n_seqs": n_seqs, "n_prompt": n_prompt, "n_new": n_new}:
            return {"decode": adapter.texts([prompt(n_prompt, seq) for seq in range(n_seqs)], n_new)}
        case {"do": "logits", "n_prompt": n_prompt, "path": path}:
            np.save(path, np.asarray(adapter.logits(prompt(n_prompt)), np.float32))
            return {}
    raise ValueError(f"unknown question {question}")


def main() -> None:
    engine, path, precision, threads = sys.argv[1:]
    # Libraries may print what they like: answers have a channel of their own, everything else goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=answers)

    try:
        start = time.perf_counter()
        module = import_module(f"benchmarks.peers.engines.{engine}")
        imported = time.perf_counter()
        adapter = module.load(Path(path), precision, int(threads))
        loaded = time.perf_counter()
    except Exception as fault:  # whatever a peer's library raises
        say(error=f"{type(fault).__name__}: {fault}")
        return
    times = {"import_seconds": imported - start, "load_seconds": loaded - imported}
    say(about=adapter.about, n_bytes=adapter.n_bytes, **times, peak_bytes=peak_bytes())
    for line in sys.stdin:
        try:
            found = answer(adapter, json.loads(line))
        except Exception as fault:
            say(error=f"{type(fault).__name__}: {fault}")
        else:
            say(**found, peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
