"""The names of GPT-J in checkpoints of Mesh Transformer JAX: keys of its configuration, and the order of its leaves.

Such a checkpoint stores no names. Each device saved the leaves of its ``{"opt_state", "params", "step"}`` in the
order in which JAX flattens dictionaries, by key, so that layer_10 comes before layer_2; "slim" checkpoints have no
"opt_state". The names are those of https://github.com/kingoflolz/mesh-transformer-jax, ``mesh_transformer/layers.py``,
where ``linear_1`` makes the values and ``linear_2`` the keys, and a matrix is [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.wording import listed, shown, tensor_at
from refgpt.checkpoints.checkpoint import check_params
from refgpt.checkpoints.families.settings import build_config
from refgpt.checkpoints.files.sharded import Sharded
from refgpt.numbers.dtypes import dtype_name
from refgpt.numbers.leaves import Leaf, widen
from refgpt.spec.gptj import Config, Params, leaf_shapes

#: The configuration: the key of each field.
KEYS = {
    "n_layer": "layers",
    "n_head": "n_heads",
    "d_model": "d_model",
    "n_ctx": "seq",
    "n_vocab": "n_vocab",
    "d_rotary": "pe_rotary_dims",
}
#: All keys but the last are required; without the last one, whole heads are rotated.
NEEDED = tuple(KEYS.values())[:-1]

#: Values that keys must have if they are present, and why.
DEMANDS = {
    "pe": ("rotary", "GPT-J encodes positions by rotation"),
    "norm": ("layernorm", "GPT-J normalises with LayerNorm, whose scale and offset are the same in all shards"),
}
EXAMPLE = (
    '{"layers": 28, "d_model": 4096, "n_heads": 16, "n_vocab": 50400, "seq": 2048, '
    '"pe": "rotary", "pe_rotary_dims": 64, "norm": "layernorm"}'
)

#: A bias that is added to every row of "wte"; all other formats store the sum.
WTE_BIAS = "wte_bias"
EMBEDDING = {"linear/w": "wte", "linear/b": WTE_BIAS}
BLOCK = {
    "linear/w": "wq",
    "linear_1/w": "wv",
    "linear_2/w": "wk",
    "linear_3/w": "wo",
    "linear_4/w": "w_in",
    "linear_4/b": "b_in",
    "linear_5/w": "w_out",
    "linear_5/b": "b_out",
    "replicated_layer_norm/scale": "ln_w",
    "replicated_layer_norm/offset": "ln_b",
}
HEAD = {
    "linear/w": "w_head",
    "linear/b": "b_head",
    "replicated_layer_norm/scale": "ln_w",
    "replicated_layer_norm/offset": "ln_b",
}

#: How a leaf is divided among the shards: by outputs, by inputs (stored transposed), or by rows. An undivided leaf is
#: either stored as terms whose sum over the shards is the leaf (each device adds its own), or as equal copies.
OUTPUTS, INPUTS = {"wq", "wk", "wv", "w_in", "w_head"}, {"wo", "w_out"}
ROWS = {"wte", "b_in", "b_head"}
SUMMED = {"b_out", WTE_BIAS}


def read_config(raw: Mapping[str, Any], path: Path) -> Config:
    """The configuration that a model was trained with as a ``ModelConfig``.

    Parameters
    ----------
    raw : mapping
        The parsed params.json.
    path : Path
        Its path, for errors.

    Raises
    ------
    ConfigError
        If a key is missing, a value makes no sense, or the file describes something other than GPT-J.
    """
    for key, (wanted, reason) in DEMANDS.items():
        if key in raw and raw[key] != wanted:
            raise ConfigError(
                f"{key} describes another model: {reason}", where=path, got=shown(raw[key]), wanted=repr(wanted)
            )
    if missing := [key for key in NEEDED if key not in raw]:
        raise ConfigError(
            "keys are missing",
            where=path,
            got=f"no {listed(missing)}",
            fix=f"use the file that the model was trained with; GPT-J-6B's says {EXAMPLE}",
        )
    given = {field: raw[key] for field, key in KEYS.items() if key in raw}
    width, n_heads, n_vocab = (raw[key] if type(raw[key]) is int else 1 for key in ("d_model", "n_heads", "n_vocab"))
    given.setdefault("d_rotary", width // max(n_heads, 1))
    token = Config.eos_id if n_vocab > (Config.eos_id or 0) else None  # of GPT-2's tokenizer
    return build_config(Config, {**given, "d_ff": 4 * width, "bos_id": token, "eos_id": token}, KEYS, path)


def leaf_names(n_layer: int) -> dict[str, str]:
    """The leaf for each name in the checkpoint, in the order in which a shard stores them.

    "layer_0/~/linear/w" -> "blocks.0.wq"; every name in the checkpoint begins with "causal_transformer_shard/~/".
    """
    names = {f"embedding_shard/~/{name}": leaf for name, leaf in EMBEDDING.items()}
    for i in range(n_layer):
        names |= {f"layer_{i}/~/{name}": f"blocks.{i}.{leaf}" for name, leaf in BLOCK.items()}
    names |= {f"projection_shard/~/{name}": leaf for name, leaf in HEAD.items()}
    return dict(sorted(names.items(), key=lambda item: item[0].rpartition("/")))


def build_params(shards: Sequence[Sequence[np.ndarray]], config: Config, path: Path) -> Params:
    """The parameter tree over the parameters of every shard; only vectors are copied.

    The biases of ``fc_out`` and of the embedding are summed over the shards in float32. The embedding's is then added
    to every row of the table as it is read, also in float32: in the checkpoints of Hugging Face, these sums were made
    in bfloat16 and float16, and differ from ours by their rounding.

    Parameters
    ----------
    shards : sequence of sequences of ndarray
        The leaves of each shard, as ``leaf_names`` lists them.
    config : Config
    path : Path
        Of the checkpoint, for errors and for the places of matrices.

    Raises
    ------
    CheckpointError
        Naming every leaf of a wrong shape or dtype.
    """
    n, faults = len(shards), []
    if config.n_head % n or config.n_vocab % n:
        raise CheckpointError(
            "the shards cannot share out this model",
            where=path,
            got=f"{n} shards",
            wanted=f"a divisor of {config.n_head} heads and {config.n_vocab} tokens",
            fix="use the params.json that came with these weights",
        )
    shapes = {**leaf_shapes(config), WTE_BIAS: (config.d_model,)}
    names = leaf_names(config.n_layer)
    parts: dict[str, list[np.ndarray]] = {}
    for i, (name, leaf) in enumerate(names.items()):
        parts[leaf] = [shard[i] for shard in shards]
        wanted = _shard_shape(leaf.rpartition(".")[2], shapes[leaf], n)
        for k, part in enumerate(parts[leaf]):
            if dtype_name(part.dtype) is None:
                faults.append(f"{name} of shard {k} holds {part.dtype}, not floating-point numbers")
            elif part.shape != wanted:
                faults.append(f"{name} of shard {k} is {list(part.shape)}, not {list(wanted)}")
            elif part.dtype != parts[leaf][0].dtype:
                faults.append(f"{name} is {parts[leaf][0].dtype} in shard 0 and {part.dtype} in shard {k}")
    if faults:
        raise CheckpointError(
            "the weights do not fit the configuration",
            where=path,
            got=listed(faults),
            fix="use the params.json that came with these weights",
        )
    wte_bias = _sum(parts.pop(WTE_BIAS))
    place = {leaf: tensor_at(path, name) for name, leaf in names.items()}
    leaves = {leaf: _join(leaf.rpartition(".")[2], part, place[leaf], wte_bias) for leaf, part in parts.items()}
    params = Params.from_leaves(leaves, config.n_layer)
    check_params(params, config, {leaf: name for name, leaf in names.items()}, path)
    return params


def _shard_shape(kind: str, shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The shape of a shard's part of a leaf of this shape."""
    if kind in OUTPUTS:
        return shape[1], shape[0] // n
    if kind in INPUTS:
        return shape[1] // n, shape[0]
    return (shape[0] // n, *shape[1:]) if kind in ROWS else shape


def _join(kind: str, parts: list[np.ndarray], place: str, wte_bias: np.ndarray) -> Leaf:
    if kind in OUTPUTS | INPUTS:
        return Sharded([part.T for part in parts], 0 if kind in OUTPUTS else 1, place)
    if kind == "wte":
        return Sharded(parts, 0, place, added=wte_bias)
    if kind in SUMMED:
        return _sum(parts)
    return np.concatenate(parts) if kind in ROWS else parts[0]


def _sum(parts: list[np.ndarray]) -> np.ndarray:
    """Sum in float32, from the first shard to the last."""
    total = np.zeros(parts[0].shape, np.float32)
    for part in parts:
        total += widen(part)
    return total
