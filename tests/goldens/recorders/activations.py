"""Record activations of PyTorch's GPT-J for small models with random weights.

The weights come from ``random_params``: a reader of the goldens makes them again, so they are not stored. Written for
transformers 5.24, whose GPT-J has one rotary table and takes its attention from a registry.
"""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from refgpt import ModelConfig
from refgpt.numbers.leaves import widen
from refgpt.spec.gptj import Params
from tests.goldens import ACTIVATIONS
from tests.helpers.tiny import random_params, tiny_config

SMALL = {
    "rotary_whole_head": {"config": {"d_rotary": 8}},
    "rotary_absent": {"config": {"n_head": 2, "d_model": 160, "d_ff": 640, "d_rotary": 64, "n_vocab": 50}},
    "three_heads_of_twelve": {"config": {"n_head": 3, "d_model": 36, "d_ff": 41, "d_rotary": 6, "n_vocab": 97}},
    "one_head": {"config": {"n_head": 1, "d_model": 24, "d_ff": 96, "d_rotary": 10, "n_vocab": 33}, "dtype": "f16"},
    "six_layers": {"config": {"n_layer": 6, "n_vocab": 127}, "dtype": "bf16"},
    "prefix": {"config": {"n_layer": 3}, "prefix_len": 7},
    "prefix_everywhere": {"config": {"d_rotary": 6}, "prefix_len": 12},
}
MEDIUM = {
    "medium_six_layers": {
        "config": {
            "n_layer": 6,
            "n_head": 8,
            "d_model": 256,
            "d_ff": 1024,
            "d_rotary": 16,
            "n_vocab": 1001,
            "n_ctx": 256,
        }
    },
    "medium_two_wide_heads": {
        "config": {
            "n_layer": 4,
            "n_head": 2,
            "d_model": 320,
            "d_ff": 900,
            "d_rotary": 64,
            "n_vocab": 777,
            "n_ctx": 256,
        },
        "dtype": "f16",
    },
}


def main() -> None:
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate((SMALL | MEDIUM).items(), start=1):
        small = name in SMALL
        arrays, about = record(seed=seed, n_ids=12 if small else 200, **case)
        kept = slice(None) if small else slice(9, None, 19)
        arrays["rows"] = np.arange(len(arrays["ids"]))[kept]
        for key in ("logits", "logits_float64"):
            arrays[key] = arrays[key][kept]
        if not small:
            del arrays["hidden"], arrays["patterns"]
        path = ACTIVATIONS / f"{name}.npz"
        np.savez_compressed(path, about=json.dumps(about), **arrays)
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB, float32 error {about['torch_float32_error']:.2e}")


def record(config: dict[str, int], seed: int, n_ids: int, dtype: str = "f32", prefix_len: int = 0) -> tuple[dict, dict]:
    """Run the model in float32 as it is, then in float64, first with its own rotary table, then with an exact one."""
    shape = tiny_config(**config)
    params = random_params(shape, seed, dtype)
    ids = np.random.RandomState(1000 + seed).randint(0, shape.n_vocab, n_ids)
    model = torch_model(shape, params)
    logits, hidden, patterns = run(model, ids, prefix_len)
    compute_in_float64(model)
    same_table, *_ = run(model, ids, prefix_len)
    use_exact_rotary_table(model, shape)
    exact, *_ = run(model, ids, prefix_len)
    error = np.abs(logits - same_table).max() / same_table.std()
    arrays = {"ids": ids, "logits": logits, "logits_float64": exact, "hidden": hidden, "patterns": patterns}
    about = {"config": config, "seed": seed, "dtype": dtype, "prefix_len": prefix_len, "torch_float32_error": error}
    return arrays, about


def torch_model(shape: ModelConfig, params: Params) -> GPTJForCausalLM:
    """A float32 GPT-J with these weights; 64 rotary dimensions and four times the width are left to its defaults."""
    said: dict[str, int] = {}
    if shape.d_rotary != 64:
        said["rotary_dim"] = shape.d_rotary
    if shape.d_ff != 4 * shape.d_model:
        said["n_inner"] = shape.d_ff
    config = GPTJConfig(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.d_model,
        vocab_size=shape.n_vocab,
        n_positions=shape.n_ctx,
        layer_norm_epsilon=shape.ln_eps,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
        **said,
    )
    model = GPTJForCausalLM(config).eval()
    torch_names = {
        "ln_w": "ln_1.weight",
        "ln_b": "ln_1.bias",
        "wq": "attn.q_proj.weight",
        "wk": "attn.k_proj.weight",
        "wv": "attn.v_proj.weight",
        "wo": "attn.out_proj.weight",
        "w_in": "mlp.fc_in.weight",
        "b_in": "mlp.fc_in.bias",
        "w_out": "mlp.fc_out.weight",
        "b_out": "mlp.fc_out.bias",
    }
    outside = {
        "wte": "transformer.wte.weight",
        "ln_w": "transformer.ln_f.weight",
        "ln_b": "transformer.ln_f.bias",
        "w_head": "lm_head.weight",
        "b_head": "lm_head.bias",
    }
    state = {}
    for name, leaf in params.items():
        _, _, rest = name.partition("blocks.")
        i, _, part = rest.partition(".")
        state[f"transformer.h.{i}.{torch_names[part]}" if rest else outside[name]] = torch.from_numpy(
            widen(leaf).copy()
        )
    model.load_state_dict(state, strict=True)
    return model


def run(model: GPTJForCausalLM, ids: np.ndarray, prefix_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [t, v], hidden states [n_layer + 2, t, c], attention patterns [n_layer, h, t, s]."""
    before_ln_f: list[torch.Tensor] = []  # the model's own list of hidden states has the last one after ln_f only
    hook = model.transformer.ln_f.register_forward_pre_hook(lambda _, inputs: before_ln_f.append(inputs[0]))
    mask = None
    if prefix_len:
        n = len(ids)
        hidden_from = torch.arange(n)[None, :] > torch.arange(n)[:, None]  # [t, s]
        hidden_from[:, :prefix_len] = False
        mask = torch.zeros(1, 1, n, n, dtype=model.dtype).masked_fill(hidden_from, torch.finfo(model.dtype).min)
    with torch.no_grad():
        out = model(
            torch.from_numpy(ids)[None],
            attention_mask=mask,
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )
    hook.remove()
    hidden = [*out.hidden_states[:-1], before_ln_f[0], out.hidden_states[-1]]
    return out.logits[0].numpy(), torch.cat(hidden).numpy(), torch.cat(out.attentions).numpy()


def compute_in_float64(model: GPTJForCausalLM) -> None:
    """Widen everything, the attention scores too: the model turns these to float32 whatever its own dtype is."""
    ALL_ATTENTION_FUNCTIONS.register("float64", attention_in_float64)
    ALL_MASK_ATTENTION_FUNCTIONS.register("float64", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model.set_attn_implementation("float64")
    model.double()
    assert model.transformer.rotary_emb.embed_positions.dtype == torch.float64


def attention_in_float64(module, query, key, value, attention_mask, **_):
    assert query.dtype == key.dtype == value.dtype == attention_mask.dtype == torch.float64
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    pattern = torch.softmax(scores + attention_mask, dim=-1)
    return (pattern @ value).transpose(1, 2), pattern


def use_exact_rotary_table(model: GPTJForCausalLM, shape: ModelConfig) -> None:
    """Sines, then cosines, of float64 angles; the model's own come from float32 angles."""
    rates = 10000.0 ** (-torch.arange(0, shape.d_rotary, 2, dtype=torch.float64) / shape.d_rotary)
    angles = torch.arange(shape.n_ctx, dtype=torch.float64)[:, None] * rates
    table = torch.cat((angles.sin(), angles.cos()), dim=1)
    rotary = model.transformer.rotary_emb
    assert (rotary.embed_positions - table).abs().max() < 1e-4
    rotary.embed_positions = table
