"""Checkpoints as other programs write them, without those programs: torch's zip files, shards, GPT-JT's buffers.

Nothing here knows the package's tables of names: they are written down a second time on purpose.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from refgpt import ModelConfig
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.spec.gptj import Params
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(n_vocab=37, n_ctx=12, d_model=16, d_ff=24, n_head=2)
PARAMS = random_params(CONFIG, seed=5)

STORAGE_TYPES = {
    np.dtype("<f4"): "FloatStorage",
    np.dtype("<f2"): "HalfStorage",
    BFLOAT16: "BFloat16Storage",
    np.dtype("<f8"): "DoubleStorage",
    np.dtype("?"): "BoolStorage",
    np.dtype("u1"): "ByteStorage",
    np.dtype("i1"): "CharStorage",
    np.dtype("<i8"): "LongStorage",
}


def state_dict(params: Params = PARAMS, prefix: str = "transformer.") -> dict[str, np.ndarray]:
    """The weights under the names of GPTJForCausalLM."""
    state = {f"{prefix}wte.weight": params.wte}
    for i, block in enumerate(params.blocks):
        at = f"{prefix}h.{i}."
        state |= {
            f"{at}ln_1.weight": block.ln_w,
            f"{at}ln_1.bias": block.ln_b,
            f"{at}attn.k_proj.weight": block.wk,
            f"{at}attn.v_proj.weight": block.wv,
            f"{at}attn.q_proj.weight": block.wq,
            f"{at}attn.out_proj.weight": block.wo,
            f"{at}mlp.fc_in.weight": block.w_in,
            f"{at}mlp.fc_in.bias": block.b_in,
            f"{at}mlp.fc_out.weight": block.w_out,
            f"{at}mlp.fc_out.bias": block.b_out,
        }
    state |= {f"{prefix}ln_f.weight": params.ln_w, f"{prefix}ln_f.bias": params.ln_b}
    return state | {"lm_head.weight": params.w_head, "lm_head.bias": params.b_head}


def buffers(mask: np.ndarray, n_layer: int = CONFIG.n_layer, prefix: str = "transformer.") -> dict[str, np.ndarray]:
    """What older versions of transformers save beside the weights of each layer."""
    found = {}
    for i in range(n_layer):
        found[f"{prefix}h.{i}.attn.bias"] = mask.reshape(1, 1, *mask.shape)
        found[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e9, "<f4")
    return found


def config_json(config: ModelConfig = CONFIG, **changes: Any) -> dict[str, Any]:
    """The keys of a GPT-J config.json."""
    keys = {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "activation_function": "gelu_new",
        "rotary": True,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "rotary_dim": config.d_rotary,
        "vocab_size": config.n_vocab,
        "n_positions": config.n_ctx,
        "layer_norm_epsilon": config.ln_eps,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    return keys | changes


def write_config(directory: Path, **changes: Any) -> None:
    (directory / "config.json").write_text(json.dumps(config_json(**changes)))


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """By the safetensors library; for NumPy it knows no bfloat16: those go in as integers, renamed in the header."""
    plain = {name: tensor.view("<u2") if tensor.dtype == BFLOAT16 else tensor for name, tensor in tensors.items()}
    raw = safetensors.numpy.save({name: tensor.copy(order="C") for name, tensor in plain.items()}, {"format": "pt"})
    n_header = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n_header])
    for name, tensor in tensors.items():
        if tensor.dtype == BFLOAT16:
            header[name]["dtype"] = "BF16"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + n_header :])


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """As torch.save does, every tensor in a storage of its own."""
    listed = [
        (name, tensor_code(name_of_storage(tensor), str(i), tensor)) for i, (name, tensor) in enumerate(tensors.items())
    ]
    storages = {str(i): tensor.tobytes() for i, tensor in enumerate(tensors.values())}
    write_torch_zip(path, state_code(listed), storages)


def write_shards(directory: Path, suffix: str, tensors: Mapping[str, np.ndarray], n_shards: int = 3) -> dict[str, str]:
    """An index and its shards; returns the map from tensor to file."""
    stem, write = ("model", write_safetensors) if suffix == "safetensors" else ("pytorch_model", write_torch)
    weight_map = {}
    for i in range(n_shards):
        file = f"{stem}-{i + 1:05d}-of-{n_shards:05d}.{suffix}"
        part = {name: tensors[name] for name in list(tensors)[i::n_shards]}
        write(directory / file, part)
        weight_map |= dict.fromkeys(part, file)
    n_bytes = sum(tensor.nbytes for tensor in tensors.values())
    write_index(directory / f"{stem}.{suffix}.index.json", weight_map, metadata={"total_size": n_bytes})
    return weight_map


def write_index(path: Path, weight_map: Mapping[str, str], **rest: Any) -> None:
    path.write_text(json.dumps({**rest, "weight_map": weight_map}))


def write_torch_zip(
    path: Path, program: bytes, storages: Mapping[str, bytes], byteorder: bytes | None = b"little"
) -> None:
    """The archive alone; zipfile aligns nothing, so storages start at odd places."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", b"3\n")


# Pickle, protocol 2, by hand: each function returns the code that leaves one value on the stack.


def text_code(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<L", len(raw)) + raw


def int_code(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_code(items: Iterable[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def ints_code(values: Iterable[int]) -> bytes:
    return tuple_code(map(int_code, values))


def global_code(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call_code(module: str, name: str, args: Iterable[bytes]) -> bytes:
    return global_code(module, name) + tuple_code(args) + b"R"


HOOKS = call_code("collections", "OrderedDict", [])


def name_of_storage(tensor: np.ndarray) -> str:
    return STORAGE_TYPES[tensor.dtype]


def storage_code(kind: str, key: str, n_items: int) -> bytes:
    saved = [text_code("storage"), global_code("torch", kind), text_code(key), text_code("cpu"), int_code(n_items)]
    return tuple_code(saved) + b"Q"


def view_code(storage: bytes, offset: int, shape: Iterable[int], strides: Iterable[int], *more: bytes) -> bytes:
    args = [storage, int_code(offset), ints_code(shape), ints_code(strides), b"\x89", HOOKS, *more]
    return call_code("torch._utils", "_rebuild_tensor_v2", args)


def tensor_code(kind: str, key: str, tensor: np.ndarray) -> bytes:
    strides = [step // tensor.itemsize for step in np.empty(tensor.shape, tensor.dtype).strides]
    return view_code(storage_code(kind, key, tensor.size), 0, tensor.shape, strides)


def state_code(items: Iterable[tuple[str, bytes]]) -> bytes:
    pairs = b"".join(text_code(name) + code for name, code in items)
    metadata = b"}" + text_code("_metadata") + HOOKS + b"sb"  # the versions of modules, as attributes of the dictionary
    return b"\x80\x02" + HOOKS + b"(" + pairs + b"u" + metadata + b"."
