"""Hold transformers (on torch) to what is written here, and record its logits in conversion.npz.

It fails if transformers loads a directory with other bits, misses a tensor or tokenises otherwise; the tests then
hold this package's logits to those recorded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from refgpt._open import open_model
from refgpt.conversion import gguf, huggingface
from refgpt.numbers.leaves import widen
from refgpt.spec.gptj import Params
from tests.goldens import HERE
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

GOLDENS = HERE / "conversion.npz"
CONFIG = tiny_config(n_vocab=61, n_ctx=16, bos_id=0, eos_id=0)
IDS = [5, 60, 17, 17, 2, 33, 0, 8]
TEXT = "It's an old toad!\nWell."
#: Of the written directories: the weights' dtype, whether the mask is GPT-JT's, the largest shard.
CASES = {
    "f32": ("f32", False, 5_000_000_000),
    "f16": ("f16", False, 5_000_000_000),
    "bf16": ("bf16", False, 5_000_000_000),
    "prefix": ("f32", True, 5_000_000_000),
    "shards": ("f32", False, 1 << 14),
}


def params(case: str) -> Params:
    return random_params(CONFIG, seed=11, dtype=CASES[case][0])


def write(case: str, directory: Path) -> Path:
    """A directory of the test's own, converted by the package into another."""
    wide = params(case).map(lambda _, leaf: widen(leaf))
    source = write_tokenizer(write_model(directory / "source", CONFIG, wide, prefix=CASES[case][1] or None))
    checkpoint, tokenizer = open_model(source)
    written = directory / "written"
    written.mkdir()
    before = huggingface.LARGEST_SHARD
    huggingface.LARGEST_SHARD = CASES[case][2]
    try:
        huggingface.write(checkpoint, tokenizer, CASES[case][0], written)
    finally:
        huggingface.LARGEST_SHARD = before
    return written


def again(written: Path, directory: Path) -> Path:
    """The same through GGUF, so that the tokenizer's files are this package's own."""
    for name, target, path in (("gguf", gguf, written), ("end", huggingface, directory / "gguf")):
        (directory / name).mkdir()
        target.write(*open_model(path), None, directory / name)
    return directory / "end"


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.helpers.writers import state_dict

    logits = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            written = write(case, Path(directory))
            model, info = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True, dtype="auto")
            assert not info["missing_keys"] and not info["mismatched_keys"], info
            assert all(name.endswith("attn.bias") for name in info["unexpected_keys"]), info
            for name, want in state_dict(params(case)).items():
                got = model.state_dict()[name]
                assert (got.float().numpy() == widen(want)).all(), (case, name)
            matrices = {tensor.dtype for tensor in model.state_dict().values() if tensor.ndim == 2}
            assert matrices == {{"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[CASES[case][0]]}
            ids = open_model(written)[1].encode(TEXT)
            for path in (written, again(written, Path(directory))):
                tokenizer = AutoTokenizer.from_pretrained(path)
                assert tokenizer(TEXT)["input_ids"] == ids and tokenizer.decode(ids) == TEXT
                assert tokenizer.eos_token_id == CONFIG.eos_id
            assert model.config.eos_token_id == CONFIG.eos_id and model.config.n_inner == CONFIG.d_ff
            if case == "prefix":
                continue  # these versions of transformers know no other mask than the causal one
            with torch.no_grad():
                logits[case] = model.float()(torch.tensor([IDS])).logits[0].numpy()
    np.savez(GOLDENS, **logits)
    print(f"wrote {GOLDENS}")
