"""The names of GPT-2 in every format."""

from __future__ import annotations

import re

from refgpt.checkpoints.families.formats import Ggml, Gguf, HuggingFace
from refgpt.checkpoints.families.names import Names, Place, thirds
from refgpt.checkpoints.families.settings import DECODER
from refgpt.checkpoints.files.ggml_file import Header
from refgpt.spec.gpt2 import Config

TITLE = "GPT-2"
MODEL_TYPE = Config.model_type
CTRANSLATE2 = MESH = None

#: The names and defaults are those of transformers' ``GPT2LMHeadModel`` and ``GPT2Config``. Its matrices are [in, out].
HUGGING_FACE = HuggingFace(
    title=TITLE,
    config=Config,
    architecture="GPT2LMHeadModel",
    names=Names(
        body="transformer.",
        head="lm_head.",
        model={"wte": "wte.weight", "wpe": "wpe.weight", "ln_w": "ln_f.weight", "ln_b": "ln_f.bias"},
        block={
            "ln1_w": "h.{}.ln_1.weight",
            "ln1_b": "h.{}.ln_1.bias",
            **thirds("h.{}.attn.c_attn.weight", "wq wk wv", turned=True),
            **thirds("h.{}.attn.c_attn.bias", "bq bk bv"),
            "wo": Place("h.{}.attn.c_proj.weight", turned=True),
            "bo": "h.{}.attn.c_proj.bias",
            "ln2_w": "h.{}.ln_2.weight",
            "ln2_b": "h.{}.ln_2.bias",
            "w_in": Place("h.{}.mlp.c_fc.weight", turned=True),
            "b_in": "h.{}.mlp.c_fc.bias",
            "w_out": Place("h.{}.mlp.c_proj.weight", turned=True),
            "b_out": "h.{}.mlp.c_proj.bias",
        },
    ),
    buffer=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),
    keys={
        "n_layer": ("n_layer", "num_hidden_layers"),
        "n_head": ("n_head", "num_attention_heads"),
        "d_model": ("n_embd", "hidden_size"),
        "n_ctx": ("n_positions", "max_position_embeddings"),
        "n_vocab": ("vocab_size",),
        "activation": ("activation_function",),
        "scale_attn_weights": ("scale_attn_weights",),
        "scale_attn_by_inverse_layer_idx": ("scale_attn_by_inverse_layer_idx",),
        "ln_eps": ("layer_norm_epsilon",),
        "d_ff": ("n_inner",),
        "bos_id": ("bos_token_id",),
        "eos_id": ("eos_token_id",),
    },
    demands=DECODER,
    constants={"model_type": MODEL_TYPE, "tie_word_embeddings": True},
    mask="h.{}.attn.bias",
    tied_head="lm_head.weight",
)

#: As llama.cpp writes them. It writes 4 x the width as the MLP's, whatever that is.
GGUF = Gguf(
    title=TITLE,
    config=Config,
    architecture="gpt2",
    names=Names(
        model={
            "wte": "token_embd.weight",
            "wpe": "position_embd.weight",
            "ln_w": "output_norm.weight",
            "ln_b": "output_norm.bias",
        },
        block={
            "ln1_w": "blk.{}.attn_norm.weight",
            "ln1_b": "blk.{}.attn_norm.bias",
            **thirds("blk.{}.attn_qkv.weight", "wq wk wv"),
            **thirds("blk.{}.attn_qkv.bias", "bq bk bv"),
            "wo": "blk.{}.attn_output.weight",
            "bo": "blk.{}.attn_output.bias",
            "ln2_w": "blk.{}.ffn_norm.weight",
            "ln2_b": "blk.{}.ffn_norm.bias",
            "w_in": "blk.{}.ffn_up.weight",
            "b_in": "blk.{}.ffn_up.bias",
            "w_out": "blk.{}.ffn_down.weight",
            "b_out": "blk.{}.ffn_down.bias",
        },
    ),
    keys={
        "n_layer": ("{}.block_count",),
        "n_head": ("{}.attention.head_count",),
        "d_model": ("{}.embedding_length",),
        "n_ctx": ("{}.context_length",),
        "ln_eps": ("{}.attention.layer_norm_epsilon",),
        "d_ff": ("{}.feed_forward_length",),
    },
    optional=("d_ff", "ln_eps"),
    told={"d_ff": lambda tensors: tensors["blk.0.ffn_up.bias"].size},
    own={"activation": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    assumed={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
    tied_head="output.weight",
)

#: As ggml's example gpt-2 writes them: matrices are [out, in], and the head may be there once more.
GGML = Ggml(
    title=TITLE,
    config=Config,
    headers=(Header(TITLE, ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "ftype"), (12, 5)),),
    fields={"n_layer": "n_layer", "n_head": "n_head", "d_model": "n_embd", "n_vocab": "n_vocab", "n_ctx": "n_ctx"},
    names=Names(
        body="model/",
        model={"wte": "wte", "wpe": "wpe", "ln_w": "ln_f/g", "ln_b": "ln_f/b"},
        block={
            "ln1_w": "h{}/ln_1/g",
            "ln1_b": "h{}/ln_1/b",
            **thirds("h{}/attn/c_attn/w", "wq wk wv"),
            **thirds("h{}/attn/c_attn/b", "bq bk bv"),
            "wo": "h{}/attn/c_proj/w",
            "bo": "h{}/attn/c_proj/b",
            "ln2_w": "h{}/ln_2/g",
            "ln2_b": "h{}/ln_2/b",
            "w_in": "h{}/mlp/c_fc/w",
            "b_in": "h{}/mlp/c_fc/b",
            "w_out": "h{}/mlp/c_proj/w",
            "b_out": "h{}/mlp/c_proj/b",
        },
    ),
    constants={"ln_eps": 1e-5},
    tied_head="model/lm_head",
)
