"""Directories as CTranslate2 writes them, without CTranslate2; its own files are in tests/goldens/ctranslate2_files/.

Nothing here knows the package's tables of names: they are written down a second time on purpose.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt import ModelConfig
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from refgpt.spec.gptj import Params
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(n_ctx=2048, bos_id=7, eos_id=60)
PARAMS = random_params(CONFIG, seed=5)
TYPES = ["float32", "int8", "int16", "int32", "float16", "bfloat16"]


def half_split(w: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows of queries or keys as the rotation of halves wants them: in each head first the even, then the odd ones."""
    rows = []
    for head in np.split(w, config.n_head):
        turned, rest = head[: config.d_rotary], head[config.d_rotary :]
        rows += [turned[0::2], turned[1::2], rest]
    return np.concatenate(rows)


def to_int8(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers and what the rows were multiplied with."""
    most = np.abs(widen(w)).max(axis=1)
    scale = (127 / np.where(most == 0, 127, most)).astype(np.float32)
    return np.rint(widen(w) * scale[:, None]).astype(np.int8), scale


def from_int8(integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return integers.astype(np.float32) * (np.float32(1) / scale)[:, None]


def variables(
    params: Params = PARAMS, config: ModelConfig = CONFIG, int8: bool = False, interleaved: bool = False
) -> dict[str, np.ndarray]:
    """Every variable by its name, in order."""
    turned = (lambda w: w) if interleaved else (lambda w: half_split(w, config))
    found: dict[str, np.ndarray] = {
        "decoder/activation": np.array(1, "i1"),
        "decoder/alibi": np.array(0, "i1"),
        "decoder/alignment_heads": np.array(1, "<i2"),
        "decoder/alignment_layer": np.array(-1, "<i2"),
        "decoder/num_heads": np.array(config.n_head, "<i2"),
        "decoder/pre_norm": np.array(1, "i1"),
        "decoder/scale_embeddings": np.array(0, "i1"),
        "decoder/embeddings/weight": params.wte,
        "decoder/layer_norm/gamma": params.ln_w,
        "decoder/layer_norm/beta": params.ln_b,
        "decoder/projection/weight": params.w_head,
        "decoder/projection/bias": params.b_head,
        "decoder/projection/keep_in_float32": np.array(0, "i1"),
    }
    for i, p in enumerate(params.blocks):
        at = f"decoder/layer_{i}/"
        found |= {
            f"{at}shared_layer_norm/gamma": p.ln_w,
            f"{at}shared_layer_norm/beta": p.ln_b,
            f"{at}self_attention/linear_0/weight": np.concatenate([turned(p.wq), turned(p.wk), p.wv]),
            f"{at}self_attention/linear_1/weight": p.wo,
            f"{at}self_attention/rotary_dim": np.array(config.d_rotary, "<i4"),
            f"{at}self_attention/rotary_base": np.array(10000, "<f4"),
            f"{at}ffn/linear_0/weight": p.w_in,
            f"{at}ffn/linear_0/bias": p.b_in,
            f"{at}ffn/linear_1/weight": p.w_out,
            f"{at}ffn/linear_1/bias": p.b_out,
        }
        if not interleaved:
            found[f"{at}self_attention/rotary_interleave"] = np.array(0, "i1")
    for name in [name for name in found if int8 and name.endswith("/weight")]:
        found[name], found[f"{name}_scale"] = to_int8(found[name])
    return dict(sorted(found.items()))


def model_bin(
    found: Mapping[str, np.ndarray],
    aliases: Mapping[str, str] | None = None,
    version: int = 6,
    spec: str = "TransformerDecoderSpec",
    revision: int = 8,
) -> bytes:
    def text(word: str) -> bytes:
        return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"

    def variable(name: str, x: np.ndarray) -> bytes:
        kind = "bfloat16" if x.dtype == BFLOAT16 else x.dtype.name
        shape = struct.pack(f"<B{x.ndim}L", x.ndim, *x.shape)
        return text(name) + shape + struct.pack("<BL", TYPES.index(kind), x.nbytes) + x.tobytes()

    raw = struct.pack("<L", version) + text(spec) + struct.pack("<2L", revision, len(found))
    raw += b"".join(variable(name, x) for name, x in found.items())
    names = (aliases or {}).items()
    return raw + struct.pack("<L", len(names)) + b"".join(text(name) + text(other) for name, other in names)


def write_ctranslate2(directory: Path, raw: bytes, config: ModelConfig = CONFIG, **keys: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "model.bin").write_bytes(raw)
    tokens = [f"token {i}" for i in range(config.n_vocab)]
    (directory / "vocabulary.json").write_text(json.dumps(tokens))
    said = {
        "bos_token": tokens[config.bos_id or 0],
        "eos_token": tokens[config.eos_id or 0],
        "unk_token": "<unk>",
        "layer_norm_epsilon": None,
        "multi_query_attention": True,
    }
    (directory / "config.json").write_text(json.dumps(said | keys))
    return directory
