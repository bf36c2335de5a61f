"""What is no plain file, under any name that a reader knows, is refused at once; what a file's absence raises."""

import os
import pickle
import signal
import socket
from pathlib import Path

import pytest

import refgpt
from refgpt import ModelConfig
from refgpt._common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GenerationError,
    KernelError,
    RefgptError,
    TokenizerError,
    is_foreign,
    missing,
)
from refgpt._common.small_files import open_file, read_bytes, reading
from refgpt.checkpoints import open_checkpoint
from tests.helpers import mesh_writer
from tests.helpers.mesh_writer import compressed, tar, write_params_json
from tests.helpers.writers import state_dict, write_config, write_safetensors

WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]
ALONE = ["x.tar.zst", "x.bin", "x.gguf", "x.pt", "model.bin", "packed.safetensors", "x"]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name may not be long
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES = {
    fifo: "named pipe",
    bound_socket: "socket",
    to_fifo: "named pipe",
    device: "device",
    dangling: "link that leads nowhere",
    loop: "symbolic links",
}


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("name", ALONE)
def test_no_file_by_itself(tmp_path, make, name):
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=NO_FILES[make]) as fault:
        open_checkpoint(tmp_path / name)
    assert isinstance(fault.value, FileNotFoundError) == (make is dangling)


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("name", [*WEIGHTS, "packed.safetensors"])
def test_no_file_as_the_weights_of_a_directory(tmp_path, make, name):
    write_config(tmp_path)
    make(tmp_path / name)
    with pytest.raises(RefgptError, match=NO_FILES[make] if name != "packed.safetensors" else "manifest"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("make", NO_FILES)
def test_no_file_as_the_configuration(tmp_path, make):
    write_safetensors(tmp_path / "model.safetensors", state_dict())
    make(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=NO_FILES[make]):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("make", NO_FILES)
def test_no_file_as_a_shard(tmp_path, make):
    write_config(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "shard.safetensors"}}')
    make(tmp_path / "shard.safetensors")
    with pytest.raises(CheckpointError, match=NO_FILES[make]):
        open_checkpoint(tmp_path)


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    """Between the question and the opening anything may happen."""
    os.mkfifo(tmp_path / "x")
    monkeypatch.setattr("refgpt._common.small_files.check_plain", lambda path, error: None)
    with pytest.raises(CheckpointError, match="named pipe"):
        open_file(tmp_path / "x", CheckpointError)


def test_a_sparse_file_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(ConfigError, match="far too large"):
        read_bytes(tmp_path / "config.json", ConfigError, 1 << 20)


def test_a_file_that_grows_while_it_is_read_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(bytes(100))
    real = os.fstat
    monkeypatch.setattr(
        "refgpt._common.small_files.os.fstat", lambda fd: os.stat_result((*real(fd)[:6], 1, *real(fd)[7:]))
    )
    with pytest.raises(ConfigError, match="far too large"):
        read_bytes(tmp_path / "x", ConfigError, 10)


# ---- as which errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [RefgptError, ConfigError, CheckpointError, TokenizerError, GenerationError, DataError, KernelError]
)
def test_errors_are_value_errors_and_those_of_missing_files_os_errors(kind):
    assert issubclass(kind, ValueError) and not issubclass(kind, OSError)
    absent = missing(kind)
    assert issubclass(absent, kind)
    if absent is not kind:
        error = absent("is not there", where="a", got="b", fix="c").within("d")
        assert isinstance(error, FileNotFoundError) and str(error) == "d, a: is not there; got b; c"
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is absent and str(again) == str(error) and again.errno is None


@pytest.mark.parametrize("path", ["none", "none/at/all", "x.gguf"])
def test_a_missing_model_is_a_missing_file(tmp_path, path):
    with pytest.raises(FileNotFoundError) as fault:
        refgpt.load(tmp_path / path)
    assert isinstance(fault.value, CheckpointError)


def test_an_argument_is_a_value_error():
    for arguments in ({"backend": "x"}, {"dtype": "x"}, {"threads": 0}, {"mask": "x"}, {"kv_dtype": "x"}):
        with pytest.raises(ValueError, match="cannot be used"):
            refgpt.load(**arguments)
    with pytest.raises(ValueError, match="n_layer"):
        ModelConfig(n_layer=0)


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + "/y", "a/" * 5000 + "b", "nul\0", "a/b\0", "\ud800"])
def test_paths_that_cannot_be(path):
    with pytest.raises(RefgptError):
        refgpt.load(path)


# ---- what is not ours ----------------------------------------------------------------------------------------------


class Alarm(Exception):
    pass


@pytest.mark.parametrize(
    "raised",
    [
        TimeoutError("late"),
        OSError("late"),
        ValueError("late"),
        EOFError("late"),
        Alarm(),
        OverflowError("late"),
        KeyboardInterrupt(),
    ],
)
def test_what_a_signal_handler_raises_while_an_archive_is_read_is_raised(tmp_path, raised):
    write_params_json(tmp_path)
    path = tmp_path / "x.tar.zst"
    path.write_bytes(compressed(tar(mesh_writer.files(mesh_writer.model("bf16"), 2)[0])))

    def handler(*_):
        raise raised

    def progress(*_):
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(type(raised)) as fault:
            open_checkpoint(path, progress=progress)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert fault.value is raised


def test_only_what_the_system_refuses_is_a_fault_of_the_file():
    for ours in (TimeoutError("late"), OSError("?"), missing(DataError)("is not there")):
        with pytest.raises(type(ours)) as fault, reading("x", CheckpointError):
            raise ours
        assert fault.value is ours
    with pytest.raises(CheckpointError, match="disk is on fire"), reading("x", CheckpointError):
        raise OSError(5, "disk is on fire")


def test_an_exception_is_foreign_if_any_code_between_is():
    def raises():
        raise ValueError

    try:
        raises()
    except ValueError as error:
        fault = error
    assert is_foreign(fault) and not is_foreign(fault, __name__.partition(".")[0])
    try:
        ModelConfig(n_layer=0)
    except ConfigError as error:
        fault = error
    assert is_foreign(fault)  # this frame
    assert not is_foreign(fault.with_traceback(fault.__traceback__.tb_next))
