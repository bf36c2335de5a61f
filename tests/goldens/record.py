"""Record goldens again: ``python -m tests.goldens.record WHAT``, from the root, with ``pip install ".[golden]"``."""

from __future__ import annotations

import argparse
from importlib import import_module

#: What can be recorded, each by the module of that name in ``recorders``.
RECORDERS = {
    "activations": "logits, hidden states and attention patterns of small models: PyTorch's",
    "families": "logits and hidden states of small GPT-2, GPT-Neo and GPT-NeoX models: PyTorch's",
    "gradients": "gradients of small models: PyTorch's autograd, in float64",
    "family_gradients": "the same of GPT-2, GPT-Neo and GPT-NeoX",
    "family_adapters": "adapters of GPT-2, GPT-Neo and GPT-NeoX, and logits of PEFT with them",
    "optimisers": "steps of PyTorch's AdamW and Muon",
    "adapters": "an adapter that PEFT writes, and its logits with that and with one that refgpt writes",
    "default_model": "text and logits of the default model: PyTorch's",
    "sampling": "what transformers' logits processors keep",
    "mesh_random": "keys, random numbers and draws of JAX, as Mesh Transformer JAX asks for them",
    "decoding": "what transformers' generate() writes with each filter and with beams, and what its filters keep",
    "gpt2_tokens": "ids of GPT-2's tokenizer: transformers'. DIRECTORY holds its vocab.json and merges.txt",
    "token_offsets": "ids and offsets of characters: transformers' fast tokenizers",
    "torch_files": "files that PyTorch and transformers write",
    "ctranslate2_files": "files that CTranslate2 writes, and its logits; in each version that the recorder names",
    "family_files": "directories that transformers writes for small models of every family, and its logits",
    "llama_cpp": "logits that llama.cpp computes from GGUF files of GPT-2 and GPT-NeoX that refgpt writes",
    "lm_eval": "log-likelihoods, texts and metrics of lm-eval's Hugging Face backend",
    "conversion": "logits that transformers computes from what refgpt converts",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.goldens.record", description="Record goldens again.")
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, about in RECORDERS.items():
        command = commands.add_parser(name, help=about)
        if name == "gpt2_tokens":
            command.add_argument("directory", metavar="DIRECTORY")
    arguments = vars(parser.parse_args())
    import_module(f"tests.goldens.recorders.{arguments.pop('what')}").main(**arguments)


if __name__ == "__main__":
    main()
