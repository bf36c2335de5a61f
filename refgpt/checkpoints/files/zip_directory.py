"""Where the members of a zip archive lie, so that they can be mapped instead of extracted.

Only what torch and NumPy write is accepted: stored (not compressed) members, no comment, nothing after the end; large
archives use the 64-bit fields. The record layouts are those of PKWARE's APPNOTE. Checksums are not verified: that would
read the whole file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY, shown
from refgpt.numbers.mapped import MappedFile

#: The directory of a 6B model takes about 35 kB.
LARGEST_DIRECTORY = 2 << 20

END = struct.Struct("<4s4H2LH")  # signature, disks, entries here and in all, directory size and offset, comment length
LOCATOR64 = struct.Struct("<4sLQL")  # signature, disk, offset of the 64-bit end record, disks
END64 = struct.Struct("<4sQ2H2L4Q")  # as END, with its own size and two versions in front
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
FULL = 0xFFFFFFFF  # "look in the 64-bit field"
STORED, ENCRYPTED, SIZE64_FIELD = 0, 1, 1


@dataclass(frozen=True)
class Member:
    """One file of an archive: its bytes are ``start`` to ``start + n_bytes`` of the archive."""

    name: str
    header: int
    start: int
    n_bytes: int


def read_directory(mapped: MappedFile) -> dict[str, Member]:
    """Every member of a zip archive by name.

    Raises
    ------
    CheckpointError
        If the archive is cut short or continues after its end, or a member is compressed, encrypted, named twice, out
        of bounds or overlaps another.
    """
    offset, n_bytes, n_entries = _find_directory(mapped)
    raw = mapped[offset : offset + n_bytes]
    members: dict[str, Member] = {}
    at = 0
    for _ in range(n_entries):
        member, at = _read_entry(mapped, raw, at)
        if member.name in members:
            _refuse(mapped.path, f"the archive has two members named {shown(member.name)}")
        members[member.name] = member
    if at != n_bytes:
        _refuse(mapped.path, "the archive's directory has a length that does not fit its entries")
    end = 0
    for member in sorted(members.values(), key=lambda member: member.header):
        if member.header < end:
            _refuse(mapped.path, f"the member {shown(member.name)} overlaps another")
        end = member.start + member.n_bytes
    if end > offset:
        _refuse(mapped.path, "a member overlaps the archive's directory")
    return members


def _find_directory(mapped: MappedFile) -> tuple[int, int, int]:
    """Offset, size and number of entries of the directory, from the record that ends the file."""
    at = len(mapped) - END.size
    if at < 0 or mapped[at : at + 4] != b"PK\5\6":
        _refuse(mapped.path, "the archive is cut short, or there is data after its end")
    _, _, _, _, n_entries, n_bytes, offset, n_comment = END.unpack_from(mapped, at)
    if n_comment:
        _refuse(mapped.path, "the archive is cut short, or there is data after its end")
    if FULL in (n_bytes, offset) or n_entries == 0xFFFF:
        at -= LOCATOR64.size
        if at < 0 or mapped[at : at + 4] != b"PK\6\7":
            _refuse(mapped.path, "the archive has no 64-bit end record")
        at = LOCATOR64.unpack_from(mapped, at)[2]
        if at > len(mapped) - END64.size or mapped[at : at + 4] != b"PK\6\6":
            _refuse(mapped.path, "the archive has no 64-bit end record")
        *_, n_entries, n_bytes, offset = END64.unpack_from(mapped, at)
    if n_bytes > LARGEST_DIRECTORY or offset + n_bytes > at or n_entries > n_bytes // ENTRY.size:
        _refuse(
            mapped.path, f"the archive's directory makes no sense ({n_entries} entries, {n_bytes} bytes at {offset})"
        )
    return offset, n_bytes, n_entries


def _read_entry(mapped: MappedFile, raw: bytes, at: int) -> tuple[Member, int]:
    """One entry of the directory, held against the header in front of the member; and where the next one starts."""
    if at + ENTRY.size > len(raw) or raw[at : at + 4] != b"PK\1\2":
        _refuse(mapped.path, "the archive's directory is damaged")
    _, _, _, flags, method, _, _, _, *sizes, n_name, n_extra, n_comment, _, _, _, header = ENTRY.unpack_from(raw, at)
    name_at = at + ENTRY.size
    raw_name, extra = raw[name_at : name_at + n_name], raw[name_at + n_name : name_at + n_name + n_extra]
    n_bytes, packed, header = _sizes64(mapped.path, extra, [*reversed(sizes), header])
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(mapped.path, "a member of the archive has a name that is not UTF-8")
    if method != STORED or flags & ENCRYPTED or packed != n_bytes:
        _refuse(mapped.path, f"the member {shown(name)} is compressed or encrypted, which weights never are")
    if header + LOCAL.size > len(mapped) or mapped[header : header + 4] != b"PK\3\4":
        _refuse(mapped.path, f"the member {shown(name)} is not where the directory says")
    _, _, _, local_method, _, _, _, _, local_bytes, n_local_name, n_local_extra = LOCAL.unpack_from(mapped, header)
    name_at = header + LOCAL.size
    start = name_at + n_local_name + n_local_extra
    agrees = mapped[name_at : name_at + n_local_name] == raw_name and local_method == STORED
    # A writer that streams leaves the size out of the header in front; one with 64-bit fields puts it elsewhere.
    if not agrees or local_bytes not in (0, FULL, n_bytes) or start + n_bytes > len(mapped):
        _refuse(mapped.path, f"the member {shown(name)} is not what the directory says")
    return Member(name, header, start, n_bytes), at + ENTRY.size + n_name + n_extra + n_comment


def _sizes64(path: Path, extra: bytes, sizes: list[int]) -> list[int]:
    """Replace the 32-bit fields that are full by their 64-bit values, which stand in the extra field in this order."""
    while len(extra) >= 4:
        kind, n_bytes = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + n_bytes], extra[4 + n_bytes :]
        if kind != SIZE64_FIELD:
            continue
        full = [i for i, size in enumerate(sizes) if size == FULL]
        if len(field) < 8 * len(full):
            _refuse(path, "a 64-bit field of the archive's directory is cut short")
        for i, (value,) in zip(full, struct.iter_unpack("<Q", field[: 8 * len(full)]), strict=True):
            sizes[i] = value
    return sizes


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(what, where=path, fix=FRESH_COPY)
