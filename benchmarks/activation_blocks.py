"""What the size of the blocks in which activations are rounded costs the default model.

    python -m benchmarks.activation_blocks TEXT... --checkpoints CALIBRATED...

Activations that are multiplied with quantised weights are rounded to 8 bits, and 32 neighbours share a scale. Kernels
would save up to one multiplication for each block and row if more neighbours shared a scale, or if scales were powers
of two. Here the specification runs with activations rounded in blocks of 32, 64, 128 and 256 and in whole rows, and
with such scales. For every format of the weights: by how much the perplexity rises over float32's, and the mean
divergence (KL, in nats) of the next-token distribution from float32's. "Give or take" is a standard error: of the
change of perplexity, and of what rounding activations adds to the divergence.

In large models a few inputs are much larger than the others; in this one they are not. ``--outliers 20`` makes one
input of each block's matrices 20 times as large, and the weights that read it 20 times smaller: in exact arithmetic
the model's outputs are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

import refgpt
from benchmarks.quick import sized
from refgpt.numbers.leaves import Leaf, widen
from refgpt.runtime import SpecEngine
from refgpt.runtime.spec_engine import kept_params
from refgpt.spec import gptj
from refgpt.spec.gptj import Params
from refgpt.spec.ops import linear
from tests.helpers.likelihoods import log_probabilities

WINDOW = 512
ROW = 1 << 30  # larger than any row
Round = Callable[[np.ndarray], np.ndarray]


def rounded(x: np.ndarray, block: int, powers_of_two: bool = False) -> np.ndarray:
    """Rows [t, n] rounded to 8 bits with a scale for each ``block`` neighbours."""
    n_rows, n = x.shape
    block = min(block, n)
    padded = np.pad(x, ((0, 0), (0, -n % block))).reshape(n_rows, -1, block)
    scale = np.abs(padded).max(axis=-1, keepdims=True) / np.float32(127)
    if powers_of_two:
        scale = np.exp2(np.ceil(np.log2(np.maximum(scale, np.float32(2**-100)))))
    integers = np.rint(padded / np.where(scale == 0, 1, scale))
    return np.asarray(integers * scale).reshape(n_rows, -1)[:, :n]


ROUNDINGS: dict[str, Round] = {
    "none": lambda x: x,
    "blocks of 32": lambda x: rounded(x, 32),
    "blocks of 64": lambda x: rounded(x, 64),
    "blocks of 128": lambda x: rounded(x, 128),
    "blocks of 256": lambda x: rounded(x, 256),
    "rows": lambda x: rounded(x, ROW),
    "blocks of 32, scales 2^n": lambda x: rounded(x, 32, powers_of_two=True),
}


@contextmanager
def activations_rounded(by: Round) -> Iterator[None]:
    """Within the block, the specification's linear layers round what they read."""

    def rounding(x: np.ndarray, w: Leaf, b: np.ndarray | None = None) -> np.ndarray:
        return linear(by(x), w, b)

    with patch.object(gptj, "linear", rounding):
        yield


def with_outliers(params: Params, factor: float) -> Params:
    """The same function with one large input in each block, the one that has the largest weight in its LayerNorm."""

    def moved(block: gptj.Block) -> gptj.Block:
        at = int(np.argmax(np.abs(block.ln_w)))
        leaves = {}
        for name in ("ln_w", "ln_b", "wq", "wk", "wv", "w_in"):
            leaf = widen(getattr(block, name)).copy()
            if leaf.ndim == 1:
                leaf[at] *= factor
            else:
                leaf[:, at] /= factor
            leaves[name] = leaf
        return replace(block, **leaves)

    return replace(params, blocks=tuple(map(moved, params.blocks)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what larger blocks of activations cost the default model.")
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=sized(10_000, 64), help="of each text, at most (default: 10000)")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="calibrated conversions of the model")
    parser.add_argument("--outliers", type=float, default=1.0, metavar="FACTOR")
    parser.add_argument("--weights", nargs="+", default=["f32", "q8", "q4", "q3"], help="default: f32 q8 q4 q3")
    arguments = parser.parse_args()
    model = refgpt.load(dtype="f32")
    windows: list[Sequence[int]] = []
    for path in arguments.texts:
        ids = model.tokenizer.encode(path.read_text(encoding="utf-8"))[: arguments.tokens]
        windows += [ids[i : i + WINDOW] for i in range(0, len(ids) - 1, WINDOW)]
    said = np.concatenate([window[1:] for window in windows])
    at = np.arange(len(said))
    wide = model.checkpoint.params.map(lambda _, leaf: widen(leaf))
    base = log_probabilities(SpecEngine(wide, model.config), windows, np.float32)
    source = with_outliers(wide, arguments.outliers)
    ways = {kind: kept_params(source, kind) for kind in arguments.weights}
    ways |= {path.name: refgpt.load(path).checkpoint.params for path in arguments.checkpoints}
    print(f"{len(said)} tokens; float32 has a perplexity of {np.exp(-base[at, said].mean()):.3f}\n")
    print("| weights | activations rounded in | perplexity | give or take | KL | give or take |")
    print("|---|---|---:|---:|---:|---:|")
    for what, kept in ways.items():
        params, unrounded = kept.map(lambda _, leaf: widen(leaf)), None
        for how, by in ROUNDINGS.items():
            with activations_rounded(by):
                found = log_probabilities(SpecEngine(params, model.config), windows, np.float32)
            rise = (base[at, said] - found[at, said]).astype(np.float64)
            divergence = (np.exp(base) * (base - found)).sum(1).astype(np.float64)
            unrounded = divergence if unrounded is None else unrounded
            root = len(said) ** 0.5
            perplexity = f"{100 * np.expm1(rise.mean()):+.3f} % | {100 * rise.std() / root:.3f} %"
            kl = f"{divergence.mean():.6f} | {(divergence - unrounded).std() / root:.6f}"
            print(f"| {what} | {how} | {perplexity} | {kl} |", flush=True)


if __name__ == "__main__":
    main()
