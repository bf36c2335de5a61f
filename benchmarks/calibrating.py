"""Time and memory of a calibrated conversion to 4 bits, for a model of GPT-J-6B's size.

    python -m benchmarks.calibrating DIRECTORY --layers 2

writes a float16 checkpoint of random weights (0.8 GB a layer and for embeddings and head; once), rounds it for random
tokens, and estimates the time for 28 layers: the layers are alike, so each takes as long as the last one. The time does
not depend on the numbers; quality cannot be measured with random weights.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.memory import peak_bytes
from benchmarks.peers.checkpoint import gptj_config, write_checkpoint
from benchmarks.quick import sized
from refgpt._open import open_model
from refgpt.conversion.calibrate import calibrated
from refgpt.conversion.calibration_text import LONGEST_WINDOW, N_TOKENS

ALL_LAYERS = 28


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the calibrated conversion of a model of GPT-J-6B's size.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=2, help="at least 2 (default: 2)")
    parser.add_argument("--tokens", type=int, default=sized(N_TOKENS, 256), help="default: %(default)s")
    arguments = parser.parse_args()
    source_path = arguments.directory / f"gptj-{arguments.layers}"
    if not (source_path / "model.safetensors").exists():
        write_checkpoint(source_path, gptj_config(arguments.layers))
    source, _ = open_model(source_path)
    length = min(LONGEST_WINDOW, arguments.tokens)
    ids = np.random.default_rng(0).integers(0, source.config.n_vocab, (arguments.tokens // length, length))
    started, seen = time.monotonic(), dict[str, float]()

    def watch(name: str, n_done: int, n_total: int) -> None:
        seen[name] = time.monotonic() - started
        print(f"{name:<18} {seen[name]:8.1f} s", flush=True)

    destination = arguments.directory / "calibrated"
    shutil.rmtree(arguments.directory / ".calibrated.calibration", ignore_errors=True)
    with calibrated(source, "q4", ids, destination, watch):
        pass
    last = arguments.layers - 1
    first, layer = seen["blocks.0.w_out"], seen[f"blocks.{last}.w_out"] - seen[f"blocks.{last - 1}.w_out"]
    head = seen["w_head"] - seen[f"blocks.{last}.w_out"]
    hours = (first + layer * (ALL_LAYERS - 1) + head) / 3600
    print(f"\n{arguments.tokens} tokens: {layer:.0f} s a layer, {hours:.2f} hours for {ALL_LAYERS} layers", end="")
    print(f", at most {(peak_bytes() or 0) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
