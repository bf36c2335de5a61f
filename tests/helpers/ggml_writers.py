"""Files of ggml and GGUF as other programs write them, written number by number from the formats' descriptions.

Nothing here knows the package's tables: names, layouts and formulas are written down a second time on purpose.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt import ModelConfig
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.spec.gptj import Params
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.writers import state_dict

#: Rows must be whole blocks of 32; the vocabulary and the heads stay odd.
CONFIG = tiny_config(n_vocab=37, n_ctx=12, d_model=64, d_ff=96, n_head=2, d_rotary=6)
PARAMS = random_params(CONFIG, seed=5)

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9, "q8_0": 7}
QUANTISED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


# Blocks: each function takes 32 numbers and returns their bytes, and is undone by ``decoded_block``.


def half(x: float) -> float:
    """The nearest float16."""
    return float(np.float16(x))


def block_bytes(encoding: str, numbers: Iterable[float]) -> bytes:
    """32 numbers, rounded as well as the encoding can."""
    x = [float(number) for number in numbers]
    assert len(x) == 32
    if encoding == "q8_0":
        scale = half(max(map(abs, x)) / 127)
        return struct.pack("<e", scale) + struct.pack("32b", *(nearest(v, scale, -127, 127) for v in x))
    n_bits = int(encoding[1])
    if encoding.endswith("_0"):
        middle = 1 << (n_bits - 1)
        scale, least, head = half(max(x, key=abs) / -middle), -middle, b""
        codes = [nearest(v, scale, -middle, middle - 1) - least for v in x]
    else:
        lowest = half(min(x))
        scale, head = half((max(x) - min(x)) / ((1 << n_bits) - 1)), struct.pack("<e", lowest)
        codes = [nearest(v - lowest, scale, 0, (1 << n_bits) - 1) for v in x]
    fifth = b"" if n_bits == 4 else struct.pack("<I", sum((code >> 4) << j for j, code in enumerate(codes)))
    halves = bytes((codes[j] & 15) | (codes[j + 16] & 15) << 4 for j in range(16))
    return struct.pack("<e", scale) + head + fifth + halves


def nearest(x: float, scale: float, least: int, most: int) -> int:
    return 0 if scale == 0 else min(max(math.floor(x / scale + 0.5), least), most)


def decoded_block(encoding: str, raw: bytes) -> list[float]:
    """The 32 numbers of a block, one by one in Python's floats (which hold them exactly), then rounded to float32."""
    (scale,) = struct.unpack_from("<e", raw)
    if encoding == "q8_0":
        return [q * scale for q in struct.unpack_from("<32b", raw, 2)]
    at, high = 2 if encoding.endswith("_0") else 4, 0
    if encoding.startswith("q5"):
        (high,), at = struct.unpack_from("<I", raw, at), at + 4
    halves = [raw[at + j] & 15 for j in range(16)] + [raw[at + j] >> 4 for j in range(16)]
    codes = [q + 16 * (high >> j & 1) for j, q in enumerate(halves)]
    if encoding.endswith("_0"):
        return [(code - {"q4_0": 8, "q5_0": 16}[encoding]) * scale for code in codes]
    (least,) = struct.unpack_from("<e", raw, 2)
    return [float(np.float32(code * scale + least)) for code in codes]


def tensor_bytes(encoding: str, tensor: np.ndarray) -> bytes:
    """A tensor's bytes in an encoding; floats are taken as they are if they are of that dtype already."""
    if encoding in QUANTISED:
        return b"".join(block_bytes(encoding, block) for block in tensor.astype("<f8").reshape(-1, 32))
    dtype = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": BFLOAT16}[encoding]
    return (tensor if tensor.dtype == dtype else tensor.astype(dtype)).tobytes()


def encoding_of(name: str, tensor: np.ndarray, encoding: str) -> str:
    """What converters do: matrices as asked, vectors in float32."""
    return encoding if tensor.ndim == 2 else "f32"


def decoded(params: Params, encoding: str) -> Params:
    """The weights that a file holds whose matrices were written in an encoding."""

    def change(_: str, leaf: Any) -> np.ndarray:
        if leaf.ndim == 1 or encoding not in QUANTISED:
            return leaf if leaf.ndim == 1 else leaf.astype({"f32": "<f4", "f16": "<f2"}[encoding])
        raw = tensor_bytes(encoding, leaf)
        size = len(raw) * 32 // leaf.size
        numbers = [decoded_block(encoding, raw[at : at + size]) for at in range(0, len(raw), size)]
        return np.array(numbers, "<f4").reshape(leaf.shape)

    return params.map(change)


# ggml's own files


def ggml_bytes(
    config: ModelConfig = CONFIG,
    params: Params = PARAMS,
    encoding: str = "f32",
    version: int | None = None,
    tokens: Iterable[bytes] | None = None,
    ftype: int | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    **numbers: int,
) -> bytes:
    """A whole file; ``numbers`` replace those of the header."""
    tokens = [b"%d;" % i for i in range(config.n_vocab)] if tokens is None else list(tokens)
    version = 2 if version is None and encoding in QUANTISED else version or 0
    header = {
        "n_vocab": config.n_vocab,
        "n_ctx": config.n_ctx,
        "n_embd": config.d_model,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
        "n_rot": config.d_rotary,
        "ftype": 1000 * version + FILE_TYPES[encoding] if ftype is None else ftype,
    } | numbers
    raw = struct.pack("<8i", 0x67676D6C, *header.values()) + struct.pack("<i", len(tokens))
    raw += b"".join(struct.pack("<i", len(token)) + token for token in tokens)
    for name, tensor in (state_dict(params) if tensors is None else tensors).items():
        raw += ggml_tensor(name, tensor, encoding_of(name, tensor, encoding))
    return raw


def ggml_tensor(name: str, tensor: np.ndarray, encoding: str) -> bytes:
    head = struct.pack("<3i", tensor.ndim, len(name.encode()), TYPES[encoding])
    dims = struct.pack(f"<{tensor.ndim}i", *reversed(tensor.shape))
    return head + dims + name.encode() + tensor_bytes(encoding, tensor)


# GGUF


def gguf_names(params: Params = PARAMS) -> dict[str, np.ndarray]:
    """The weights under GGUF's names."""
    state = {"token_embd.weight": params.wte}
    for i, block in enumerate(params.blocks):
        at = f"blk.{i}."
        state |= {
            f"{at}attn_norm.weight": block.ln_w,
            f"{at}attn_norm.bias": block.ln_b,
            f"{at}attn_k.weight": block.wk,
            f"{at}attn_v.weight": block.wv,
            f"{at}attn_q.weight": block.wq,
            f"{at}attn_output.weight": block.wo,
            f"{at}ffn_up.weight": block.w_in,
            f"{at}ffn_up.bias": block.b_in,
            f"{at}ffn_down.weight": block.w_out,
            f"{at}ffn_down.bias": block.b_out,
        }
    state |= {"output_norm.weight": params.ln_w, "output_norm.bias": params.ln_b}
    return state | {"output.weight": params.w_head, "output.bias": params.b_head}


def gguf_metadata(config: ModelConfig = CONFIG, **changes: Any) -> dict[str, Any]:
    """The keys that GPT4All's converter writes; a change to None leaves a key out."""
    keys = {
        "general.architecture": "gptj",
        "general.name": "GPT-J",
        "gptj.context_length": config.n_ctx,
        "gptj.embedding_length": config.d_model,
        "gptj.block_count": config.n_layer,
        "gptj.feed_forward_length": config.d_ff,
        "gptj.attention.head_count": config.n_head,
        "gptj.rope.dimension_count": config.d_rotary,
        "gptj.attention.layer_norm_epsilon": config.ln_eps,
        "general.file_type": 1,
    } | changes
    return {key: value for key, value in keys.items() if value is not None}


def gguf_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type and value: strings and numbers by their Python types, lists by that of their first item."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if value >= 0 else struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str | bytes):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, np.ndarray):
        kind = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "u8": 10, "i8": 11, "f8": 12}
        return struct.pack("<IIQ", 9, kind[value.dtype.str[1:]], len(value)) + value.tobytes()
    items = [gguf_value(item) for item in value]
    return struct.pack("<IIQ", 9, struct.unpack("<I", items[0][:4])[0], len(items)) + b"".join(x[4:] for x in items)


def gguf_bytes(
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    encoding: str = "f32",
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A whole file."""
    metadata = gguf_metadata() if metadata is None else metadata
    tensors = gguf_names() if tensors is None else tensors
    raw = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    raw += b"".join(gguf_string(key) + gguf_value(value) for key, value in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        kind = encoding_of(name, tensor, encoding)
        raw += gguf_string(name) + struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        raw += struct.pack("<IQ", TYPES[kind], len(data))
        data += padded(tensor_bytes(kind, tensor), alignment)
    return padded(raw, alignment) + data


def padded(raw: bytes, alignment: int) -> bytes:
    return raw + bytes(-len(raw) % alignment)


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path
