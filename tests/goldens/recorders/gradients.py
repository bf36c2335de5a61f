"""Record gradients of PyTorch's autograd, in float64 throughout, of small GPT-Js with random weights.

The forward pass is written here from tensor operations: transformers' own turns attention scores to float32.
"""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy, embedding, gelu, layer_norm, linear

from refgpt import ModelConfig
from refgpt.numbers.leaves import widen
from refgpt.spec.gptj import Params
from tests.goldens import GRADIENTS
from tests.helpers.tiny import random_params, tiny_config

CASES = {
    "causal": {"config": {"d_model": 24, "d_ff": 41, "n_head": 3, "d_rotary": 6, "n_vocab": 37}},
    "prefix": {"config": {"d_model": 24, "d_ff": 41, "n_head": 3, "d_rotary": 6, "n_vocab": 37}, "prefix_len": 5},
    "whole_head": {"config": {"d_model": 20, "d_ff": 30, "n_head": 2, "d_rotary": 10, "n_vocab": 33}, "dtype": "f16"},
}


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    GRADIENTS.mkdir(exist_ok=True)
    for seed, (name, case) in enumerate(CASES.items(), start=1):
        arrays, about = record(seed=seed, **case)
        path = GRADIENTS / f"{name}.npz"
        np.savez_compressed(path, about=json.dumps(about | {"torch": torch.__version__}), **arrays)
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB, loss {arrays['loss']:.6f}")


def record(config: dict[str, int], seed: int, dtype: str = "f32", prefix_len: int = 0) -> tuple[dict, dict]:
    """Loss, gradients of leaves ("leaf NAME") and of activations ("tap NAME")."""
    shape = tiny_config(**config)
    stream = np.random.RandomState(2000 + seed)
    ids = stream.randint(0, shape.n_vocab, 11)
    labels = np.where(stream.random_sample(11) < 0.3, -100, ids)
    leaves = {
        name: torch.from_numpy(widen(leaf, np.float64).copy()).requires_grad_()
        for name, leaf in random_params(shape, seed, dtype).items()
    }
    taps: dict[str, torch.Tensor] = {}
    logits = forward(Params.from_leaves(leaves, shape.n_layer), shape, torch.from_numpy(ids), prefix_len, taps)
    arrays = with_gradients(logits, ids, labels, leaves, taps)
    return arrays, {"config": config, "seed": seed, "dtype": dtype, "prefix_len": prefix_len}


def with_gradients(
    logits: torch.Tensor,
    ids: np.ndarray,
    labels: np.ndarray,
    leaves: dict[str, torch.Tensor],
    taps: dict[str, torch.Tensor],
) -> dict[str, np.ndarray]:
    """The text, its loss, and the gradients of leaves ("leaf NAME") and of activations ("tap NAME")."""
    loss = cross_entropy(logits[:-1], torch.from_numpy(labels)[1:], ignore_index=-100)
    loss.backward()
    arrays = {"ids": ids, "labels": labels, "loss": loss.detach().numpy()}
    for kind, tensors in (("leaf", leaves), ("tap", taps)):
        for name, tensor in tensors.items():
            assert tensor.grad is not None and tensor.grad.dtype == torch.float64, name
            arrays[f"{kind} {name}"] = tensor.grad.numpy()
    return arrays


def forward(
    params: Params, shape: ModelConfig, ids: torch.Tensor, prefix_len: int, taps: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Logits [t, v] of a GPT-J, with every activation kept in ``taps``."""

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        value.retain_grad()
        taps[name] = value
        return value

    n, c = len(ids), shape.d_model
    t, s = torch.arange(n)[:, None], torch.arange(n)[None, :]
    hidden_from = (s > t) & (s >= prefix_len)
    x = tap("embed", embedding(ids, params.wte))
    for i, p in enumerate(params.blocks):
        part = f"blocks.{i}."
        normed = tap(part + "ln", layer_norm(x, (c,), p.ln_w, p.ln_b, shape.ln_eps))
        q, k, v = (
            tap(part + name, linear(normed, w).view(n, shape.n_head, -1))
            for name, w in (("q", p.wq), ("k", p.wk), ("v", p.wv))
        )
        q, k = tap(part + "q_rot", rotate(q, shape.d_rotary)), tap(part + "k_rot", rotate(k, shape.d_rotary))
        scores = (q.transpose(0, 1) @ k.permute(1, 2, 0)) / math.sqrt(shape.d_head)
        pattern = tap(part + "pattern", torch.softmax(scores.masked_fill(hidden_from, -math.inf), dim=-1))
        z = tap(part + "z", (pattern @ v.transpose(0, 1)).transpose(0, 1))
        attn_out = tap(part + "attn_out", linear(z.reshape(n, c), p.wo))
        pre = tap(part + "mlp_pre", linear(normed, p.w_in, p.b_in))
        post = tap(part + "mlp_post", gelu(pre, approximate="tanh"))
        mlp_out = tap(part + "mlp_out", linear(post, p.w_out, p.b_out))
        x = tap(part + "resid_post", x + attn_out + mlp_out)
    x = tap("ln_final", layer_norm(x, (c,), params.ln_w, params.ln_b, shape.ln_eps))
    return tap("logits", linear(x, params.w_head, params.b_head))


def rotate(x: torch.Tensor, d_rotary: int) -> torch.Tensor:
    """Turn the pairs of neighbours among the first dimensions, as complex numbers."""
    rates = 10000.0 ** (-torch.arange(0, d_rotary, 2) / d_rotary)
    angles = torch.arange(len(x))[:, None] * rates
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    pairs = torch.view_as_complex(x[..., :d_rotary].reshape(*x.shape[:2], -1, 2))
    return torch.cat([torch.view_as_real(pairs * turn).flatten(-2), x[..., d_rotary:]], dim=-1)
