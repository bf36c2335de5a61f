"""The .bin files of ggml's examples, from 2022 to August 2023: a header, a vocabulary, tensors, one after another.

Everything is little-endian, and nothing is aligned::

    int32  magic "ggml"; the numbers of the header, for GPT-J n_vocab, n_ctx, n_embd, n_head, n_layer, n_rot, ftype
    int32  n_vocab again, in most; then each token: int32 length, its bytes (raw, not in GPT-2's letters)
    each tensor: int32 n_dims, length of the name, type; int32 dimensions, the innermost first; the name; the numbers

``ftype`` is 1000 x (version of the quantisation) + (type of most tensors); files of before 14 May 2023 have no version,
which is version 0. Nothing says what model it is: models differ in their header (``Header``), and are told by not
fitting.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.checkpoints.files.cursor import Cursor
from refgpt.checkpoints.files.ggml_blocks import (
    EARLIER,
    FLOATS,
    MOST_DIMENSIONS,
    REQUANTISE,
    TYPES,
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
FILE_TYPES_READ = {
    0: (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    1: (0, 1, 2, 3, 4, 7, 8, 9),
    2: (0, 1, 2, 3, 4, 7, 8, 9, 14),
}
#: The numbers that tensors of each format have in files of versions 0 and 1. On 22 April 2023 they were those of
#: ``FILE_TYPES``, so that 5 and 6 have two meanings: the file's type decides.
EARLIER_NUMBERS = {
    "q4_0": (2,),
    "q4_1": (3,),
    "q4_2": (4, 5),
    "q4_3": (5, 6),
    "q5_0": (6,),
    "q5_1": (7,),
    "q8_0": (8,),
}

#: Limits for tokens and their bytes, ten times those of GPT-J, whose tokens take 0.4 MB.
MOST_TOKENS = 1 << 19
MOST_TOKEN_BYTES = 8 << 20
LONGEST_NAME = 256
#: Marks in the list of what was read: the vocabulary, and its size. No tensor has these names.
VOCABULARY, COUNT = "\0 vocabulary", "\0 count"
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
    "other models of ggml (LLaMA, MPT, StarCoder, ...) have files with the same magic that only their "
    "own programs read; if this one is a GPT-J, GPT-2 or GPT-NeoX it is damaged: fetch it again"
)


@dataclass(frozen=True)
class Header:
    """How the files of a model begin.

    Attributes
    ----------
    title : str
        What people call the model, for errors.
    numbers : tuple of str
        The numbers in order, by the names that ggml's example gives them; the last is "ftype".
    n_tensors : (int, int)
        How many tensors the model has in a block, and beside, at most.
    counted : bool
        Whether the vocabulary's size is there again, before it.
    """

    title: str
    numbers: tuple[str, ...]
    n_tensors: tuple[int, int]
    counted: bool = True


@dataclass(frozen=True)
class GgmlFile:
    """A file's contents: the header's numbers by name, the bytes of each token by id, the tensors as views."""

    numbers: dict[str, int]
    tokens: tuple[bytes, ...]
    tensors: dict[str, Leaf]


def read(path: Path, header: Header, seen: list[str] | None = None) -> GgmlFile:
    """Map a ggml file.

    Parameters
    ----------
    path : Path
        The file.
    header : Header
        How it should begin.
    seen : list, optional
        Gets what could be read before a fault: ``COUNT`` if the file repeats its vocabulary's size, ``VOCABULARY``,
        and then the names of the tensors.

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
    found = cursor.unpack(struct.Struct(f"<4x{len(header.numbers)}i"), "its header")
    numbers = dict(zip(header.numbers, found, strict=True))
    _check_numbers(path, header.title, numbers)
    seen = [] if seen is None else seen
    tokens = _read_tokens(cursor, header, numbers["n_vocab"], seen)
    seen.append(VOCABULARY)
    _check_file_type(path, numbers["ftype"])  # only now is it plain that this is the field where it stands
    most_tensors = header.n_tensors[0] * numbers["n_layer"] + header.n_tensors[1]
    tensors: dict[str, Leaf] = {}
    while cursor.left:
        if len(tensors) == most_tensors:
            raise CheckpointError(
                f"there is more in the file than a {header.title} has",
                where=path,
                got=f"{cursor.left} bytes after {most_tensors} tensors",
                fix=OTHER_MODEL,
            )
        name, tensor = _read_tensor(cursor, numbers["ftype"], seen)
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
    if numbers.get("par_res", 0) not in (0, 1):
        raise CheckpointError(
            f"this is no {title}'s ggml file: par_res makes no sense",
            where=path,
            got=numbers["par_res"],
            wanted="0 or 1",
            fix=OTHER_MODEL,
        )


def _check_file_type(path: Path, ftype: int) -> None:
    version, kind = divmod(ftype, VERSION_FACTOR)
    read = FILE_TYPES_READ.get(version, FILE_TYPES_READ[QUANTISATION_VERSION])
    if kind not in read:
        name = FILE_TYPES.get(kind, "unknown")
        raise CheckpointError(
            "this quantisation is not read",
            where=path,
            got=f"{name} (file type {kind}, quantisation version {version})",
            wanted=", ".join(FILE_TYPES[n] for n in read),
            fix=REQUANTISE,
        )


def _read_tokens(cursor: Cursor, header: Header, n_vocab: int, seen: list[str]) -> tuple[bytes, ...]:
    path, start = cursor.mapped.path, cursor.at
    (count,) = cursor.unpack(INT, "the size of its vocabulary") if header.counted else (n_vocab,)
    if count != n_vocab:
        raise CheckpointError(
            f"this is no {header.title}'s ggml file: the vocabulary has another size than the header says",
            where=path,
            got=count,
            wanted=n_vocab,
            fix=OTHER_MODEL,
        )
    if header.counted:
        seen.append(COUNT)
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


def _read_tensor(cursor: Cursor, ftype: int, seen: list[str]) -> tuple[str, Leaf]:
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
    seen.append(name)
    where = tensor_at(mapped.path, name)
    if min(dims) < 1:
        raise CheckpointError("the dimensions make no sense", where=where, got=shown(dims), fix=FRESH_COPY)
    encoding = _encoding(where, number, ftype)
    shape = tuple(reversed(dims))
    start = cursor.skip(n_bytes_of(where, encoding, shape), f"the tensor {shown(name)}")
    return name, map_tensor(mapped, name, encoding, shape, start)


def _encoding(where: str, number: int, ftype: int) -> str:
    """The name of a tensor's format by its number and the file's type.

    Raises
    ------
    CheckpointError
        If it is not one that is read, or it is not clear which it is; ``where`` is named.
    """
    version, kind = divmod(ftype, VERSION_FACTOR)
    if version == QUANTISATION_VERSION or TYPES.get(number) in FLOATS:
        return encoding_of(where, number)
    of_file = FILE_TYPES[kind].partition(" ")[0]
    name = f"{of_file} v{version}"
    if number not in EARLIER_NUMBERS.get(of_file, ()):
        encoding_of(where, number)  # what is read in no version
        raise CheckpointError(
            "the tensor's format is another than the file's, so that its layout is not known",
            where=where,
            got=f"{TYPES[number]} of version {version} in a file of {FILE_TYPES[kind]}",
            wanted=f"{of_file}, or version {QUANTISATION_VERSION} (since May 2023)",
            fix=REQUANTISE,
        )
    if version == 1 and of_file in ("q5_0", "q5_1"):
        return of_file  # as since
    if name not in EARLIER:
        raise CheckpointError(
            "this version of the quantisation is not read: its blocks are laid out otherwise",
            where=where,
            got=f"{of_file} of version {version}",
            wanted=f"version {QUANTISATION_VERSION} (since May 2023)",
            fix=REQUANTISE,
        )
    return name
