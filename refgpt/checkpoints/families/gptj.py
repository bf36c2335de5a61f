"""The names of GPT-J in every format but Mesh Transformer JAX's, which ``gptj_mesh`` has."""

from __future__ import annotations

import re

from refgpt.checkpoints.families import gptj_mesh
from refgpt.checkpoints.families.formats import CTranslate2, Ggml, Gguf, HuggingFace
from refgpt.checkpoints.families.names import Names
from refgpt.checkpoints.files.ggml_file import Header
from refgpt.spec.gptj import Config

TITLE = "GPT-J"
MODEL_TYPE = Config.model_type
MESH = gptj_mesh


#: The names and defaults are those of transformers' ``GPTJForCausalLM`` and ``GPTJConfig``.
HUGGING_FACE = HuggingFace(
    title=TITLE,
    config=Config,
    architecture="GPTJForCausalLM",
    names=Names(
        body="transformer.",
        head="lm_head.",
        model={
            "wte": "wte.weight",
            "ln_w": "ln_f.weight",
            "ln_b": "ln_f.bias",
            "w_head": "lm_head.weight",
            "b_head": "lm_head.bias",
        },
        block={
            "ln_w": "h.{}.ln_1.weight",
            "ln_b": "h.{}.ln_1.bias",
            "wq": "h.{}.attn.q_proj.weight",
            "wk": "h.{}.attn.k_proj.weight",
            "wv": "h.{}.attn.v_proj.weight",
            "wo": "h.{}.attn.out_proj.weight",
            "w_in": "h.{}.mlp.fc_in.weight",
            "b_in": "h.{}.mlp.fc_in.bias",
            "w_out": "h.{}.mlp.fc_out.weight",
            "b_out": "h.{}.mlp.fc_out.bias",
        },
    ),
    # Of the buffers only ``attn.bias``, the mask, says anything.
    buffer=re.compile(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions|(rotary|rotary_emb)\.\w+)"),
    keys={
        "n_layer": ("n_layer", "num_hidden_layers"),
        "n_head": ("n_head", "num_attention_heads"),
        "d_model": ("n_embd", "hidden_size"),
        "n_ctx": ("n_positions", "max_position_embeddings"),
        "n_vocab": ("vocab_size",),
        "d_rotary": ("rotary_dim",),
        "ln_eps": ("layer_norm_epsilon",),
        "d_ff": ("n_inner",),
        "bos_id": ("bos_token_id",),
        "eos_id": ("eos_token_id",),
    },
    demands={
        "activation_function": (("gelu_new", "gelu_pytorch_tanh"), "GPT-J's MLP uses the tanh form of GELU"),
        "scale_attn_weights": ((True,), "GPT-J divides attention scores by the square root of the head's width"),
        "scale_attn_by_inverse_layer_idx": ((False, None), "GPT-J scales the scores of every layer alike"),
        "rotary": ((True,), "GPT-J encodes positions by rotation"),
        "add_cross_attention": ((False, None), "GPT-J is a decoder alone"),
        "is_encoder_decoder": ((False, None), "GPT-J is a decoder alone"),
        "eight_bit": ((False, None), "8-bit weights are not read; use the original weights"),
        "quantization_config": ((None,), "quantised weights are not read; use the original weights"),
    },
    constants={
        "model_type": MODEL_TYPE,
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    },
    mask="h.{}.attn.bias",
)

#: The only program that wrote such files for others to use is GPT4All's converter (2023); the names are llama.cpp's.
GGUF = Gguf(
    title=TITLE,
    config=Config,
    architecture="gptj",
    names=Names(
        model={
            "wte": "token_embd.weight",
            "ln_w": "output_norm.weight",
            "ln_b": "output_norm.bias",
            "w_head": "output.weight",
            "b_head": "output.bias",
        },
        block={
            "ln_w": "blk.{}.attn_norm.weight",
            "ln_b": "blk.{}.attn_norm.bias",
            "wq": "blk.{}.attn_q.weight",
            "wk": "blk.{}.attn_k.weight",
            "wv": "blk.{}.attn_v.weight",
            "wo": "blk.{}.attn_output.weight",
            "w_in": "blk.{}.ffn_up.weight",
            "b_in": "blk.{}.ffn_up.bias",
            "w_out": "blk.{}.ffn_down.weight",
            "b_out": "blk.{}.ffn_down.bias",
        },
    ),
    keys={
        "n_layer": ("gptj.block_count", "gptj.layer_count"),
        "n_head": ("gptj.attention.head_count",),
        "d_model": ("gptj.embedding_length",),
        "n_ctx": ("gptj.context_length",),
        "d_rotary": ("gptj.rope.dimension_count",),
        "ln_eps": ("gptj.attention.layer_norm_epsilon",),
        "d_ff": ("gptj.feed_forward_length", "gptj.feedforward_length"),
    },
    optional=("d_ff", "ln_eps"),  # GPT-J has but one epsilon
    demands={
        "gptj.rope.scale": ((1.0,), "GPT-J's positions are not scaled"),
        "gptj.rope.scale_linear": ((1.0,), "GPT-J's positions are not scaled"),
        "gptj.rope.scaling.type": ((b"none",), "GPT-J's positions are not scaled"),
        "gptj.rope.freq_base": ((10000.0,), "GPT-J's rotations have the base 10000"),
        "gptj.use_parallel_residual": ((True,), "attention and MLP of a GPT-J read the same input"),
    },
)

#: As ggml's example gpt-j writes them; the tensors have the names of transformers.
GGML = Ggml(
    title=TITLE,
    config=Config,
    headers=(Header(TITLE, ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "n_rot", "ftype"), (10, 5)),),
    fields={
        "n_layer": "n_layer",
        "n_head": "n_head",
        "d_model": "n_embd",
        "d_rotary": "n_rot",
        "n_vocab": "n_vocab",
        "n_ctx": "n_ctx",
    },
    names=HUGGING_FACE.names,
    constants={"ln_eps": 1e-5},
)

_QKV = "self_attention/linear_0/weight"

#: As ``GPTJLoader`` of CTranslate2's converter writes them.
CTRANSLATE2 = CTranslate2(
    title=TITLE,
    config=Config,
    spec="TransformerDecoderSpec",
    model={
        "wte": "embeddings/weight",
        "ln_w": "layer_norm/gamma",
        "ln_b": "layer_norm/beta",
        "w_head": "projection/weight",
        "b_head": "projection/bias",
    },
    block={
        "ln_w": "shared_layer_norm/gamma",
        "ln_b": "shared_layer_norm/beta",
        "wq": _QKV,
        "wk": _QKV,
        "wv": _QKV,
        "wo": "self_attention/linear_1/weight",
        "w_in": "ffn/linear_0/weight",
        "b_in": "ffn/linear_0/bias",
        "w_out": "ffn/linear_1/weight",
        "b_out": "ffn/linear_1/bias",
    },
    qkv=_QKV,
    demands={
        "activation": (1, "GPT-J's MLP uses the tanh form of GELU"),
        "pre_norm": (1, "GPT-J normalises before each block"),
        "scale_embeddings": (0, "GPT-J takes embeddings as they are"),
        "alibi": (0, "GPT-J encodes positions by rotation"),
        "start_from_zero_embedding": (0, "GPT-J begins with a token"),
        "self_attention/rotary_base": (10000, "GPT-J's rotations have this base"),
    },
    needed=("num_heads", "activation", "pre_norm", "scale_embeddings"),
    free=frozenset({"alignment_heads", "alignment_layer", "alibi_use_positive_positions", "scale_alibi"}),
)
