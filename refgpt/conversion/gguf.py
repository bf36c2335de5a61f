"""Writing a GGUF file: the keys of the architecture, llama.cpp's names of tensors, the tokenizer.

The strings are those that llama.cpp and the gguf library read: tokens in GPT-2's letters. Quantised matrices of ggml
and GGUF files are written as they are; vectors are widened to float32, which every program expects. Facts for which
GGUF has no key are stored under ``refgpt.``: the mask, that no token begins or ends a text, and a sentencepiece model,
whose normalizer GGUF's own keys leave out.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, TokenizerError
from refgpt._common.progress import Progress
from refgpt._common.wording import listed
from refgpt.checkpoints import Checkpoint
from refgpt.checkpoints.families import FAMILIES
from refgpt.checkpoints.families.formats import Gguf
from refgpt.checkpoints.families.names import named_tensors
from refgpt.checkpoints.files.ggml_blocks import TYPES, n_bytes_of
from refgpt.checkpoints.files.ggml_file import QUANTISATION_VERSION
from refgpt.checkpoints.files.gguf_file import ARRAY, DEFAULT_ALIGNMENT, MAGIC, STRING
from refgpt.checkpoints.layouts.gguf import (
    ARCHITECTURE,
    BOS,
    EOS,
    FURTHER_EOS,
    MASK,
    NAME,
    NO_BOS,
    NO_EOS,
    OWN,
    QUANTISATION,
    SENTENCEPIECE,
    TOKENIZER,
    TOKENIZER_JSON,
    TOKENIZER_SETTINGS,
    UNUSED,
)
from refgpt.checkpoints.mask import names_of
from refgpt.conversion.leaves import block_encoding, stored_blocks, written
from refgpt.conversion.sums import Sums
from refgpt.numbers.dtypes import dtype_name
from refgpt.numbers.leaves import Leaf
from refgpt.tokenizers import Tokenizer

log = logging.getLogger("refgpt")

DTYPES = (None, "f32", "f16", "bf16")
FILE = "model.gguf"
NUMBERS = {name: number for number, name in TYPES.items()}
#: What most tensors of a file are (llama.cpp's ``llama_ftype``).
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q6_K": 18, "bf16": 32}
VERSION = 3
#: Types of tokens, besides ``UNUSED``.
NORMAL, CONTROL = 1, 3


def write(
    source: Checkpoint,
    tokenizer: Tokenizer | None,
    dtype: str | None,
    directory: Path,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint as one file, model.gguf, one tensor after the other: see ``Target.write``.

    Matrices quantised in ggml's blocks also keep their stored form; float64 is rounded to float32.

    Raises
    ------
    TokenizerError
        If the tokenizer has ids for which the model has no row: no program can read such a file.
    """
    form = _form(source)
    told = {field: getattr(source.config, field) for field in form.assumed}
    if special := [f"{field} {value}" for field, value in told.items() if value not in form.assumed[field]]:
        log.warning("%s: llama.cpp does not compute such a model from a GGUF file: %s", source.path, listed(special))
    leaves = named_tensors(source.params, form.names, source.config)
    encodings = {name: _encoding(leaf, dtype) for name, leaf in leaves.items()}
    metadata = _metadata(form, source, encodings) | tokenizer_metadata(tokenizer, source)
    raw = MAGIC + struct.pack("<IQQ", VERSION, len(leaves), len(metadata))
    raw += b"".join(string(key) + value(item) for key, item in metadata.items())
    offset = 0
    for name, leaf in leaves.items():
        shape = leaf.shape
        raw += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        raw += struct.pack("<IQ", NUMBERS[encodings[name]], offset)
        offset += _padded(n_bytes_of(name, encodings[name], shape))
    n_done, n_total, sums = 0, offset, Sums(directory)
    with sums.writing(FILE) as file:
        file.write(raw.ljust(_padded(len(raw)), b"\0"))
        for name, leaf in leaves.items():
            for piece in _pieces(name, leaf, encodings[name]):
                n_done += file.write(piece)
                if progress is not None:
                    progress(n_done, n_total)
            n_done += file.write(bytes(_padded(n_done) - n_done))
    sums.write()


def n_bytes(source: Checkpoint, dtype: str | None) -> int:
    """How many bytes of tensors ``write`` writes."""
    leaves = named_tensors(source.params, _form(source).names, source.config)
    return sum(_padded(n_bytes_of(name, _encoding(leaf, dtype), leaf.shape)) for name, leaf in leaves.items())


def _form(source: Checkpoint) -> Gguf:
    """What the format calls the parts of this family."""
    form = FAMILIES[source.family].GGUF
    if form is None:
        raise CheckpointError(
            "there are no GGUF files of this family",
            where=source.path,
            got=source.family,
            fix="convert to hf or refgpt",
        )
    return form


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _encoding(leaf: Leaf, dtype: str | None) -> str:
    if leaf.ndim == 1:
        return "f32"
    if dtype is not None:
        return dtype
    encoding = block_encoding(leaf)
    if encoding in NUMBERS:
        return encoding
    stored = dtype_name(leaf.dtype)
    return stored if stored in FILE_TYPES else "f32"


def _pieces(name: str, leaf: Leaf, encoding: str) -> Iterator[np.ndarray]:
    if block_encoding(leaf) == encoding:
        yield from stored_blocks(leaf)
    else:
        yield from written(name, leaf, encoding)


def _metadata(form: Gguf, source: Checkpoint, encodings: dict[str, str]) -> dict[str, Any]:
    config, most = source.config, encodings[form.names("blocks.0.w_in")]
    found: dict[str, Any] = {ARCHITECTURE: form.architecture, NAME: names_of(source.path)[0]}
    for field, keys in form.keys.items():
        found[keys[0].format(form.architecture)] = getattr(config, field)
    for field in form.own:
        item = getattr(config, field)
        found[OWN + field] = " ".join(item) if isinstance(item, tuple) else item
    found |= {"general.file_type": FILE_TYPES[most], MASK: source.mask}
    if any(encoding.startswith("q") for encoding in encodings.values()):
        found[QUANTISATION] = QUANTISATION_VERSION
    for key, absent, n in ((BOS, NO_BOS, config.bos_id), (EOS, NO_EOS, config.eos_id)):
        found |= {absent: True} if n is None else {key: n}
    if config.further_eos_ids:
        found[FURTHER_EOS] = np.array(config.further_eos_ids, "<i4")
    return found


def tokenizer_metadata(tokenizer: Tokenizer | None, source: Checkpoint) -> dict[str, Any]:
    """The keys that describe a tokenizer: lists for all programs, and the complete tokenizer for this one."""
    if tokenizer is None:
        return {}
    if tokenizer.n_vocab > source.config.n_vocab:
        raise TokenizerError(
            "the tokenizer has ids for which the model has no row, which a GGUF file cannot hold",
            where=source.path,
            got=f"{tokenizer.n_vocab} ids",
            wanted=f"at most {source.config.n_vocab}",
            fix="remove the tokens that were added to the tokenizer's files",
        )
    from refgpt.tokenizers.byte_level_bpe import ByteLevelBPE, letters_of_bytes
    from refgpt.tokenizers.sentencepiece_model import SentencePieceTokenizer

    files = tokenizer.files()
    own_eos = None if tokenizer.eos_id == source.config.eos_id else tokenizer.eos_id
    if isinstance(tokenizer, SentencePieceTokenizer):
        pieces, scores, kinds = zip(*tokenizer.pieces(), strict=True)
        whole = {
            TOKENIZER + "model": "llama",
            TOKENIZER + "tokens": list(pieces),
            TOKENIZER + "scores": np.array(scores, "<f4"),
            TOKENIZER + "token_type": np.array(kinds, "<i4"),
            SENTENCEPIECE: np.frombuffer(files["tokenizer.model"], np.uint8),
        }
        if tokenizer.added_tokens:
            whole[TOKENIZER_SETTINGS] = files["tokenizer_config.json"].decode()
        elif own_eos is not None:
            whole[TOKENIZER_SETTINGS] = files["special_tokens_map.json"].decode()
        return whole
    added = tokenizer.added if isinstance(tokenizer, ByteLevelBPE) else {}
    tokens, types = [], []
    for n in range(tokenizer.n_vocab):
        there = tokenizer.has(n)
        tokens.append(added.get(n) or (letters_of_bytes(tokenizer.token_bytes(n)) if there else f"[PAD{n}]"))
        types.append(CONTROL if n in added else NORMAL if there else UNUSED)
    found = {
        TOKENIZER + "model": "gpt2",
        TOKENIZER + "pre": "gpt-2",
        TOKENIZER + "tokens": tokens,
        TOKENIZER + "token_type": np.array(types, "<i4"),
    }
    if isinstance(tokenizer, ByteLevelBPE):
        found |= {TOKENIZER + "merges": tokenizer.merges, TOKENIZER_JSON: files["tokenizer.json"].decode()}
        if own_eos is not None:
            found[TOKENIZER_SETTINGS] = files["special_tokens_map.json"].decode()
    return found


def string(text: str) -> bytes:
    """A string in GGUF's form. (A directory's name need not be valid text.)"""
    raw = text.encode(errors="replace")
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """A value with its type before it: a bool, a number (uint32, float32), a text, a list of texts, an array."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + string(item)
    if isinstance(item, np.ndarray):
        kind = {"|u1": 0, "<i4": 5, "<f4": 6}[item.dtype.str]
        return struct.pack("<IIQ", ARRAY, kind, len(item)) + item.tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(item)) + b"".join(map(string, item))
