"""Checkpoints as Mesh Transformer JAX writes them, without JAX: a tree for each device, flattened and cut into files.

Nothing here knows the package's tables: modules are named, and matrices shared out, as its layers do it.
"""

from __future__ import annotations

import io
import itertools
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from refgpt import ModelConfig
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from refgpt.spec.gptj import Params
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(n_head=4, d_model=32, d_ff=128, n_vocab=60, n_ctx=24, d_rotary=4)
N_PIECES = 16  # files of a shard
Tree = dict[str, Any]


def params_json(config: ModelConfig = CONFIG, **changes: Any) -> dict[str, Any]:
    keys = {
        "layers": config.n_layer,
        "d_model": config.d_model,
        "n_heads": config.n_head,
        "n_vocab": config.n_vocab,
        "norm": "layernorm",
        "pe": "rotary",
        "pe_rotary_dims": config.d_rotary,
        "seq": config.n_ctx,
        "cores_per_replica": 8,
        "per_replica_batch": 1,
        "tpu_size": 256,
        "name": "GPT3_6B_pile_rotary",
    }
    return keys | changes


def write_params_json(directory: Path, config: ModelConfig = CONFIG, **changes: Any) -> None:
    (directory / "params.json").write_text(json.dumps(params_json(config, **changes)))


def trees(params: Params, n: int, seed: int = 7) -> tuple[list[Tree], Params]:
    """The haiku parameters of each of ``n`` devices, and the model that they are together.

    The devices add up their biases of the embedding and of the MLP's output, so these are made up for each of them, in
    the dtype of the weights; the model is ``params`` with the sums in their place.
    """
    stream = np.random.RandomState(seed)

    def biases(like: np.ndarray) -> list[np.ndarray]:
        steps = [stream.randint(-64, 65, like.shape[-1:]) / 64 for _ in range(n)]  # in every dtype, and so are the sums
        return [_narrow(step, like.dtype) for step in steps]

    shift = biases(params.wte)
    wte = widen(params.wte) + sum(map(widen, shift))
    devices: list[Tree] = [{} for _ in range(n)]
    blocks = []
    for i, block in enumerate(params.blocks):
        out = biases(block.b_out)
        blocks.append(replace(block, b_out=sum(map(widen, out))))
        for device, tree in enumerate(devices):
            at = f"causal_transformer_shard/~/layer_{i}/~/"
            tree[at + "linear"] = {"w": columns(block.wq, device, n)}
            tree[at + "linear_1"] = {"w": columns(block.wv, device, n)}
            tree[at + "linear_2"] = {"w": columns(block.wk, device, n)}
            tree[at + "linear_3"] = {"w": rows(block.wo.T, device, n)}
            tree[at + "linear_4"] = {"w": columns(block.w_in, device, n), "b": rows(block.b_in, device, n)}
            tree[at + "linear_5"] = {"w": rows(block.w_out.T, device, n), "b": out[device]}
            tree[at + "replicated_layer_norm"] = {"scale": block.ln_w, "offset": block.ln_b}
    for device, tree in enumerate(devices):
        at = "causal_transformer_shard/~/projection_shard/~/"
        tree[at + "linear"] = {"w": columns(params.w_head, device, n), "b": rows(params.b_head, device, n)}
        tree[at + "replicated_layer_norm"] = {"scale": params.ln_w, "offset": params.ln_b}
        embedding = {"w": rows(params.wte, device, n), "b": shift[device]}
        tree["causal_transformer_shard/~/embedding_shard/~/linear"] = embedding
    return devices, replace(params, wte=wte, blocks=tuple(blocks))


def rows(x: np.ndarray, device: int, n: int) -> np.ndarray:
    """A device's share of what is cut along its first axis."""
    size = len(x) // n
    return x[device * size : (device + 1) * size]


def columns(w: np.ndarray, device: int, n: int) -> np.ndarray:
    """A device's share of the outputs of a matrix [out, in], as haiku's [in, out]."""
    return np.ascontiguousarray(rows(w, device, n).T)


def _narrow(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == BFLOAT16:
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)
    return x.astype(dtype)


def state(tree: Tree, optimiser: bool, step: int = 383500) -> Tree:
    """What is saved of a device: with the optimiser, also Adam's count and moments and the schedule's count."""
    whole: Tree = {"params": tree, "step": np.array(step, np.int32)}
    if optimiser:
        moment = {
            module: {name: np.full_like(widen(x), 1e4) for name, x in leaves.items()} for module, leaves in tree.items()
        }
        count = np.array(step, np.int32)
        whole["opt_state"] = {"2": {"count": count, "mu": moment, "nu": moment}, "5": {"count": count}}
    return whole


def leaves_of(tree: Tree | np.ndarray) -> Iterator[np.ndarray]:
    """As JAX flattens dictionaries: by sorted keys."""
    if isinstance(tree, np.ndarray):
        yield tree
    else:
        for key in sorted(tree):
            yield from leaves_of(tree[key])


def pieces_of(leaves: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Cut into sixteen, the first ones by one longer where it does not come out even."""
    size, longer = divmod(len(leaves), N_PIECES)
    starts = [i * size + min(i, longer) for i in range(N_PIECES + 1)]
    return [leaves[start:stop] for start, stop in itertools.pairwise(starts)]


def npy(x: np.ndarray) -> bytes:
    """An array's file by hand: NumPy has no bfloat16, and JAX's is saved as '<V2'."""
    return npy_header("<V2" if x.dtype == BFLOAT16 else x.dtype.str, x.shape) + x.tobytes()


def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def npz(arrays: Iterable[np.ndarray], compression: int = zipfile.ZIP_STORED) -> bytes:
    """As numpy.savez writes it."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", compression) as archive:
        for i, x in enumerate(arrays):
            with archive.open(f"arr_{i}.npy", "w", force_zip64=True) as member:
                member.write(npy(x))
    return raw.getvalue()


def files(params: Params, n: int, optimiser: bool = False) -> tuple[dict[str, bytes], Params]:
    """Every file of a checkpoint by its path, and the model it is."""
    devices, whole = trees(params, n)
    found = {}
    for device, tree in enumerate(devices):
        for j, piece in enumerate(pieces_of(list(leaves_of(state(tree, optimiser))))):
            found[f"step_383500/shard_{device}/{j}.npz"] = npz(piece)
    return found, whole


def write_files(directory: Path, found: dict[str, bytes]) -> Path:
    for name, raw in found.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(raw)
    return directory


def write_mesh(
    directory: Path, params: Params, n: int, optimiser: bool = False, config: ModelConfig = CONFIG
) -> Params:
    """A directory with params.json; returns the model that it holds."""
    found, whole = files(params, n, optimiser)
    write_files(directory, found)
    write_params_json(directory, config)
    return whole


def tar(found: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=format) as archive:
        for name, content in found.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def compressed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


def model(dtype: Any = "f32", seed: int = 5, config: ModelConfig = CONFIG) -> Params:
    return random_params(config, seed, dtype)
