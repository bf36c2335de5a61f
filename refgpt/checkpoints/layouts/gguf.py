"""A GPT-J as one GGUF file: keys of the architecture "gptj", llama.cpp's names of tensors.

The only program that wrote such files for others to use is GPT4All's converter (2023); its tokens are plain bytes,
where llama.cpp's are in GPT-2's letters. Both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.progress import Progress
from refgpt._common.wording import listed, shown
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.checkpoints.families import gptj
from refgpt.checkpoints.files import gguf_file
from refgpt.checkpoints.layouts import single_file
from refgpt.checkpoints.mask import find_mask, names_of
from refgpt.numbers.leaves import Leaf
from refgpt.spec.gptj import Config
from refgpt.tokenizers.vocabulary import Vocabulary

ARCHITECTURE = "general.architecture"
NAME = "general.name"
QUANTISATION = "general.quantization_version"
#: Metadata: the key of each field of the configuration, then other names that the format has had for it.
KEYS = {
    "n_layer": ("gptj.block_count", "gptj.layer_count"),
    "n_head": ("gptj.attention.head_count",),
    "d_model": ("gptj.embedding_length",),
    "n_ctx": ("gptj.context_length",),
    "d_rotary": ("gptj.rope.dimension_count",),
    "ln_eps": ("gptj.attention.layer_norm_epsilon",),
    "d_ff": ("gptj.feed_forward_length", "gptj.feedforward_length"),
}
#: Those that may be absent: the tensors tell the MLP's width, and GPT-J has but one epsilon.
OPTIONAL = ("d_ff", "ln_eps")
BOS, EOS = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"
#: True where there is no such token, as this package writes it; where nothing is said, it is GPT-J's.
NO_BOS, NO_EOS = "refgpt.no_bos_token", "refgpt.no_eos_token"
#: Ids that end a text beside ``EOS``: an array, since GGUF has no key for several.
FURTHER_EOS = "refgpt.further_eos_token_ids"

#: Keys that may be absent but must not say otherwise, and why.
DEMANDS: dict[str, tuple[tuple[object, ...], str]] = {
    "gptj.rope.scale": ((1.0,), "GPT-J's positions are not scaled"),
    "gptj.rope.scale_linear": ((1.0,), "GPT-J's positions are not scaled"),
    "gptj.rope.scaling.type": ((b"none",), "GPT-J's positions are not scaled"),
    "gptj.rope.freq_base": ((10000.0,), "GPT-J's rotations have the base 10000"),
    "gptj.use_parallel_residual": ((True,), "attention and MLP of a GPT-J read the same input"),
    QUANTISATION: ((2,), "the blocks of other versions are laid out otherwise"),
    "split.count": ((0, 1), "this file is one of several; join them with llama-gguf-split --merge"),
}

#: The mask, as this package writes it; GGUF has no key for a prompt that sees itself both ways.
MASK = "refgpt.mask"

LEAVES = {
    "wte": "token_embd.weight",
    "ln_w": "output_norm.weight",
    "ln_b": "output_norm.bias",
    "w_head": "output.weight",
    "b_head": "output.bias",
}
BLOCK_LEAVES = {
    "ln_w": "attn_norm.weight",
    "ln_b": "attn_norm.bias",
    "wq": "attn_q.weight",
    "wk": "attn_k.weight",
    "wv": "attn_v.weight",
    "wo": "attn_output.weight",
    "w_in": "ffn_up.weight",
    "b_in": "ffn_up.bias",
    "w_out": "ffn_down.weight",
    "b_out": "ffn_down.bias",
}

TOKENIZER = "tokenizer.ggml."
#: A tokenizer.json as it is, and (under names of this package's own) a tokenizer.model, and the tokenizer_config.json
#: that completes either.
TOKENIZER_JSON, SENTENCEPIECE = "tokenizer.huggingface.json", "refgpt.tokenizer.model"
TOKENIZER_SETTINGS = "refgpt.tokenizer.config"
#: Types of tokens that are looked for in a text before anything else: control and user-defined; 5 is unused.
SPECIAL_TYPES, UNUSED = (3, 4), 5
PRINTABLE = range(0x21, 0x7F)

FIX = "convert the original weights again, or use them as they are"


def is_at(path: Path) -> bool:
    """Whether a path is such a file, or a directory that has one and no other weights."""
    return single_file.is_at(path, gguf_file.MAGIC)


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open it, which takes no time: see ``open_checkpoint``."""
    file = single_file.file_at(path, gguf_file.MAGIC)
    content = gguf_file.read(file)
    metadata, tensors = content.metadata, content.tensors
    if metadata.get(ARCHITECTURE) != gptj.MODEL_TYPE.encode():
        raise ConfigError(
            "this kind of model is not supported",
            where=file,
            got=f"{ARCHITECTURE} {_shown(metadata.get(ARCHITECTURE))}",
            wanted=gptj.MODEL_TYPE,
            fix="use a file of GPT-J or GPT-JT",
        )
    config = read_config(metadata, tensors, file)
    params = gptj.named_params(tensors, tensor_name, config, file, lambda *_: FIX)
    mask, source = _mask(mask, metadata, config, file)
    infos = single_file.tensor_infos(tensors, file)
    vocabulary = read_vocabulary(metadata, config, file)
    kind = f"GGUF, version {content.version}"
    if QUANTISATION in metadata:
        kind += f", quantisation version {metadata[QUANTISATION]}"
    return Checkpoint(path, kind, gptj.MODEL_TYPE, config, params, mask, source, infos, vocabulary)


def tensor_name(leaf: str) -> str:
    """Where a leaf is stored: "blocks.3.wq" -> "blk.3.attn_q.weight"."""
    if leaf in LEAVES:
        return LEAVES[leaf]
    _, i, name = leaf.split(".")
    return f"blk.{i}.{BLOCK_LEAVES[name]}"


def read_config(metadata: Mapping[str, Any], tensors: Mapping[str, Leaf], path: Path) -> Config:
    """The metadata as a ``ModelConfig``; the vocabulary's size is that of the embedding.

    Raises
    ------
    ConfigError
        If a key is missing or makes no sense, or describes something other than GPT-J.
    """
    for key, (accepted, reason) in DEMANDS.items():
        if key in metadata and not any(_same(metadata[key], value) for value in accepted):
            raise ConfigError(
                f"{key} says what is not read: {reason}",
                where=path,
                got=_shown(metadata[key]),
                wanted=" or ".join(map(_shown, accepted)),
            )
    given: dict[str, Any] = {field: _number(metadata, keys, path) for field, keys in KEYS.items()}
    if missing := [KEYS[field][0] for field in given if given[field] is None and field not in OPTIONAL]:
        raise ConfigError("the metadata lacks keys that make a GPT-J", where=path, got=f"no {listed(missing)}", fix=FIX)
    groups = metadata.get("gptj.attention.head_count_kv", given["n_head"])
    if not _same(groups, given["n_head"]):
        raise ConfigError(
            "gptj.attention.head_count_kv describes another model: a GPT-J's heads share no keys",
            where=path,
            got=_shown(groups),
            wanted=given["n_head"],
        )
    for name in (tensor_name("wte"), tensor_name("blocks.0.b_in")):
        if name not in tensors:
            raise CheckpointError("a tensor of a GPT-J is missing", where=path, got=f"no {name}", fix=FIX)
    n_vocab = given["n_vocab"] = tensors[tensor_name("wte")].shape[0]
    told = {"d_ff": tensors[tensor_name("blocks.0.b_in")].size, "ln_eps": Config.ln_eps}
    given |= {field: value for field, value in told.items() if given[field] is None}
    default = Config.eos_id if n_vocab > (Config.eos_id or 0) else None
    for field, key, absent in (("bos_id", BOS, NO_BOS), ("eos_id", EOS, NO_EOS)):
        value = _number(metadata, (key,), path)
        if value is None or value >= n_vocab:
            value = None if metadata.get(absent) is True else default
        given[field] = value
    given["further_eos_ids"] = _further_ends(metadata.get(FURTHER_EOS), n_vocab, path)
    return gptj.build_config(given, {field: keys[0] for field, keys in KEYS.items()}, path, FIX)


def _further_ends(value: Any, n_vocab: int, path: Path) -> tuple[int, ...]:
    """The ids of an array of whole numbers, none of them beyond the vocabulary."""
    if value is None:
        return ()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.size > gptj.MOST_ENDS:
        raise ConfigError(f"{FURTHER_EOS} is no list of ids", where=path, got=_shown(value), fix=FIX)
    return tuple(n for n in value.tolist() if 0 <= n < n_vocab)


def _number(metadata: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> Any:
    key = next((key for key in keys if key in metadata), None)
    if key is None:
        return None
    value = metadata[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is not a number", where=path, got=_shown(value), fix=FIX)
    # A float32 of the file is meant as the decimal that it was written from.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _same(value: object, wanted: object) -> bool:
    return not isinstance(value, np.ndarray) and type(value) in (type(wanted), int) and value == wanted


def _mask(asked: str, metadata: Mapping[str, Any], config: Config, path: Path) -> tuple[str, str]:
    name, stated = (_text(metadata.get(key)) for key in (NAME, MASK))
    called = (name,) if isinstance(name, str) else ()
    return find_mask(asked, {}, config.n_ctx, called + names_of(path), path, MASK, stated)


def read_vocabulary(metadata: Mapping[str, Any], config: Config, path: Path) -> Vocabulary | None:
    """What the metadata says about the tokenizer; None if it says nothing that is understood.

    That is a byte-level BPE, in lists or as a whole file, or a sentencepiece model that this package has put in.

    Raises
    ------
    ConfigError
        If the lists are damaged.
    """
    model, tokens = metadata.get(TOKENIZER + "model"), metadata.get(TOKENIZER + "tokens")
    whole = {
        name: metadata[key]
        for key, name in (
            (TOKENIZER_JSON, "tokenizer.json"),
            (SENTENCEPIECE, "tokenizer.model"),
            (TOKENIZER_SETTINGS, "tokenizer_config.json"),
        )
        if key in metadata
    }
    if whole.keys() == {"tokenizer_config.json"}:
        whole = {}
    if isinstance(whole.get("tokenizer.model"), np.ndarray):
        whole["tokenizer.model"] = whole["tokenizer.model"].tobytes()
    if not all(isinstance(content, bytes) for content in whole.values()):
        raise ConfigError("the tokenizer inside is no file", where=path, got=listed(whole), fix=FIX)
    if tokens is None or (model != b"gpt2" and "tokenizer.model" not in whole):
        return None
    merges, types = metadata.get(TOKENIZER + "merges"), metadata.get(TOKENIZER + "token_type")
    for key, strings in ((TOKENIZER + "tokens", tokens), (TOKENIZER + "merges", merges)):
        if strings is not None and not isinstance(strings, list):
            raise ConfigError(f"{key} is no list of strings", where=path, got=_shown(strings), fix=FIX)
    if len(tokens) > config.n_vocab:
        raise ConfigError(
            "there are more tokens than rows of the embedding",
            where=path,
            got=len(tokens),
            wanted=f"at most {config.n_vocab}",
            fix=FIX,
        )
    if types is not None and (not isinstance(types, np.ndarray) or len(types) != len(tokens)):
        raise ConfigError(f"{TOKENIZER}token_type does not fit the tokens", where=path, got=_shown(types), fix=FIX)
    try:
        pairs = None if merges is None else tuple(merge.decode() for merge in merges)
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{TOKENIZER}merges is not UTF-8", where=path, got=str(fault), fix=FIX) from None
    unused = set() if types is None else set(np.flatnonzero(types == UNUSED).tolist())
    meant = tuple(None if n in unused or token == b"[PAD%d]" % n else token for n, token in enumerate(tokens))
    special = None if types is None else frozenset(np.flatnonzero(np.isin(types, SPECIAL_TYPES)).tolist())
    # GPT-2's letters are UTF-8, in which only printable ASCII takes one byte; a space alone is no letter.
    normal = (token for n, token in enumerate(tokens) if n not in (special or ()))
    plain = any(len(token) == 1 and token[0] not in PRINTABLE for token in normal)
    return Vocabulary(meant, not plain, pairs, special, config.eos_id, path, whole)


def _shown(value: object) -> str:
    return shown(_text(value))


def _text(value: object) -> object:
    """A string of the metadata as text, whatever its bytes; any other value as it is."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
