"""The .bin files of ggml's GPT-J example, from 2022 to August 2023: a header, a vocabulary, tensors, one after another.

Everything is little-endian, and nothing is aligned::

    int32  magic "ggml"; n_vocab, n_ctx, n_embd, n_head, n_layer, n_rot, ftype
    int32  n_vocab again; then each token: int32 length, its bytes (raw, not in GPT-2's letters)
    each tensor: int32 n_dims, length of the name, type; int32 dimensions, the innermost first; the name; the numbers

``ftype`` is 1000 x (version of the quantisation) + (type of most tensors). The tensors have the names of transformers'
``GPTJForCausalLM``. The file does not state that the model is a GPT-J: files of other models begin in the same way, and
are recognised because their sizes do not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.checkpoints.files.cursor import Cursor
from refgpt.checkpoints.files.ggml_blocks import (
    BLOCKS,
    MOST_DIMENSIONS,
    REQUANTISE,
    encoding_of,
    map_tensor,
    n_bytes_of,
)
from refgpt.checkpoints.files.magic import refuse_others
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.mapped import map_file
from refgpt.spec.config import LARGEST

MAGIC = b"lmgg"  # 0x67676d6c, little-endian
INT = struct.Struct("<i")
TENSOR = struct.Struct("<3i")

QUANTISATION_VERSION = 2
VERSION_FACTOR = 1000
#: Type of most tensors of a file (``enum ggml_ftype``); values that are not listed are unknown.
FILE_TYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    4: "q4_1 with some f16",
    5: "q4_2",
    6: "q4_3",
    7: "q8_0",
    8: "q5_0",
    9: "q5_1",
    10: "q2_K",
    11: "q3_K",
    12: "q4_K",
    13: "q5_K",
    14: "q6_K",
}
FILE_TYPES_READ = (0, 1, 2, 3, 4, 7, 8, 9)

#: Limits for tokens and their bytes, ten times those of GPT-J, whose tokens take 0.4 MB.
MOST_TOKENS = 1 << 19
MOST_TOKEN_BYTES = 8 << 20
LONGEST_NAME = 256
#: The most that each number of a header may be; the least is 1.
LIMITS = {
    "n_vocab": MOST_TOKENS,
    "n_ctx": LARGEST["n_ctx"],
    "n_embd": LARGEST["d_model"],
    "n_head": LARGEST["n_head"],
    "n_layer": LARGEST["n_layer"],
    "n_rot": LARGEST["d_model"],
}
OTHER_MODEL = (
    "other models of ggml (LLaMA, GPT-2, GPT-NeoX, MPT, ...) have files with the same magic that only their "
    "own programs read; if this one is a GPT-J it is damaged: fetch it again"
)


@dataclass(frozen=True)
class GgmlFile:
    """A file's contents: the header's numbers by name, the bytes of each token by id, the tensors as views."""

    numbers: dict[str, int]
    tokens: tuple[bytes, ...]
    tensors: dict[str, Leaf]


def read(path: Path, title: str, header: Sequence[str], n_tensors: tuple[int, int]) -> GgmlFile:
    """Map a ggml file.

    Parameters
    ----------
    path : Path
        The file.
    title : str
        Whose it should be, for errors.
    header : sequence of str
        The header's numbers in order, by name; the last is "ftype".
    n_tensors : (int, int)
        How many the model has in a block, and beside.

    Returns
    -------
    GgmlFile
        Float tensors are read-only, unaligned views into the mapped file; quantised tensors are ``Blocks`` over it.

    Raises
    ------
    CheckpointError
        If it is another kind of file, is damaged or truncated, or has an unsupported format, which the error names.
    """
    mapped = map_file(path)
    refuse_others(mapped, "a ggml file", MAGIC)
    cursor = Cursor(mapped)
    numbers = dict(zip(header, cursor.unpack(struct.Struct(f"<4x{len(header)}i"), "its header"), strict=True))
    _check_numbers(path, title, numbers)
    tokens = _read_tokens(cursor, title, numbers["n_vocab"])
    _check_file_type(path, numbers["ftype"])  # only now is it plain that this is the field where it stands
    most_tensors = n_tensors[0] * numbers["n_layer"] + n_tensors[1]
    tensors: dict[str, Leaf] = {}
    while cursor.left:
        if len(tensors) == most_tensors:
            raise CheckpointError(
                f"there is more in the file than a {title} has",
                where=path,
                got=f"{cursor.left} bytes after {most_tensors} tensors",
                fix=OTHER_MODEL,
            )
        name, tensor = _read_tensor(cursor, numbers["ftype"] // VERSION_FACTOR)
        if name in tensors:
            raise CheckpointError("the tensor is there twice", where=tensor_at(path, name), fix=FRESH_COPY)
        tensors[name] = tensor
    return GgmlFile(numbers, tokens, tensors)


def _check_numbers(path: Path, title: str, numbers: dict[str, int]) -> None:
    for name, most in LIMITS.items():
        if name in numbers and not 1 <= numbers[name] <= most:
            raise CheckpointError(
                f"this is no {title}'s ggml file: {name} makes no sense",
                where=path,
                got=numbers[name],
                wanted=f"1 to {most}",
                fix=OTHER_MODEL,
            )


def _check_file_type(path: Path, ftype: int) -> None:
    version, kind = divmod(ftype, VERSION_FACTOR)
    if kind not in FILE_TYPES_READ:
        name = FILE_TYPES.get(kind, "unknown")
        raise CheckpointError(
            "this quantisation is not read",
            where=path,
            got=f"{name} (file type {kind}, quantisation version {version})",
            wanted=", ".join(FILE_TYPES[n] for n in FILE_TYPES_READ),
            fix=REQUANTISE,
        )


def _read_tokens(cursor: Cursor, title: str, n_vocab: int) -> tuple[bytes, ...]:
    path, start = cursor.mapped.path, cursor.at
    (count,) = cursor.unpack(INT, "the size of its vocabulary")
    if count != n_vocab:
        raise CheckpointError(
            f"this is no {title}'s ggml file: the vocabulary has another size than the header says",
            where=path,
            got=count,
            wanted=n_vocab,
            fix=OTHER_MODEL,
        )
    tokens = []
    for _ in range(count):
        (n_bytes,) = cursor.unpack(INT, "its vocabulary")
        tokens.append(cursor.take(n_bytes, "its vocabulary"))
        if cursor.at - start > MOST_TOKEN_BYTES:
            raise CheckpointError(
                "the vocabulary is far too large",
                where=path,
                got=f"more than {MOST_TOKEN_BYTES} bytes",
                fix=OTHER_MODEL,
            )
    return tuple(tokens)


def _read_tensor(cursor: Cursor, version: int) -> tuple[str, Leaf]:
    mapped, at = cursor.mapped, cursor.at
    n_dims, n_name, number = cursor.unpack(TENSOR, "a tensor's header")
    if not 1 <= n_dims <= MOST_DIMENSIONS or not 1 <= n_name <= LONGEST_NAME:
        raise CheckpointError(
            "what should be a tensor's header makes no sense",
            where=f"{mapped.path}, byte {at}",
            got=f"{n_dims} dimensions and a name of {n_name} bytes",
            wanted=f"at most {MOST_DIMENSIONS} and {LONGEST_NAME}",
            fix=OTHER_MODEL,
        )
    dims = [cursor.unpack(INT, "a tensor's header")[0] for _ in range(n_dims)]
    name = cursor.take(n_name, "a tensor's name").decode("utf-8", "backslashreplace")
    where = tensor_at(mapped.path, name)
    if min(dims) < 1:
        raise CheckpointError("the dimensions make no sense", where=where, got=shown(dims), fix=FRESH_COPY)
    encoding = encoding_of(where, number)
    if encoding in BLOCKS and version != QUANTISATION_VERSION:
        raise CheckpointError(
            "this version of the quantisation is not read: its blocks are laid out otherwise",
            where=where,
            got=f"{encoding} of version {version}",
            wanted=f"version {QUANTISATION_VERSION} (since May 2023)",
            fix=REQUANTISE,
        )
    shape = tuple(reversed(dims))
    start = cursor.skip(n_bytes_of(where, encoding, shape), f"the tensor {shown(name)}")
    return name, map_tensor(mapped, name, encoding, shape, start)
