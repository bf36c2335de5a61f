"""Record gradients of PyTorch's autograd, in float64 throughout, of small models of GPT-J's kin with random weights.

The forward passes are written here from tensor operations: transformers' own turn attention scores to float32.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding, gelu, layer_norm, linear

from refgpt.numbers.leaves import widen
from refgpt.spec import family_of
from tests.goldens import FAMILY_GRADIENTS, family_file
from tests.goldens.recorders.gradients import with_gradients
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params

N_IDS = 11
#: Whatever differs between two variants is in one of these; the others are held to central differences.
RECORDED = (
    "gpt2, scores divided by layer",
    "gpt2, scores undivided, exact GELU",
    "gpt_neo, local first",
    "gpt_neox",
    "gpt_neox, one after the other",
)
Taps = dict[str, torch.Tensor]


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    FAMILY_GRADIENTS.mkdir(exist_ok=True)
    for seed, (name, config) in enumerate(VARIANTS.items(), start=1):
        if name not in RECORDED:
            continue
        prefix_len = 0 if "local" in getattr(config, "attention_layers", ()) else 5 * (seed % 2)
        arrays = record(config, seed, prefix_len)
        about = {"variant": name, "seed": seed, "prefix_len": prefix_len, "torch": torch.__version__}
        path = FAMILY_GRADIENTS / family_file(name).name
        np.savez_compressed(path, about=json.dumps(about), **arrays)
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB, loss {arrays['loss']:.6f}")


def record(config: Any, seed: int, prefix_len: int) -> dict[str, np.ndarray]:
    """Loss, gradients of leaves ("leaf NAME") and of activations ("tap NAME")."""
    stream = np.random.RandomState(3000 + seed)
    ids = stream.randint(0, config.n_vocab, N_IDS)
    labels = np.where(stream.random_sample(N_IDS) < 0.3, -100, ids)
    leaves = {
        name: torch.from_numpy(widen(leaf, np.float64).copy()).requires_grad_()
        for name, leaf in random_params(config, seed).items()
    }
    taps: Taps = {}
    params = family_of(config).Params.from_leaves(leaves, config.n_layer)
    logits = forward(params, config, torch.from_numpy(ids), prefix_len, taps)
    return with_gradients(logits, ids, labels, leaves, taps)


def forward(params: Any, config: Any, ids: torch.Tensor, prefix_len: int, taps: Taps) -> torch.Tensor:
    """Logits [t, v], with every activation kept in ``taps``."""

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        value = value * 1  # a tensor of its own, where one value has two names
        value.retain_grad()
        taps[name] = value
        return value

    n, c = len(ids), config.d_model
    x = tap("embed", embedding(ids, params.wte))
    if config.model_type != "gpt_neox":
        x = tap("resid_pre", x + tap("pos_embed", params.wpe[:n]))
    for i, p in enumerate(params.blocks):
        part = f"blocks.{i}."
        normed = tap(part + "ln1", layer_norm(x, (c,), p.ln1_w, p.ln1_b, config.ln_eps))
        attn_out = attention(normed, p, config, i, prefix_len, lambda name, value, part=part: tap(part + name, value))
        parallel = getattr(config, "use_parallel_residual", False)
        between = x if parallel else tap(part + "resid_mid", x + attn_out)
        normed = tap(part + "ln2", layer_norm(between, (c,), p.ln2_w, p.ln2_b, config.ln_eps))
        pre = tap(part + "mlp_pre", linear(normed, p.w_in, p.b_in))
        post = tap(part + "mlp_post", gelu(pre, approximate="none" if config.activation == "gelu" else "tanh"))
        mlp_out = tap(part + "mlp_out", linear(post, p.w_out, p.b_out))
        x = tap(part + "resid_post", between + mlp_out + (attn_out if parallel else 0))
    x = tap("ln_final", layer_norm(x, (c,), params.ln_w, params.ln_b, config.ln_eps))
    return tap("logits", linear(x, params.w_head))


def attention(x: torch.Tensor, p: Any, config: Any, layer: int, prefix_len: int, tap: Any) -> torch.Tensor:
    n, heads = len(x), (len(x), config.n_head, -1)
    q, k, v = (tap(name, linear(x, getattr(p, "w" + name), getattr(p, "b" + name, None)).view(heads)) for name in "qkv")
    t, s = torch.arange(n)[:, None], torch.arange(n)[None, :]
    hidden_from = (s > t) & (s >= prefix_len)
    divisor = math.sqrt(config.d_head)
    if config.model_type == "gpt_neox":
        q, k = (tap(f"{name}_rot", rotate(y, config)) for name, y in (("q", q), ("k", k)))
    elif config.model_type == "gpt_neo":
        divisor = 1.0
        if config.attention_layers[layer] == "local":
            hidden_from = hidden_from | (s <= t - config.window_size)
    else:
        divisor = (divisor if config.scale_attn_weights else 1.0) * (
            layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        )
    scores = (q.transpose(0, 1) @ k.permute(1, 2, 0)) / divisor
    pattern = tap("pattern", torch.softmax(scores.masked_fill(hidden_from, -math.inf), dim=-1))
    z = tap("z", (pattern @ v.transpose(0, 1)).transpose(0, 1))
    return tap("attn_out", linear(z.reshape(n, -1), p.wo, p.bo))


def rotate(x: torch.Tensor, config: Any) -> torch.Tensor:
    """Turn pairs of dimensions half of what turns apart."""
    r = config.d_rotary
    rates = config.rotary_base ** (-torch.arange(0, r, 2) / r)
    angles = (torch.arange(len(x))[:, None] * rates)[:, None, :]
    first, second = x[..., : r // 2], x[..., r // 2 : r]
    turned = first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()
    return torch.cat([*turned, x[..., r:]], dim=-1)
