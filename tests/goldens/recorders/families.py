"""Record logits and hidden states of PyTorch's GPT-2, GPT-Neo and GPT-NeoX for small models with random weights.

The weights come from ``random_params``: a reader of the goldens makes them again, so they are not stored. Everything is
computed in float64: weights are widened, softmax and the rotary angles, which transformers computes in float32, are
replaced by the same in float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from refgpt.numbers.leaves import widen
from tests.goldens import family_file
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params

N_IDS = 20


def main() -> None:
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(VARIANTS.items(), start=1):
        if config.model_type == "gptj":
            continue
        params = random_params(config, seed)
        ids = np.random.RandomState(1000 + seed).randint(0, config.n_vocab, N_IDS)
        model = BUILDERS[config.model_type](config, params)
        exact_softmax = torch.nn.functional.softmax
        try:
            torch.nn.functional.softmax = softmax_in_float64
            arrays = run(model, ids)
        finally:
            torch.nn.functional.softmax = exact_softmax
        about = {"variant": name, "seed": seed, "transformers": transformers.__version__, "torch": torch.__version__}
        path = family_file(name)
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, about=json.dumps(about), ids=ids, **arrays)
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB")


def softmax_in_float64(scores: Tensor, dim: int = -1, dtype: Any = None, **_: Any) -> Tensor:
    """Whatever dtype is asked for; masked scores, the lowest numbers of float64 or float32, come out as exactly 0."""
    assert scores.dtype == torch.float64
    return torch.softmax(scores, dim=dim)


def run(model: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Logits [t, v], hidden states [n_layer + 1, t, c] (the last one after the final LayerNorm), patterns."""
    with torch.no_grad():
        out = model(torch.from_numpy(ids)[None], output_hidden_states=True, output_attentions=True, use_cache=False)
    assert out.logits.dtype == torch.float64
    hidden, patterns = torch.cat(out.hidden_states), torch.cat(out.attentions)
    return {"logits": out.logits[0].numpy(), "hidden": hidden.numpy(), "patterns": patterns.numpy()}


def loaded(model: Any, leaves: dict[str, Tensor]) -> Any:
    """The model with these weights, in float64 before they are put in; all that it needs and no others."""
    model = model.double().eval()
    lacking, unknown = model.load_state_dict(leaves, strict=False)
    assert not unknown, unknown
    assert all(name == "lm_head.weight" or name.endswith((".bias", ".masked_bias", "inv_freq")) for name in lacking)
    known = dict(model.named_parameters())
    assert {name for name in known if name != "lm_head.weight"} <= set(leaves), set(known) - set(leaves)
    return model


def wide(leaf: Any) -> Tensor:
    return torch.from_numpy(widen(leaf, np.float64).copy())


def gpt2(config: Any, params: Any) -> Any:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.d_model,
            n_inner=config.d_ff,
            vocab_size=config.n_vocab,
            n_positions=config.n_ctx,
            activation_function=config.activation,
            scale_attn_weights=config.scale_attn_weights,
            scale_attn_by_inverse_layer_idx=config.scale_attn_by_inverse_layer_idx,
            layer_norm_epsilon=config.ln_eps,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    )
    leaves = outside(params)
    for i, p in enumerate(params.blocks):
        at = f"transformer.h.{i}."
        leaves |= norms_and_mlp(at, p, transposed=True)
        leaves[at + "attn.c_attn.weight"] = torch.cat([wide(w) for w in (p.wq, p.wk, p.wv)]).T
        leaves[at + "attn.c_attn.bias"] = torch.cat([wide(b) for b in (p.bq, p.bk, p.bv)])
        leaves |= {at + "attn.c_proj.weight": wide(p.wo).T, at + "attn.c_proj.bias": wide(p.bo)}
    return loaded(model, leaves)


def gpt_neo(config: Any, params: Any) -> Any:
    model = transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            num_layers=config.n_layer,
            num_heads=config.n_head,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            vocab_size=config.n_vocab,
            max_position_embeddings=config.n_ctx,
            activation_function=config.activation,
            attention_types=[[[kind], 1] for kind in config.attention_layers],
            window_size=config.window_size,
            layer_norm_epsilon=config.ln_eps,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    )
    for layer in model.transformer.h:  # it computes scores in float32 whatever its own dtype is
        layer.attn.attention._attn = attention_in_float64(layer.attn.attention)
    leaves = outside(params)
    for i, p in enumerate(params.blocks):
        at = f"transformer.h.{i}."
        leaves |= norms_and_mlp(at, p, transposed=False)
        for part in "qkv":
            leaves[f"{at}attn.attention.{part}_proj.weight"] = wide(getattr(p, f"w{part}"))
        leaves[at + "attn.attention.out_proj.weight"] = wide(p.wo)
        leaves[at + "attn.attention.out_proj.bias"] = wide(p.bo)
    return loaded(model, leaves)


def attention_in_float64(module: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """The module's own mask, its scores undivided as in its own code."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        assert query.dtype == key.dtype == value.dtype == torch.float64
        n = query.shape[-2]
        scores = (query @ key.transpose(-1, -2)).masked_fill(~module.bias[:, :, :n, :n], -torch.inf)
        pattern = torch.softmax(scores, dim=-1)
        return pattern @ value, pattern

    return attend


def gpt_neox(config: Any, params: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": config.rotary_base}
    said = transformers.GPTNeoXConfig(
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        vocab_size=config.n_vocab,
        max_position_embeddings=config.n_ctx,
        hidden_act=config.activation,
        rope_parameters=rope | {"partial_rotary_factor": config.d_rotary / config.d_head},
        use_parallel_residual=config.use_parallel_residual,
        attention_bias=config.attention_bias,
        layer_norm_eps=config.ln_eps,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model = transformers.GPTNeoXForCausalLM(said)
    rates = config.rotary_base ** (-torch.arange(0, config.d_rotary, 2, dtype=torch.float64) / config.d_rotary)
    angles = torch.arange(config.n_ctx, dtype=torch.float64)[:, None] * rates

    def rotary(_: Tensor, position_ids: Tensor, *__: Any, **___: Any) -> tuple[Tensor, Tensor]:
        both = torch.cat((angles, angles), dim=-1)[position_ids]
        return both.cos(), both.sin()

    assert torch.allclose(model.gpt_neox.rotary_emb.inv_freq.double(), rates, rtol=1e-6)
    model.gpt_neox.rotary_emb.forward = rotary
    leaves = {"gpt_neox.embed_in.weight": wide(params.wte), head_of(model): wide(params.w_head)}
    leaves |= {f"gpt_neox.final_layer_norm.{n}": wide(w) for n, w in (("weight", params.ln_w), ("bias", params.ln_b))}
    for i, p in enumerate(params.blocks):
        at = f"gpt_neox.layers.{i}."
        named = {"input_layernorm.weight": p.ln1_w, "input_layernorm.bias": p.ln1_b}
        named |= {"post_attention_layernorm.weight": p.ln2_w, "post_attention_layernorm.bias": p.ln2_b}
        named |= {"mlp.dense_h_to_4h.weight": p.w_in, "mlp.dense_h_to_4h.bias": p.b_in}
        named |= {"mlp.dense_4h_to_h.weight": p.w_out, "mlp.dense_4h_to_h.bias": p.b_out}
        named |= {"attention.dense.weight": p.wo} | ({} if p.bo is None else {"attention.dense.bias": p.bo})
        leaves |= {at + name: wide(leaf) for name, leaf in named.items()}
        heads = (config.n_head, config.d_head)  # fused by head: a head's queries, then its keys, then its values
        weights = torch.stack([wide(w).reshape(*heads, -1) for w in (p.wq, p.wk, p.wv)], dim=1)
        leaves[at + "attention.query_key_value.weight"] = weights.reshape(3 * config.d_model, -1)
        if p.bq is not None:
            biases = torch.stack([wide(b).reshape(heads) for b in (p.bq, p.bk, p.bv)], dim=1)
            leaves[at + "attention.query_key_value.bias"] = biases.reshape(-1)
    return loaded(model, leaves)


def head_of(model: Any) -> str:
    """The name of the output head, which has changed with transformers' version."""
    return next(name for name, _ in model.named_parameters() if name in ("embed_out.weight", "lm_head.weight"))


def outside(params: Any) -> dict[str, Tensor]:
    """What lies outside the blocks of GPT-2 and GPT-Neo; the head is tied."""
    named = {"wte": params.wte, "wpe": params.wpe}
    leaves = {f"transformer.{name}.weight": wide(leaf) for name, leaf in named.items()}
    leaves |= {"transformer.ln_f.weight": wide(params.ln_w), "transformer.ln_f.bias": wide(params.ln_b)}
    return leaves | {"lm_head.weight": wide(params.wte)}


def norms_and_mlp(at: str, p: Any, transposed: bool) -> dict[str, Tensor]:
    leaves = {}
    for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
        leaves[f"{at}{theirs}.weight"] = wide(getattr(p, f"{ours}_w"))
        leaves[f"{at}{theirs}.bias"] = wide(getattr(p, f"{ours}_b"))
    for ours, theirs in (("in", "mlp.c_fc"), ("out", "mlp.c_proj")):
        w = wide(getattr(p, f"w_{ours}"))
        leaves[f"{at}{theirs}.weight"] = w.T if transposed else w
        leaves[f"{at}{theirs}.bias"] = wide(getattr(p, f"b_{ours}"))
    return leaves


BUILDERS = {"gpt2": gpt2, "gpt_neo": gpt_neo, "gpt_neox": gpt_neox}
