"""Records family_files/: directories that transformers itself writes for small models of each family, and its logits.

A directory is what ``save_pretrained`` leaves, or config.json beside a pytorch_model.bin as older versions left it. The
logits are those of the model in float64.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests import goldens

HERE = goldens.HERE / "family_files"
LOGITS = HERE / "logits.npz"
IDS = [5, 40, 17, 17, 2, 33, 0, 8, 1, 29, 6]

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 41, "n_inner": 20}
NEO = {"num_layers": 3, "num_heads": 2, "hidden_size": 8, "max_position_embeddings": 16, "vocab_size": 41}
NEOX = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "max_position_embeddings": 16}
NEOX |= {"vocab_size": 41, "intermediate_size": 20, "bos_token_id": 0, "eos_token_id": 0}
#: Of each directory: the model's class, what its configuration says, the dtype, and how it is saved.
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "gpt2": ("GPT2", SMALL, "float32", "safetensors"),
    "gpt2_scaled": (
        "GPT2",
        SMALL | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        "float32",
        "body",
    ),
    "gpt2_half": ("GPT2", SMALL, "float16", "bin"),
    "gpt2_head_alone": ("GPT2", SMALL | {"n_inner": None}, "float32", "head"),
    "gpt_neo": (
        "GPTNeo",
        NEO | {"attention_types": [[["global", "local", "local"], 1]], "window_size": 3},
        "float32",
        "bin",
    ),
    "gpt_neo_shards": (
        "GPTNeo",
        NEO | {"attention_types": [[["global"], 1], [["local", "global"], 1]], "window_size": 4},
        "float32",
        "shards",
    ),
    "gpt_neox": ("GPTNeoX", NEOX, "float32", "safetensors"),
    "gpt_neox_sequential": (
        "GPTNeoX",
        NEOX
        | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast"}
        | {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
        "float32",
        "safetensors",
    ),
    "gpt_neox_brain": ("GPTNeoX", NEOX, "bfloat16", "bin"),
}


def main() -> None:
    import torch
    import transformers

    logits = {}
    for case, (family, settings, dtype, how) in CASES.items():
        torch.manual_seed(len(logits))
        ids = {"bos_token_id": 0, "eos_token_id": 0}
        config = getattr(transformers, f"{family}Config")(**ids | settings, initializer_range=0.4)
        name = {"GPT2": "GPT2LMHeadModel", "GPTNeo": "GPTNeoForCausalLM", "GPTNeoX": "GPTNeoXForCausalLM"}[family]
        model = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # LayerNorms and biases too
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        model = model.to(getattr(torch, dtype))
        directory = HERE / case
        directory.mkdir(parents=True, exist_ok=True)
        if how in ("safetensors", "shards"):
            model.save_pretrained(directory, max_shard_size="6KB" if how == "shards" else "5GB")
        else:
            model.config.save_pretrained(directory)
            state = dict(model.state_dict())
            body = {"GPT2": "transformer.", "GPTNeo": "transformer.", "GPTNeoX": "gpt_neox."}[family]
            if how == "body":  # as OpenAI's: no head, nothing before the names
                state = {key.removeprefix(body): tensor for key, tensor in state.items() if key.startswith(body)}
                body = ""
            if how == "head":  # as transformers 5 may keep it: the head, and not the embedding
                state.pop("transformer.wte.weight")
            for i in range(config.num_hidden_layers):  # the buffers of older versions
                kind = {"GPT2": f"h.{i}.attn", "GPTNeo": f"h.{i}.attn.attention", "GPTNeoX": f"layers.{i}.attention"}
                n = config.max_position_embeddings
                mask = torch.tril(torch.ones(n, n, dtype=torch.uint8))
                if family == "GPTNeo" and config.attention_layers[i] == "local":
                    mask = torch.bitwise_xor(mask, torch.tril(mask, -config.window_size))
                state[f"{body}{kind[family]}.bias"] = mask.view(1, 1, n, n)
                state[f"{body}{kind[family]}.masked_bias"] = torch.tensor(-1e9)
                if family == "GPTNeoX":
                    state[f"{body}layers.{i}.attention.rotary_emb.inv_freq"] = torch.ones(2)
            torch.save(state, directory / "pytorch_model.bin")
        (directory / "generation_config.json").unlink(missing_ok=True)
        text = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")
        with torch.no_grad():
            logits[case] = model.double()(torch.tensor([IDS])).logits[0].numpy()
        _check_written(case, logits[case])
    np.savez(LOGITS, **logits)
    print(f"wrote {LOGITS} with transformers {transformers.__version__}, torch {torch.__version__}")


def _check_written(case: str, logits: np.ndarray) -> None:
    """Hold transformers to what the package writes: it has to find every tensor, no other, and compute the same."""
    import tempfile
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM

    from refgpt.checkpoints import open_checkpoint
    from refgpt.conversion import convert

    with tempfile.TemporaryDirectory() as directory:
        convert(open_checkpoint(HERE / case), None, Path(directory) / "hf", "hf")
        model, info = AutoModelForCausalLM.from_pretrained(
            Path(directory) / "hf", output_loading_info=True, dtype="auto"
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (case, info)
        with torch.no_grad():
            assert (model.double()(torch.tensor([IDS])).logits[0].numpy() == logits).all(), case
