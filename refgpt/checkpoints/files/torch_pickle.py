"""The files of ``torch.save`` since torch 1.6: a zip archive of ``data.pkl``, which lists the tensors, and ``data/0``,
``data/1``, ..., the storages that they view. The storages are mapped, not read; the list is run by a machine
that can build tensors and nothing else (``pickle_machine``). torch is not needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.checkpoints.files.magic import refuse_others
from refgpt.checkpoints.files.pickle_machine import LARGEST_PROGRAM, Machine, Tensor
from refgpt.checkpoints.files.zip_directory import Member, read_directory
from refgpt.numbers.mapped import MappedFile, map_file, view

ZIP = b"PK\3\4"


def read(path: Path) -> dict[str, np.ndarray]:
    """Map a file that holds a state dict.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to ndarray
        Read-only views into the mapped file; they may be unaligned, strided (a transposed matrix) or share storage.

    Raises
    ------
    CheckpointError
        If the archive is damaged, asks for anything but tensors, or a tensor does not fit its storage.
    """
    mapped = map_file(path)
    refuse_others(mapped, "a file of torch.save", ZIP)
    members = read_directory(mapped)
    prefix = _prefix(path, members)
    _check_byte_order(mapped, members.get(f"{prefix}byteorder"))
    state = _run_program(mapped, members[f"{prefix}data.pkl"])
    return {name: _map_tensor(mapped, members, prefix, name, tensor) for name, tensor in state.items()}


def _prefix(path: Path, members: dict[str, Member]) -> str:
    """All members live in one folder, named after the file at the time it was saved."""
    found = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise CheckpointError(
            "the archive does not hold one data.pkl",
            where=path,
            got=f"{len(found)} of them",
            fix="check that this is a file of torch.save",
        )
    return found[0]


def _check_byte_order(mapped: MappedFile, member: Member | None) -> None:
    """Files of older versions do not say; they come from little-endian machines."""
    if member is not None:
        order = mapped[member.start : member.start + min(member.n_bytes, 16)]
        if order != b"little":
            raise CheckpointError(
                "the numbers are not little-endian",
                where=mapped.path,
                got=shown(order),
                fix="save the file again on a little-endian machine",
            )


def _run_program(mapped: MappedFile, member: Member) -> dict[str, Tensor]:
    # One byte more than is allowed is enough for the machine to refuse it.
    program = mapped[member.start : member.start + min(member.n_bytes, LARGEST_PROGRAM + 1)]
    state = Machine(program, mapped.path).run()
    if not isinstance(state, dict):
        raise CheckpointError(
            "the file does not hold a dictionary of tensors",
            where=mapped.path,
            got=type(state).__name__,
            fix="save model.state_dict()",
        )
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                "the file holds more than tensors",
                where=mapped.path,
                got=f"{shown(name)}, a {type(tensor).__name__}",
                wanted="a dictionary of named tensors",
                fix="save model.state_dict() alone",
            )
    return state


def _map_tensor(mapped: MappedFile, members: dict[str, Member], prefix: str, name: str, tensor: Tensor) -> np.ndarray:
    storage = tensor.storage
    member = members.get(f"{prefix}data/{storage.key}")
    n_bytes = storage.n_items * storage.dtype.itemsize
    if member is None or member.n_bytes != n_bytes:
        raise CheckpointError(
            f"the storage {shown(storage.key)} is missing or has another size",
            where=tensor_at(mapped.path, name),
            got="none" if member is None else f"{member.n_bytes} bytes",
            wanted=f"{n_bytes} bytes",
            fix=FRESH_COPY,
        )
    skipped = tensor.offset * storage.dtype.itemsize
    return view(mapped, name, storage.dtype, member.start + skipped, n_bytes - skipped, tensor.shape, tensor.strides)
