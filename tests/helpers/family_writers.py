"""Files of GPT-2 and GPT-NeoX as ggml's examples and llama.cpp write them, and blocks of earlier quantisations.

Nothing here knows the package's tables: names, layouts and formulas are written down a second time on purpose.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from refgpt.spec import gpt2, gpt_neox, leaf_shapes
from tests.helpers.ggml_writers import block_bytes, decoded_block, ggml_tensor, gguf_bytes, half, nearest

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "d_model": 64, "d_ff": 96, "n_vocab": 37, "n_ctx": 12}
GPT2 = gpt2.Config(**SHAPE, bos_id=None, eos_id=None)
NEOX = gpt_neox.Config(**SHAPE, d_rotary=6, activation="gelu", bos_id=0, eos_id=0)


def random_tree(config: Any, seed: int = 4) -> Any:
    """Weights of no particular size; what matters is that no two are alike."""
    stream = np.random.RandomState(seed)
    module = {"gpt2": gpt2, "gpt_neox": gpt_neox}[config.model_type]
    leaves = {name: stream.standard_normal(shape).astype("<f4") for name, shape in leaf_shapes(config).items()}
    return module.Params.from_leaves(leaves, config.n_layer)


def fused(block: Any, kind: str) -> np.ndarray:
    """Queries, keys and values one after the other."""
    return np.concatenate([getattr(block, kind + part) for part in "qkv"])


def by_head(block: Any, kind: str, n_head: int) -> np.ndarray:
    """Of each head its queries, keys and values."""
    parts = [np.split(getattr(block, kind + part), n_head) for part in "qkv"]
    return np.concatenate([parts[part][head] for head in range(n_head) for part in range(3)])


def gpt2_state(params: Any, head: bool = False) -> dict[str, np.ndarray]:
    """The tensors of ggml's example gpt-2."""
    state = {"model/ln_f/g": params.ln_w, "model/ln_f/b": params.ln_b, "model/wte": params.wte, "model/wpe": params.wpe}
    for i, block in enumerate(params.blocks):
        at = f"model/h{i}"
        state |= {
            f"{at}/ln_1/g": block.ln1_w,
            f"{at}/ln_1/b": block.ln1_b,
            f"{at}/ln_2/g": block.ln2_w,
            f"{at}/ln_2/b": block.ln2_b,
            f"{at}/attn/c_attn/w": fused(block, "w"),
            f"{at}/attn/c_attn/b": fused(block, "b"),
            f"{at}/attn/c_proj/w": block.wo,
            f"{at}/attn/c_proj/b": block.bo,
            f"{at}/mlp/c_fc/w": block.w_in,
            f"{at}/mlp/c_fc/b": block.b_in,
            f"{at}/mlp/c_proj/w": block.w_out,
            f"{at}/mlp/c_proj/b": block.b_out,
        }
    return state | ({"model/lm_head": params.wte} if head else {})


def neox_state(params: Any, n_head: int = 2) -> dict[str, np.ndarray]:
    """The tensors of transformers' GPT-NeoX."""
    state = {"gpt_neox.embed_in.weight": params.wte}
    for i, block in enumerate(params.blocks):
        at = f"gpt_neox.layers.{i}."
        state |= {
            f"{at}input_layernorm.weight": block.ln1_w,
            f"{at}input_layernorm.bias": block.ln1_b,
            f"{at}post_attention_layernorm.weight": block.ln2_w,
            f"{at}post_attention_layernorm.bias": block.ln2_b,
            f"{at}attention.query_key_value.weight": by_head(block, "w", n_head),
            f"{at}attention.query_key_value.bias": by_head(block, "b", n_head),
            f"{at}attention.dense.weight": block.wo,
            f"{at}attention.dense.bias": block.bo,
            f"{at}mlp.dense_h_to_4h.weight": block.w_in,
            f"{at}mlp.dense_h_to_4h.bias": block.b_in,
            f"{at}mlp.dense_4h_to_h.weight": block.w_out,
            f"{at}mlp.dense_4h_to_h.bias": block.b_out,
        }
    state |= {"gpt_neox.final_layer_norm.weight": params.ln_w, "gpt_neox.final_layer_norm.bias": params.ln_b}
    return state | {"embed_out.weight": params.w_head}


def family_ggml(
    header: Iterable[int], state: dict[str, np.ndarray], n_vocab: int, counted: bool, encoding: str = "f32"
) -> bytes:
    """A whole file; vectors and positions stay float32."""
    raw = struct.pack("<i", 0x67676D6C) + b"".join(struct.pack("<i", number) for number in header)
    raw += struct.pack("<i", n_vocab) if counted else b""
    for i in range(n_vocab):
        token = b"%d;" % i
        raw += struct.pack("<i", len(token)) + token
    for name, tensor in state.items():
        plain = tensor.ndim == 1 or name == "model/wpe"
        raw += ggml_tensor(name, tensor, "f32" if plain else encoding)
    return raw


def gpt2_ggml(
    config: Any = GPT2, params: Any = None, head: bool = False, ftype: int = 0, encoding: str = "f32"
) -> bytes:
    params = random_tree(config) if params is None else params
    header = (config.n_vocab, config.n_ctx, config.d_model, config.n_head, config.n_layer, ftype)
    return family_ggml(header, gpt2_state(params, head), config.n_vocab, True, encoding)


def neox_ggml(
    config: Any = NEOX, params: Any = None, old: bool = False, ftype: int = 0, encoding: str = "f32", **numbers: int
) -> bytes:
    """With ``old``, a file of before 13 May 2023."""
    params = random_tree(config) if params is None else params
    header = {"n_vocab": config.n_vocab, "n_ctx": config.n_ctx, "n_embd": config.d_model, "n_head": config.n_head}
    header |= {"n_layer": config.n_layer, "n_rot": config.d_rotary, "par_res": int(config.use_parallel_residual)}
    header |= {"ftype": ftype} | numbers
    if old:
        del header["par_res"]
    return family_ggml(header.values(), neox_state(params, config.n_head), config.n_vocab, False, encoding)


def family_gguf(
    config: Any, params: Any, encoding: str = "f32", head: np.ndarray | None = None, **changes: Any
) -> bytes:
    """As llama.cpp writes GPT-2 and GPT-NeoX; with ``head``, a GPT-2's as its older converters do."""
    name = {"gpt2": "gpt2", "gpt_neox": "gptneox"}[config.model_type]
    keys: dict[str, Any] = {
        "general.architecture": name,
        f"{name}.context_length": config.n_ctx,
        f"{name}.embedding_length": config.d_model,
        f"{name}.feed_forward_length": 4 * config.d_model if name == "gpt2" else config.d_ff,
        f"{name}.block_count": config.n_layer,
        f"{name}.attention.head_count": config.n_head,
        f"{name}.attention.layer_norm_epsilon": config.ln_eps,
        "general.quantization_version": 2,
    }
    state = {"token_embd.weight": params.wte}
    if name == "gpt2":
        state |= {"position_embd.weight": params.wpe}
    else:
        keys |= {f"{name}.rope.dimension_count": config.d_rotary}
        keys |= {f"{name}.use_parallel_residual": config.use_parallel_residual}
        state |= {"output.weight": params.w_head}
    for i, block in enumerate(params.blocks):
        at = f"blk.{i}."
        state |= {
            f"{at}attn_norm.weight": block.ln1_w,
            f"{at}attn_norm.bias": block.ln1_b,
            f"{at}attn_qkv.weight": fused(block, "w"),
            f"{at}attn_qkv.bias": fused(block, "b"),
            f"{at}attn_output.weight": block.wo,
            f"{at}attn_output.bias": block.bo,
            f"{at}ffn_norm.weight": block.ln2_w,
            f"{at}ffn_norm.bias": block.ln2_b,
            f"{at}ffn_up.weight": block.w_in,
            f"{at}ffn_up.bias": block.b_in,
            f"{at}ffn_down.weight": block.w_out,
            f"{at}ffn_down.bias": block.b_out,
        }
    state |= {"output_norm.weight": params.ln_w, "output_norm.bias": params.ln_b}
    state |= {} if head is None else {"output.weight": head}
    keys = {key: value for key, value in (keys | changes).items() if value is not None}
    return gguf_bytes(keys, state, encoding=encoding)


# Blocks of quantisation versions 0 and 1, and of q6_K


def earlier_block(encoding: str, version: int, numbers: Iterable[float]) -> bytes:
    """32 numbers, or 16 of q4_2 and q4_3, as programs of then laid them out."""
    x = [float(number) for number in numbers]
    if version == 1 and encoding.startswith("q5"):
        return block_bytes(encoding, x)
    wide = encoding in ("q4_0", "q4_1", "q8_0")

    def rounded(value: float) -> float:
        return float(np.float32(value)) if wide else half(value)

    pack = "<f" if wide else "<e"
    if encoding == "q8_0":
        scale = rounded(max(map(abs, x)) / 127)
        return struct.pack(pack, scale) + struct.pack("32b", *(nearest(v, scale, -127, 127) for v in x))
    n_bits = int(encoding[1])
    if encoding in ("q4_0", "q4_2", "q5_0"):
        middle = 1 << (n_bits - 1)
        scale, head = rounded(max(x, key=abs) / -middle), b""
        codes = [nearest(v, scale, -middle, middle - 1) + middle for v in x]
    else:
        lowest = rounded(min(x))
        scale, head = rounded((max(x) - min(x)) / ((1 << n_bits) - 1)), struct.pack(pack, lowest)
        codes = [nearest(v - lowest, scale, 0, (1 << n_bits) - 1) for v in x]
    fifth = b"" if n_bits == 4 else struct.pack("<I", sum((code >> 4) << j for j, code in enumerate(codes)))
    lower, upper = (codes[::2], codes[1::2]) if version == 0 else (codes[:16], codes[16:])
    pairs = zip(lower, upper, strict=True)
    return struct.pack(pack, scale) + head + fifth + bytes((low & 15) | (high & 15) << 4 for low, high in pairs)


def decoded_earlier(encoding: str, version: int, raw: bytes) -> list[float]:
    """The numbers of such a block, one by one, each operation rounded to float32."""
    if version == 1 and encoding.startswith("q5"):
        return decoded_block(encoding, raw)
    pack = "<f" if encoding in ("q4_0", "q4_1", "q8_0") else "<e"
    size, single = struct.calcsize(pack), np.float32
    (scale,) = struct.unpack_from(pack, raw)
    if encoding == "q8_0":
        return [float(single(q) * single(scale)) for q in struct.unpack_from("<32b", raw, size)]
    at, least = size, 0.0
    if encoding in ("q4_1", "q4_3", "q5_1"):
        (least,), at = struct.unpack_from(pack, raw, at), at + size
    high = 0
    if encoding.startswith("q5"):
        (high,), at = struct.unpack_from("<I", raw, at), at + 4
    found = []
    for j in range((len(raw) - at) * 2):
        byte = raw[at + j // 2] if version == 0 else raw[at + j % 16]
        upper = j % 2 if version == 0 else j // 16
        code = (byte >> 4 if upper else byte & 15) + 16 * (high >> j & 1)
        code -= {"q4_0": 8, "q4_2": 8, "q5_0": 16}.get(encoding, 0)
        product = single(code) * single(scale)
        found.append(float(product + single(least) if encoding in ("q4_1", "q4_3", "q5_1") else product))
    return found


def decoded_q6_k(raw: bytes) -> list[float]:
    """The 256 numbers of a block of q6_K, one by one: 128 at a time, in four runs of 32."""
    lower, upper = raw[:128], raw[128:192]
    factors, (scale,) = struct.unpack_from("<16b", raw, 192), struct.unpack_from("<e", raw, 208)
    found = []
    for j in range(256):
        part, within = divmod(j, 128)
        run, column = divmod(within, 32)
        byte = lower[64 * part + 32 * (run % 2) + column]
        low = byte >> 4 if run >= 2 else byte & 15
        code = low + 16 * (upper[32 * part + column] >> 2 * run & 3) - 32
        found.append(scale * factors[j // 16] * code)
    assert not any(map(math.isnan, found))
    return found


#: The numbers of formats in files of versions 0 and 1: of tensors, and of files.
EARLIER_TYPES = {"q4_0": 2, "q4_1": 3, "q4_2": 4, "q4_3": 5, "q5_0": 6, "q5_1": 7, "q8_0": 8}
EARLIER_FILES = {"q4_0": 2, "q4_1": 3, "q4_2": 5, "q4_3": 6, "q5_0": 8, "q5_1": 9, "q8_0": 7}


def earlier_ggml(
    config: Any, state: dict[str, np.ndarray], encoding: str, version: int, number: int | None = None
) -> tuple[bytes, dict[str, np.ndarray]]:
    """A GPT-J's file of version 0 or 1, and the numbers that it holds; ``number`` is the type that its tensors tell."""
    shape = (config.n_vocab, config.n_ctx, config.d_model, config.n_head, config.n_layer, config.d_rotary)
    raw = struct.pack("<9i", 0x67676D6C, *shape, 1000 * version + EARLIER_FILES[encoding], config.n_vocab)
    raw += b"".join(struct.pack("<i", 3) + b"%03d" % i for i in range(config.n_vocab))
    size, held = 16 if encoding in ("q4_2", "q4_3") else 32, {}
    for name, tensor in state.items():
        if tensor.ndim == 1:
            raw += ggml_tensor(name, tensor, "f32")
            held[name] = tensor
            continue
        blocks = [earlier_block(encoding, version, block) for block in tensor.astype("<f8").reshape(-1, size)]
        kind = EARLIER_TYPES[encoding] if number is None else number
        raw += struct.pack("<3i", 2, len(name), kind) + struct.pack("<2i", *reversed(tensor.shape)) + name.encode()
        raw += b"".join(blocks)
        numbers = [decoded_earlier(encoding, version, block) for block in blocks]
        held[name] = np.array(numbers, "<f4").reshape(tensor.shape)
    return raw, held
