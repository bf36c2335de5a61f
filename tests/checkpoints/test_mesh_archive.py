"""Archives of Mesh Transformer JAX: unpacked in any order, in bounds, and without a trace."""

import io
import json
import secrets
import sys
import tarfile
import tempfile
import types
from dataclasses import replace

import pytest
import zstandard

import refgpt
from refgpt._common.errors import CheckpointError, ConfigError
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.layouts import mesh_archive
from tests.checkpoints.test_mesh import assert_holds
from tests.helpers import mesh_writer
from tests.helpers.mesh_writer import CONFIG, compressed, model, params_json, tar, write_params_json

FILES, WHOLE = mesh_writer.files(model("bf16"), 2)
FIRST = "step_383500/shard_0/0.npz"


def write_archive(directory, raw):
    """Beside a params.json."""
    write_params_json(directory)
    path = directory / "step_383500_slim.tar.zst"
    path.write_bytes(raw)
    return path


ARCHIVES = {
    "as it comes": lambda found: found,
    "in the order of strings": lambda found: dict(sorted(found.items())),
    "backwards": lambda found: dict(reversed(found.items())),
    "shards mixed": lambda found: dict(sorted(found.items(), key=lambda item: item[0].rpartition("/")[2])),
}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("order", ARCHIVES)
@pytest.mark.parametrize("optimiser", [False, True])
def test_archives_in_any_order(tmp_path, optimiser, order, format):
    found, whole = mesh_writer.files(model("bf16"), 4, optimiser)
    path = tmp_path / "step_383500_slim.tar.zstd"
    path.write_bytes(compressed(tar(ARCHIVES[order](found), format)))
    write_params_json(tmp_path)
    checkpoint = open_checkpoint(path)
    assert_holds(checkpoint, whole)
    assert {info.file for info in checkpoint.tensors} == {path} and len(checkpoint.tensors) == 27 * 4
    assert {child.name for child in tmp_path.iterdir()} == {path.name, "params.json"}


def test_the_configuration_may_be_inside(tmp_path):
    text = json.dumps(params_json()).encode()
    for found in ({"step_383500/params.json": text} | FILES, FILES | {"./params.json": text}):
        path = write_archive(tmp_path, compressed(tar(found)))
        (tmp_path / "params.json").unlink()
        assert_holds(open_checkpoint(path), WHOLE)
    write_params_json(tmp_path, pe="t5")  # one beside the archive counts first
    with pytest.raises(ConfigError, match=f"{tmp_path}/params.json: pe describes"):
        open_checkpoint(path)
    (tmp_path / "params.json").unlink()
    path = write_archive(tmp_path, compressed(tar(FILES | {"params.json": b"{}"})))
    (tmp_path / "params.json").unlink()
    with pytest.raises(ConfigError, match=r"slim\.tar\.zst/params\.json: keys are missing"):
        open_checkpoint(path)
    path.write_bytes(compressed(tar(FILES)))
    with pytest.raises(ConfigError, match=r"no params\.json"):
        open_checkpoint(path)


def test_several_frames_and_other_files(tmp_path):
    raw = tar(FILES | {"step_383500/meta.json": b"{}", "README": b"x" * 6_000_000})
    frames = b"".join(compressed(raw[i : i + 100_000]) for i in range(0, len(raw), 100_000))
    assert_holds(open_checkpoint(write_archive(tmp_path, frames)), WHOLE)


def test_progress_counts_the_archive(tmp_path):
    path = write_archive(tmp_path, compressed(tar(FILES)))
    seen = []
    refgpt.load(path, progress=lambda done, total: seen.append((done, total)))
    unpacking = [done for done, total in seen if total == path.stat().st_size]
    assert unpacking == sorted(unpacking) and unpacking[-1] == path.stat().st_size
    assert seen[-1][0] == seen[-1][1] == sum(leaf.nbytes for _, leaf in open_checkpoint(path).params.items())


def test_the_optimiser_is_let_go_of_on_the_way(tmp_path, monkeypatch):
    """Files in front of the parameters are dropped while later ones come in, not at the end."""
    found, whole = mesh_writer.files(model("f32"), 4, optimiser=True)
    path = write_archive(tmp_path, compressed(tar(found)))
    kept = []
    drop = mesh_archive._drop_optimiser

    def watched(pieces, n_leaves):
        drop(pieces, n_leaves)
        kept.append(sum(array.nbytes for arrays in pieces.values() for array in arrays))

    monkeypatch.setattr(mesh_archive, "_drop_optimiser", watched)
    assert_holds(open_checkpoint(path), whole)
    parameters = sum(leaf.nbytes for _, leaf in whole.items()) / 4
    assert parameters < kept[-1] < 1.5 * parameters and max(kept) < 2.2 * parameters


def test_temporary_files_are_where_they_may_be(tmp_path, monkeypatch):
    made = []
    temporary = tempfile.TemporaryFile
    monkeypatch.setattr(mesh_archive.tempfile, "TemporaryFile", lambda dir: made.append(dir) or temporary(dir=dir))
    path = write_archive(tmp_path, compressed(tar(FILES)))
    monkeypatch.delenv("TMPDIR", raising=False)
    open_checkpoint(path)
    assert {*made} == {tmp_path}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(mesh_archive.tempfile, "tempdir", None)
    made.clear()
    open_checkpoint(path)
    assert {*made} == {tmp_path / "elsewhere"}


def test_no_room(tmp_path, monkeypatch):
    path = write_archive(tmp_path, compressed(tar(FILES)))
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(mesh_archive.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"no room to unpack.*1,000 bytes free; wanted [\d,]+ more; set TMPDIR"):
        open_checkpoint(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    usage.free = 1 << 40
    monkeypatch.setattr(mesh_archive.shutil, "copyfileobj", full)
    with pytest.raises(CheckpointError, match="no room to unpack the archive; got No space left"):
        open_checkpoint(path)

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(mesh_archive.shutil, "copyfileobj", broken)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Input/output error\)"):
        open_checkpoint(path)


def test_without_a_library(tmp_path, monkeypatch):
    path = write_archive(tmp_path, compressed(tar(FILES)))
    monkeypatch.setitem(sys.modules, "compression", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(CheckpointError, match=r"wanted zstandard; python -m pip install 'refgpt\[mesh\]'"):
        open_checkpoint(path)


def test_the_standard_librarys_is_preferred(tmp_path, monkeypatch):
    """By its interface: Python 3.14's ``compression.zstd``."""
    path = write_archive(tmp_path, compressed(tar(FILES)))
    zstd = types.ModuleType("compression.zstd")
    zstd.ZstdFile = lambda file: zstandard.ZstdDecompressor().stream_reader(file)
    zstd.ZstdError = zstandard.ZstdError
    compression = types.ModuleType("compression")
    compression.zstd = zstd
    monkeypatch.setitem(sys.modules, "compression", compression)
    monkeypatch.setitem(sys.modules, "compression.zstd", zstd)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert_holds(open_checkpoint(path), WHOLE)


def with_member(**fields):
    """A sound archive with one member more, in front."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        member = tarfile.TarInfo(fields.pop("name", "odd"))
        for name, value in fields.items():
            setattr(member, name, value)
        archive.addfile(member, io.BytesIO(b"x" * member.size))
    return compressed(raw.getvalue()[: 512 + -(-member.size // 512) * 512] + tar(FILES))


def empty_file(i, name=""):
    """Of which compression does not make nothing."""
    member = tarfile.TarInfo(name or str(i))
    member.uname = secrets.token_hex(15)
    return member.tobuf(tarfile.GNU_FORMAT)


def bomb(name, size):
    """An archive of kilobytes with a member of gigabytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    head = member.tobuf(tarfile.GNU_FORMAT)
    zeros = compressed(bytes(1 << 24))
    return compressed(head) + zeros * (size >> 24)


HOSTILE = {
    "a link": (with_member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no plain file"),
    "a hard link": (with_member(type=tarfile.LNKTYPE, linkname="../x"), "no plain file"),
    "a device": (with_member(type=tarfile.CHRTYPE), "no plain file"),
    "a file twice": (with_member(name=FIRST, size=len(FILES[FIRST])), "damaged|two files|cut short"),
    "two checkpoints": (compressed(tar(FILES | {"step_9/shard_0/0.npz": FILES[FIRST]})), "several checkpoints"),
    "shards of two checkpoints": (
        compressed(tar({name.replace("383500/shard_1", "9/shard_1"): raw for name, raw in FILES.items()})),
        "several checkpoints.*step_383500/shard_0, step_9/shard_1",
    ),
    "a shard spelt in two ways": (
        compressed(tar({name.replace("shard_1/7", "shard_01/7"): raw for name, raw in FILES.items()})),
        "shard twice: step_383500/shard_1, step_383500/shard_01",
    ),
    "a file spelt in two ways": (
        compressed(tar(FILES | {FIRST.replace("0.npz", "00.npz"): FILES[FIRST]})),
        "two files",
    ),
    "other digits": (
        compressed(tar({name.replace("shard_1/7", "shard_\u0661/7"): raw for name, raw in FILES.items()})),
        "shard_1 has no 7.npz",
    ),
    "a bomb": (bomb(FIRST, 8 << 30), "absurdly much|no room"),
    "a bomb that nobody wants": (bomb("README", 8 << 30), "absurdly much"),
    "a bomb of headers": (compressed(b"".join(map(empty_file, range(9000)))), "more than 8192 files"),
    "a long name": (compressed(empty_file(0, name=secrets.token_hex(3_000_000)) + tar(FILES)), "absurdly much"),
    "no zstd": (b"x" * 1000, "damaged"),
    "no tar": (compressed(b"x" * 10_000), "damaged"),
    "empty": (b"", "damaged|no shard_0"),
    "nothing inside": (compressed(tar({})), "no shard_0"),
    "a window of 2 GB": (bytes.fromhex("28b52ffd00a8") + b"x" * 100, "damaged"),
    "a shard alone": (compressed(tar({name: raw for name, raw in FILES.items() if "shard_1" in name})), "no shard_0"),
    "one array short": (
        compressed(tar({name: raw for name, raw in FILES.items() if "/9.npz" not in name})),
        "no 9.npz",
    ),
    "a file of zeros": (compressed(tar(FILES | {FIRST: bytes(1000)})), r"shard_0/0\.npz: .*cut short"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives(tmp_path, quick, small, case):
    raw, says = HOSTILE[case]
    path = write_archive(tmp_path, raw)
    for guard in (quick, small):
        with guard(), pytest.raises(CheckpointError, match=says) as error:
            open_checkpoint(path)
        assert str(tmp_path) in str(error.value) and len(str(error.value)) < 1000
    assert {child.name for child in tmp_path.iterdir()} == {path.name, "params.json"}


def test_arrays_are_counted_over_the_whole_archive(tmp_path, monkeypatch):
    """Those of the optimiser too, although they are let go of."""
    found, whole = mesh_writer.files(model("bf16"), 4, optimiser=True)
    path = write_archive(tmp_path, compressed(tar(found)))
    n = 4 * (3 * 26 + 3)  # parameters and two moments, two counts and the step
    monkeypatch.setattr(mesh_archive, "MOST_ARRAYS", n)
    assert_holds(open_checkpoint(path), whole)
    monkeypatch.setattr(mesh_archive, "MOST_ARRAYS", n - 1)
    with pytest.raises(CheckpointError, match=f"the archive has more than {n - 1} arrays"):
        open_checkpoint(path)


def test_a_model_larger_than_the_disk_is_refused_at_once(tmp_path):
    path = write_archive(tmp_path, compressed(tar(FILES)))
    write_params_json(tmp_path, replace(CONFIG, n_vocab=1 << 24), d_model=1 << 17)
    with pytest.raises(CheckpointError, match="no room to unpack"):
        open_checkpoint(path)
