import io
import struct
import zipfile

import pytest

from refgpt._common.errors import CheckpointError
from refgpt.checkpoints.files.zip_directory import ENTRY, LOCAL, read_directory
from refgpt.numbers.mapped import map_file

MEMBERS = {"a/data.pkl": b"program", "a/data/0": bytes(range(50)), "a/empty": b""}


def archive(method=zipfile.ZIP_STORED, members=MEMBERS, streamed=False):
    target = io.BytesIO()
    with zipfile.ZipFile(Unseekable(target) if streamed else target, "w", method) as opened:
        for name, raw in members.items():
            opened.writestr(name, raw)
    return target.getvalue()


class Unseekable(io.RawIOBase):
    """A pipe: zipfile then writes each member's size behind it, as torch does."""

    def __init__(self, target):
        self.target = target

    def writable(self):
        return True

    def write(self, raw):
        return self.target.write(raw)


def read(tmp_path, raw):
    (tmp_path / "x.bin").write_bytes(raw)
    mapped = map_file(tmp_path / "x.bin")
    return {name: mapped[m.start : m.start + m.n_bytes] for name, m in read_directory(mapped).items()}


@pytest.mark.parametrize("streamed", [False, True])
def test_members_lie_where_zipfile_put_them(tmp_path, streamed):
    assert read(tmp_path, archive(streamed=streamed)) == MEMBERS


def test_64_bit_fields(tmp_path):
    """A sparse archive beyond 4 GiB: the second member's place does not fit into 32 bits."""
    path = tmp_path / "big.bin"
    size = 5 << 30
    with path.open("wb") as file:
        file.truncate(LOCAL.size + 3 + size)
        file.write(LOCAL.pack(b"PK\3\4", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 3, 0) + b"big")
        file.seek(0, io.SEEK_END)
        second = file.tell()
        file.write(LOCAL.pack(b"PK\3\4", 45, 0, 0, 0, 0, 0, 4, 4, 5, 0) + b"smallGOOD")
        directory = file.tell()
        wide = struct.pack("<2H2Q", 1, 16, size, size)
        file.write(entry(b"big", 0xFFFFFFFF, 0, struct.pack("<2H2B", 0xCAFE, 2, 0, 0) + wide))
        file.write(entry(b"small", 4, 0xFFFFFFFF, struct.pack("<2HQ", 1, 8, second)))
        end = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, end - directory, directory))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    with zipfile.ZipFile(path) as opened:  # an independent reader agrees that this is a zip archive
        assert opened.getinfo("big").file_size == size and opened.getinfo("small").header_offset == second
    mapped = map_file(path)
    members = read_directory(mapped)
    assert (members["big"].start, members["big"].n_bytes) == (LOCAL.size + 3, size)
    assert mapped[members["small"].start :][:4] == b"GOOD"


def entry(name, size, header, extra=b"", method=0, flags=0):
    sizes = (size, size, len(name), len(extra), 0, 0, 0, 0, header)
    return ENTRY.pack(b"PK\1\2", 45, 45, flags, method, 0, 0, 0, *sizes) + name + extra


def crafted(entries, body, n_entries=None, size=None, offset=None):
    """A body of local headers and data, then any directory."""
    directory = b"".join(entries)
    counts = (len(entries) if n_entries is None else n_entries,) * 2
    where = (len(directory) if size is None else size, len(body) if offset is None else offset)
    return body + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts, *where, 0)


def local(name, size, method=0, extra=b""):
    return LOCAL.pack(b"PK\3\4", 45, 0, method, 0, 0, 0, size, size, len(name), len(extra)) + name + extra


ONE = local(b"w", 4) + b"DATA"
GOOD = archive()
FAULTY = {
    "cut short": (GOOD[:-1], "cut short"),
    "data after the end": (GOOD + b"\0", "after its end"),
    "a comment": (GOOD[:-2] + b"\1\0x", "after its end"),
    "a comment that is not there": (GOOD[:-2] + b"\1\0", "after its end"),
    "data in front": (b"junk" + GOOD, "directory is damaged"),
    "only an end": (crafted([entry(b"w", 0, 0)], b""), "not where"),
    "compressed": (archive(zipfile.ZIP_DEFLATED, {"a": bytes(100)}), "compressed"),
    "compressed by its entry": (crafted([entry(b"w", 4, 0, method=8)], ONE), "compressed"),
    "a header in the last bytes": (
        crafted([entry(b"w", 4, 4 + len(ONE) + len(entry(b"w", 4, 0)))], ONE).replace(
            b"PK\5\6" + bytes(4), b"PK\5\6PK\3\4"
        ),
        "not where",
    ),
    "encrypted": (crafted([entry(b"w", 4, 0, flags=1)], ONE), "encrypted"),
    "named twice": (crafted([entry(b"w", 4, 0), entry(b"w", 4, len(ONE))], ONE * 2), "two members"),
    "overlapping": (
        crafted(
            [entry(b"w", 4 + len(ONE), 0), entry(b"w2", 4, len(ONE))],
            local(b"w", 4 + len(ONE)) + b"DATA" + local(b"w2", 4) + b"DATA",
        ),
        "overlaps another",
    ),
    "into the directory": (crafted([entry(b"w", 9, 0)], local(b"w", 9) + b"DATA"), "overlaps the archive's directory"),
    "beyond the file": (crafted([entry(b"w", 2**31, 0)], local(b"w", 2**31) + b"DATA"), "not what"),
    "header beyond the file": (crafted([entry(b"w", 4, 2**31)], ONE), "not where"),
    "other name in front": (crafted([entry(b"v", 4, 0)], ONE), "not what"),
    "other size in front": (crafted([entry(b"w", 3, 0)], ONE), "not what"),
    "compressed in front": (crafted([entry(b"w", 4, 0)], local(b"w", 4, method=8) + b"DATA"), "not what"),
    "name not UTF-8": (crafted([entry(b"\xff", 4, 0)], local(b"\xff", 4) + b"DATA"), "UTF-8"),
    "64-bit field missing": (crafted([entry(b"w", 0xFFFFFFFF, 0)], ONE), "not what"),
    "64-bit field short": (crafted([entry(b"w", 0xFFFFFFFF, 0, struct.pack("<2HL", 1, 4, 4))], ONE), "64-bit field"),
    "64-bit size of 2**63": (
        crafted([entry(b"w", 0xFFFFFFFF, 0, struct.pack("<2H2Q", 1, 16, 2**63, 2**63))], ONE),
        "not what",
    ),
    "no 64-bit end": (crafted([entry(b"w", 4, 0)], ONE, offset=0xFFFFFFFF), "64-bit end"),
    "directory beyond": (crafted([entry(b"w", 4, 0)], ONE, offset=1000), "makes no sense"),
    "directory too long": (crafted([entry(b"w", 4, 0)], ONE, size=2**31), "makes no sense"),
    "directory longer than its entries": (crafted([entry(b"w", 4, 0), b"??"], ONE, n_entries=1), "length"),
    "more entries than bytes": (crafted([entry(b"w", 4, 0)], ONE, n_entries=1000), "makes no sense"),
    "one entry too many": (crafted([entry(b"w", 4, 0), bytes(46)], ONE), "directory is damaged"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_refuses_a_bad_archive(tmp_path, case):
    raw, says = FAULTY[case]
    with pytest.raises(CheckpointError, match=says) as error:
        read(tmp_path, raw)
    assert "x.bin" in str(error.value)


def test_the_crafted_archive_is_right_but_for_its_faults(tmp_path):
    assert read(tmp_path, crafted([entry(b"w", 4, 0)], ONE)) == {"w": b"DATA"}
