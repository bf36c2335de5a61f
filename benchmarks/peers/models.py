"""The one model in every engine's own form, all made from the same checkpoint; what is there already is kept.

    python -m benchmarks.peers.models DIRECTORY FORM

makes one form, so that whatever a peer's converter does, it does in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import refgpt
from benchmarks.peers.families import FAMILIES, write_random
from benchmarks.peers.ggml_file import write_ggml
from benchmarks.peers.lineup import CHECKPOINT, OPENVINO, REFERENCE, TWIN
from benchmarks.peers.openvino_model import make_compressed, make_float16
from benchmarks.peers.questions import N_REFERENCE, prompt
from benchmarks.peers.twin import QUANTISED, quantise, write_twin
from refgpt._open import open_model
from refgpt.conversion import convert

Maker = Callable[[Path, Path], None]


def make_checkpoint(n_layer: int, family: str, models: Path, directory: Path) -> None:
    """The float16 checkpoint that all the others are made from."""
    partial = directory.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_random(partial, family, n_layer)
    partial.rename(directory)


def make_reference(models: Path, path: Path) -> None:
    """The specification's logits after a prompt."""
    model = refgpt.load(models / CHECKPOINT, backend="numpy")
    np.save(path, model.logits(prompt(N_REFERENCE))[-1])


def make_gguf(models: Path, path: Path) -> None:
    """The checkpoint as refgpt writes it for llama.cpp, which runs this family."""
    directory = path.with_suffix(".directory")
    shutil.rmtree(directory, ignore_errors=True)
    checkpoint, tokenizer = open_model(models / CHECKPOINT)
    convert(checkpoint, tokenizer, directory, "gguf")
    (file,) = directory.glob("*.gguf")
    file.rename(path)
    shutil.rmtree(directory)


def with_tokenizer(checkpoint: Path, directory: Path) -> None:
    """The checkpoint again, by links, and the tokenizer that CTranslate2's converter insists on: a word for each id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file in checkpoint.iterdir():
        os.link(file, directory / file.name)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    words = {f"<{i}>": i for i in range(config["vocab_size"])}
    end = f"<{config['eos_token_id']}>"
    Tokenizer(WordLevel(words, unk_token=end)).save(str(directory / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "unk_token": end}
    (directory / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")


def make_ctranslate2(quantization: str, models: Path, directory: Path) -> None:
    """By CTranslate2's own converter."""
    from ctranslate2.converters import TransformersConverter

    source, partial = models / "ctranslate2-source", directory.with_suffix(".partial")
    with_tokenizer(models / CHECKPOINT, source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if "rotary_pct" in config:  # CTranslate2 4.8 looks for names that transformers 5 has changed
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        GPTNeoXConfig.rotary_pct = config["rotary_pct"]
        GPTNeoXForCausalLM.embed_out = property(lambda model: model.lm_head)
    converter = TransformersConverter(str(source), low_cpu_mem_usage=True)
    converter.convert(str(partial), quantization=quantization, force=True)
    shutil.rmtree(source)
    partial.rename(directory)


def makers(n_layer: int, family: str = "gptj") -> dict[str, Maker]:
    """How every form of ``lineup.FORMS`` is made."""
    return {
        CHECKPOINT: partial(make_checkpoint, n_layer, family),
        REFERENCE: make_reference,
        TWIN: make_gguf if family != "gptj" else lambda models, path: write_twin(models / CHECKPOINT, path),
        **{f"twin-{kind}.gguf": partial(make_quantised, kind) for kind in QUANTISED},
        "ggml-q4_0.bin": lambda models, path: write_ggml(models / CHECKPOINT, path),
        **{f"ctranslate2-{kind}": partial(make_ctranslate2, kind) for kind in ("int8", "float32")},
        OPENVINO: lambda models, directory: make_float16(models / CHECKPOINT, directory),
        **{f"openvino-int{bits}": partial(make_int, bits) for bits in (8, 4)},
    }


def make_quantised(kind: str, models: Path, path: Path) -> None:
    quantise(models / TWIN, path, kind, os.cpu_count() or 1)


def make_int(bits: int, models: Path, directory: Path) -> None:
    make_compressed(bits, models / OPENVINO, directory)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("form")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--family", choices=FAMILIES, default="gptj")
    args = parser.parse_args()
    makers(args.layers, args.family)[args.form](args.models, args.models / args.form)


if __name__ == "__main__":
    main()
