"""A directory of CTranslate2: ``model.bin``, ``config.json`` with a few facts, the vocabulary as a list of tokens.

The specification is that of https://github.com/OpenNMT/CTranslate2, ``python/ctranslate2/converters/transformers.py``.
The shape of the model is read from its arrays. The number of positions is not stored; the family's default is used.

Queries, keys and values are one matrix. Since version 3.12 the rotated rows of queries and keys are
stored in the order of the other rotation convention: the first members of all pairs, then the second ones. They are
reordered here, and 8-bit matrices are converted to the floats that CTranslate2 itself computes from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.file_names import CONFIG
from refgpt._common.progress import Progress
from refgpt._common.small_files import is_there, parse_json, read_bytes, read_json
from refgpt._common.wording import FRESH_COPY, listed, shown, tensor_at
from refgpt.checkpoints.checkpoint import Checkpoint, TensorInfo, check_params
from refgpt.checkpoints.families import holders
from refgpt.checkpoints.families.formats import CTranslate2
from refgpt.checkpoints.families.settings import build_config
from refgpt.checkpoints.files import ctranslate2_file
from refgpt.checkpoints.files.ctranslate2_file import SCALE
from refgpt.checkpoints.files.scaled_rows import ScaledRows
from refgpt.checkpoints.mask import find_mask, names_of
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import family_of, leaf_shapes

MODEL_BIN = "model.bin"
LARGEST_VOCABULARY = 8 << 20

NUM_HEADS, ROTARY_DIM, INTERLEAVED = "num_heads", "self_attention/rotary_dim", "self_attention/rotary_interleave"
#: Single values that are read.
READ = {NUM_HEADS, ROTARY_DIM, INTERLEAVED}
KEEP_IN_FLOAT32 = "/keep_in_float32"  # says how CTranslate2 computes, not what is stored

LAYER = re.compile(r"layer_(\d{1,4})/(.+)")
BODY = "decoder/"
Arrays = dict[str, np.ndarray]


def is_at(path: Path) -> bool:
    """``model.bin`` or its directory, if the file begins as one of CTranslate2's does."""
    path = path / MODEL_BIN if path.is_dir() else path
    return path.name == MODEL_BIN and is_there(path) and ctranslate2_file.spec_at(path) is not None


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open a directory, or the ``model.bin`` in one. Parameters and errors are those of ``open_checkpoint``."""
    directory = path if path.is_dir() else path.parent
    file = directory / MODEL_BIN
    variables = ctranslate2_file.read(file)
    (family,) = holders("CTRANSLATE2")  # the files of several would be told apart by their variables
    form: CTranslate2 = family.CTRANSLATE2
    if variables.spec != form.spec:
        raise ConfigError(
            "this kind of model is not supported", where=file, got=variables.spec, wanted=form.spec, fix=_fix(form)
        )
    model, layers = _split(form, variables.arrays, file)
    config = _read_config(form, model, layers, directory)
    params = _build_params(form, model, layers, config, file)
    mask, source = find_mask(mask, {}, config.n_ctx, names_of(directory), path)
    infos = tuple(TensorInfo.of(name, array, file) for name, array in variables.arrays.items() if array.ndim)
    kind = f"CTranslate2, version {ctranslate2_file.VERSION}, {form.spec} revision {variables.revision}"
    return Checkpoint(path, kind, family.MODEL_TYPE, config, params, mask, source, infos)


def _fix(form: CTranslate2) -> str:
    return f"check that the model was converted from a {form.title}"


def _split(form: CTranslate2, arrays: Arrays, file: Path) -> tuple[Arrays, list[Arrays]]:
    """Split the variables into the model's and each layer's; an error names all that the family does not have."""
    model: Arrays = {}
    numbered: dict[int, Arrays] = {}
    unknown = []
    for name, array in arrays.items():
        short = name.removeprefix(BODY)
        found = LAYER.fullmatch(short)
        group, leaves = model, form.model
        if found:
            group, short, leaves = numbered.setdefault(int(found[1]), {}), found[2], form.block
        group[short] = array
        if array.ndim:
            known = short.removesuffix(SCALE) in leaves.values()
        else:
            known = short in form.demands or short in form.free | READ or short.endswith(KEEP_IN_FLOAT32)
            known = known and array.dtype != BFLOAT16
        if not known or not name.startswith(BODY):
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"there are variables that have no place in {form.title}",
            where=file,
            got=listed(unknown),
            fix=_fix(form),
        )
    missing = [name for name in (*form.model.values(), *form.needed) if name not in model]
    for i in range(max(numbered, default=0) + 1):
        layer = numbered.get(i, {})
        missing += [
            f"layer_{i}/{name}" for name in (*dict.fromkeys(form.block.values()), ROTARY_DIM) if name not in layer
        ]
    if missing:
        raise CheckpointError("variables are missing", where=file, got=f"no {listed(missing)}", fix=_fix(form))
    return model, [numbered[i] for i in range(len(numbered))]


def _read_config(form: CTranslate2, model: Arrays, layers: list[Arrays], directory: Path) -> Any:
    """The shape of the arrays, and what the single values and ``config.json`` say."""
    file, path = directory / MODEL_BIN, directory / CONFIG
    for i, group in enumerate([model, *layers]):
        for name, (wanted, reason) in form.demands.items():
            if name in group and group[name] != wanted:
                raise ConfigError(
                    f"{name} describes another model: {reason}",
                    where=file,
                    got=group[name],
                    wanted=wanted,
                    fix=_fix(form),
                )
        if i > 1 and any(group.get(name) != layers[0].get(name) for name in (ROTARY_DIM, INTERLEAVED)):
            raise ConfigError(
                "layers rotate differently", where=file, got=f"layer {i - 1}", wanted="all as layer 0", fix=_fix(form)
            )
    raw = read_json(path, ConfigError) if is_there(path) else {}
    if raw.get("quantization_type") is not None:
        raise ConfigError(
            "this quantisation is not read",
            where=path,
            got=shown(raw["quantization_type"]),
            wanted="float32, float16, bfloat16 or int8",
            fix="convert the original model again, with one of these",
        )
    table, hidden = model[form.model["wte"]], layers[0][form.block["w_in"]]
    if table.ndim != 2 or hidden.ndim != 2:
        raise CheckpointError(
            "the embedding or the MLP are not matrices",
            where=file,
            got=f"{list(table.shape)}, {list(hidden.shape)}",
            wanted="two dimensions each",
            fix=FRESH_COPY,
        )
    width, n_head = table.shape[1], model[NUM_HEADS].item()
    given = {
        "n_layer": len(layers),
        "n_head": n_head,
        "d_model": width,
        "d_ff": hidden.shape[0],
        "n_vocab": len(table),
        "d_rotary": layers[0][ROTARY_DIM].item() or width // max(n_head, 1),  # 0 is the whole head
        **_token_ids(raw, directory, len(table)),
    }
    if raw.get("layer_norm_epsilon") is not None:
        given["ln_eps"] = raw["layer_norm_epsilon"]
    return build_config(
        form.config, given, {"n_head": NUM_HEADS, "d_rotary": ROTARY_DIM, "ln_eps": "layer_norm_epsilon"}, file
    )


def _token_ids(raw: Mapping[str, Any], directory: Path, n_vocab: int) -> dict[str, int | None]:
    """The tokens that begin and end a text, which config.json spells, as ids. Before 3.16 a vocabulary was text."""
    tokens: list[Any] = []
    if is_there(path := directory / "vocabulary.json"):
        wrapped = b'{"tokens": %b}' % read_bytes(path, ConfigError, LARGEST_VOCABULARY)  # as an object, which it is not
        tokens = parse_json(wrapped, path, ConfigError)["tokens"]
    elif is_there(path := directory / "vocabulary.txt"):
        tokens = read_bytes(path, ConfigError, LARGEST_VOCABULARY).decode("utf-8", "replace").split("\n", n_vocab)
    ids = {}
    for field, key in (("bos_id", "bos_token"), ("eos_id", "eos_token")):
        known = isinstance(tokens, list) and isinstance(raw.get(key), str) and raw[key] in tokens[:n_vocab]
        ids[field] = tokens.index(raw[key]) if known else None
    return ids


def _build_params(form: CTranslate2, model: Arrays, layers: list[Arrays], config: AnyConfig, file: Path) -> ParamTree:
    leaves: dict[str, Any] = {}
    known_as = {}
    for leaf, shape in leaf_shapes(config).items():
        kind = leaf.rpartition(".")[2]
        if kind == leaf:
            group, name, full = model, form.model[leaf], f"{BODY}{form.model[leaf]}"
        else:
            i = int(leaf.split(".")[1])
            name = form.block[kind]
            group, full = layers[i], f"{BODY}layer_{i}/{name}"
        array, scale, known_as[leaf] = group[name], group.get(name + SCALE), full
        if name == form.qkv:
            array, scale = _third(form, "qkv".index(kind[1]), array, scale, shape, tensor_at(file, full))
        order = None
        if kind in ("wq", "wk") and not group.get(INTERLEAVED, np.array(1)):
            order = _interleaved(config)
        leaves[leaf] = _leaf(form, array, scale, order, tensor_at(file, full))
    params = family_of(config).Params.from_leaves(leaves, config.n_layer)
    check_params(params, config, known_as, file)
    return params


def _third(
    form: CTranslate2, part: int, array: np.ndarray, scale: np.ndarray | None, shape: tuple[int, ...], where: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut queries, keys or values out of the matrix that holds all three."""
    n = shape[0]
    if array.shape != (3 * n, shape[1]) or (scale is not None and scale.shape != (3 * n,)):
        raise CheckpointError(
            "queries, keys and values have another shape",
            where=where,
            got=list(array.shape),
            wanted=[3 * n, shape[1]],
            fix=_fix(form),
        )
    return array[part * n : (part + 1) * n], None if scale is None else scale[part * n : (part + 1) * n]


def _leaf(form: CTranslate2, array: np.ndarray, scale: np.ndarray | None, order: np.ndarray | None, where: str) -> Leaf:
    if array.ndim == 2 and array.dtype == np.int8:
        if scale is None or scale.shape != array.shape[:1] or scale.dtype != np.float32:
            raise CheckpointError(
                "the rows have no scales",
                where=where,
                wanted=f"float32 {list(array.shape[:1])}",
                got="none" if scale is None else f"{scale.dtype} {list(scale.shape)}",
                fix=_fix(form),
            )
        return ScaledRows(array, scale, order, where)
    return array if order is None else ScaledRows(array, None, order, where)


def _interleaved(config: Any) -> np.ndarray:
    """Where each row of queries or keys is stored: of a head's rotated rows, first the even ones, then the odd ones."""
    row = np.arange(config.d_head)
    stored = np.where(row < config.d_rotary, row % 2 * (config.d_rotary // 2) + row // 2, row)
    return (np.arange(config.n_head)[:, None] * config.d_head + stored).reshape(-1)
