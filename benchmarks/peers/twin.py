"""The same model for llama.cpp, which runs no GPT-J: as a GPT-NeoX, whose blocks can be made to compute the same.

GPT-NeoX also adds attention and MLP to the residual stream in parallel. Three of its differences are undone in the
weights: a LayerNorm for each branch (the same one twice), biases in attention (zeros), and rotary pairs that lie half
the rotated width apart (the rows of q and k in another order). One stays: its head has no bias, which is of standard
deviation 0.02 here beside logits of 1.3. So the twin gives the checkpoint's own logits, and does the same work for
them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refgpt import ModelConfig
from refgpt.checkpoints import open_checkpoint
from refgpt.spec.gptj import Block

#: What llama.cpp's own tool makes of the F16 file, by its names. "pure": the head too in 4 bits, which it keeps in 6.
QUANTISED = ("Q8_0", "Q4_0", "Q4_0-pure", "Q4_K_M", "Q3_K_S")


def half_split(w: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The rows of q or k so that rotating dimensions i and i + d_rotary/2 together does what (2i, 2i+1) did. [c, c]"""
    d, d_rotary = config.d_head, config.d_rotary
    within = np.concatenate([np.arange(0, d_rotary, 2), np.arange(1, d_rotary, 2), np.arange(d_rotary, d)])
    rows = (d * np.arange(config.n_head)[:, None] + within).ravel()
    return w[rows]


def block_tensors(block: Block, config: ModelConfig) -> dict[str, np.ndarray]:
    """A block's tensors under llama.cpp's names, without "blk.N."."""
    c = config.d_model
    return {
        "attn_norm.weight": block.ln_w,
        "attn_norm.bias": block.ln_b,
        "ffn_norm.weight": block.ln_w,
        "ffn_norm.bias": block.ln_b,
        "attn_qkv.weight": np.concatenate([half_split(block.wq, config), half_split(block.wk, config), block.wv]),
        "attn_qkv.bias": np.zeros(3 * c, np.float32),
        "attn_output.weight": block.wo,
        "attn_output.bias": np.zeros(c, np.float32),
        "ffn_up.weight": block.w_in,
        "ffn_up.bias": block.b_in,
        "ffn_down.weight": block.w_out,
        "ffn_down.bias": block.b_out,
    }


def write_twin(checkpoint: Path, path: Path) -> None:
    """The checkpoint as a GGUF file of architecture "gptneox": matrices in float16, vectors in float32."""
    import gguf

    found = open_checkpoint(checkpoint)
    params, config = found.params, found.config
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "gptneox", use_temp_file=False)
    writer.add_name("random")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_head)
    writer.add_rope_dimension_count(config.d_rotary)
    writer.add_parallel_residual(True)
    writer.add_layer_norm_eps(config.ln_eps)
    writer.add_vocab_size(config.n_vocab)
    writer.add_tokenizer_model("none")

    def add(name: str, tensor: np.ndarray) -> None:
        writer.add_tensor(name, np.asarray(tensor, np.float16 if tensor.ndim == 2 else np.float32))

    add("token_embd.weight", params.wte)
    add("output_norm.weight", params.ln_w)
    add("output_norm.bias", params.ln_b)
    add("output.weight", params.w_head)
    for i, block in enumerate(params.blocks):
        for name, tensor in block_tensors(block, config).items():
            add(f"blk.{i}.{name}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def quantise(source: Path, path: Path, kind: str, threads: int) -> None:
    """One of ``QUANTISED``, by llama.cpp's own function."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.removesuffix('-pure')}")
    params.pure = kind.endswith("-pure")
    partial = path.with_suffix(".partial")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not quantise {source} as {kind}")
    partial.rename(path)
