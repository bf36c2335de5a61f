"""What fewer bits a weight, and a narrow attention cache, cost the default model on texts that it has not read.

    python -m benchmarks.accuracy TEXT... --calibrate OTHER_TEXT...

For every way of keeping the weights, or keys and values: by how much the perplexity rises over float32's, the mean
divergence (KL, in nats) of the next-token distribution from float32's, and the rms error of the matrices beside that of
ggml's format. The rows of ggml round the same matrices to the same number of bits as its reference quantisers do.
With ``--calibrate`` there are rows of ``refgpt convert --calibrate``; its texts should not be among the others. With
``--transformers`` there is a row for transformers' bfloat16 too, in which everything is rounded to it (needs torch and
transformers).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import refgpt
from refgpt.conversion import convert
from refgpt.conversion.calibration_text import N_TOKENS
from refgpt.numbers.dtypes import KV_DTYPES
from refgpt.numbers.leaves import widen
from refgpt.runtime import Runtime
from refgpt.spec.gptj import Params
from tests.helpers.ggml_quantisers import with_ggml
from tests.helpers.likelihoods import log_probabilities

WINDOW = 512


def rms_error(params: Params, wide: Params) -> float:
    pairs = [(widen(a), b) for (_, a), (_, b) in zip(params.items(), wide.items(), strict=True) if b.ndim == 2]
    return float(np.sqrt(sum(np.square(a - b).sum() for a, b in pairs) / sum(b.size for _, b in pairs)))


class Transformers:
    """The model in transformers, in bfloat16; its weights are those of ``engine``."""

    def __init__(self, path: Path, engine: Runtime) -> None:
        import torch
        import transformers

        torch.set_grad_enabled(False)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self.ids, self.kept = torch.tensor, engine.kept

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        found: np.ndarray = self.model(self.ids([list(ids)])).logits[0].float().numpy()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what fewer bits cost the default model.")
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=30_000, help="of each text, at most (default: 30000)")
    parser.add_argument("--calibrate", type=Path, nargs="+", help="texts to calibrate 4 and 3 bits with")
    parser.add_argument("--calibrate-tokens", type=int, default=N_TOKENS, help="of them (default: %(default)s)")
    parser.add_argument("--transformers", action="store_true", help="measure transformers' bfloat16 too")
    arguments = parser.parse_args()
    model = refgpt.load(dtype="f32")
    windows = []
    for path in arguments.texts:
        ids = model.tokenizer.encode(path.read_text(encoding="utf-8"))[: arguments.tokens]
        windows += [ids[i : i + WINDOW] for i in range(0, len(ids) - 1, WINDOW)]
    said = np.concatenate([window[1:] for window in windows])
    wide = model.checkpoint.params.map(lambda _, leaf: widen(leaf))
    ways: dict[str, Callable[[], Any]] = {
        "f16": lambda: Runtime(wide, model.config, dtype="f16"),
        "bf16": lambda: Runtime(wide, model.config, dtype="bf16"),
        "bf16, arithmetic in bf16": lambda: Runtime(wide, model.config, dtype="bf16", compute="bf16"),
    }
    if arguments.transformers:
        ways["transformers bfloat16"] = lambda: Transformers(model.checkpoint.path, ways["bf16"]())
    for dtype in ("q8", "q4", "q3"):
        ways[dtype] = lambda dtype=dtype: Runtime(wide, model.config, dtype=dtype)
        ways[f"{dtype}, activations in float32"] = lambda dtype=dtype: Runtime(
            ways[dtype]().kept(), model.config, dtype="f32"
        )
        ways[f"ggml, as many bits as {dtype}, activations in float32"] = lambda dtype=dtype: Runtime(
            with_ggml(wide, dtype), model.config
        )
    folder = tempfile.TemporaryDirectory()
    for dtype in ("q4", "q3") if arguments.calibrate else ():
        out, how = Path(folder.name) / dtype, {"calibrate_tokens": arguments.calibrate_tokens}
        convert(model.checkpoint, model.tokenizer, out, dtype=dtype, calibrate=arguments.calibrate, **how)
        kept = refgpt.load(out).checkpoint.params
        ways[f"{dtype}, calibrated"] = lambda kept=kept: Runtime(kept, model.config)
        ways[f"{dtype}, calibrated, activations in float32"] = lambda kept=kept: Runtime(
            kept, model.config, dtype="f32"
        )
    for kv_dtype in KV_DTYPES[1:]:
        ways[f"f32, keys and values in {kv_dtype}"] = lambda kv_dtype=kv_dtype: Runtime(
            wide, model.config, kv_dtype=kv_dtype
        )
    for dtype in ("q8", "q4"):
        ways[f"{dtype}, keys and values in q8"] = lambda dtype=dtype: Runtime(
            wide, model.config, dtype=dtype, kv_dtype="q8"
        )
    base = log_probabilities(Runtime(wide, model.config), windows, np.float32)
    at = np.arange(len(said))
    print(f"{len(said)} tokens; float32 has a perplexity of {np.exp(-base[at, said].mean()):.3f}\n")
    print("| weights | perplexity | KL | rms error |\n|---|---:|---:|---:|")
    for what, make in ways.items():
        engine = make()
        found = log_probabilities(engine, windows, np.float32)
        rise = np.exp((base[at, said] - found[at, said]).mean(dtype=np.float64)) - 1
        divergence = (np.exp(base) * (base - found)).sum(1).mean(dtype=np.float64)
        print(f"| {what} | {100 * rise:+.3f} % | {divergence:.6f} | {rms_error(engine.kept(), wide):.3e} |", flush=True)


if __name__ == "__main__":
    main()
