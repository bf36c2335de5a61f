"""The guide's unit of systemd, container file and compose file, without a service manager and a container engine.

Their commands are run for a moment, on this machine's loopback and with the included model.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from refgpt.cli import build_parser
from refgpt.server import ServerSettings
from tests.docs.test_docs_serve import blocks
from tests.helpers.adapters import written
from tests.helpers.work import HANGS
from tests.test_packaging import PROJECT

ROOT = Path(__file__).parents[2]
(UNIT,) = blocks("ini", "ExecStart")
(CONTAINER,) = blocks("dockerfile", "ENTRYPOINT")
(COMPOSE,) = blocks("yaml", "command:")
#: A shutdown takes the grace and some seconds more.
SHUTDOWN = ServerSettings().grace + 10


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT)
    return parser


def compose() -> dict[str, Any]:
    return pytest.importorskip("yaml").safe_load(COMPOSE)


def stages() -> list[list[tuple[str, str]]]:
    """The stages of the container file: instructions with their arguments."""
    found: list[list[tuple[str, str]]] = []
    for line in CONTAINER.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append((name, rest))
    return found


def container_command() -> list[str]:
    """What the container of the compose file runs."""
    (service,) = compose()["services"].values()
    return [*json.loads(dict(stages()[-1])["ENTRYPOINT"]), *service["command"]]


COMMANDS = {
    "unit": lambda: shlex.split(unit()["Service"]["ExecStart"]),
    "container": lambda: json.loads(dict(stages()[-1])["ENTRYPOINT"]),
    "compose": container_command,
    **{
        f"guide{i}": lambda line=line: shlex.split(line)
        for i, line in enumerate(
            line for block in blocks("sh", "refgpt serve") for line in block.splitlines() if "refgpt serve" in line
        )
    },
}


@contextmanager
def running(command: list[str], tmp_path: Path) -> Iterator[str]:
    """A command of the guide on a free port of the loopback, with the included model. -> its URL

    It has what the unit and the container give it: no home, and a directory that it does not own.
    """
    pytest.importorskip("starlette")
    keys = tmp_path / "keys"
    keys.write_text("# of the test\nright\n")
    words, dropped = [sys.executable, "-m", "refgpt", *command[1:]], ("-m", "--model")
    for name, value in (("--host", "127.0.0.1"), ("--api-key-file", str(keys))):
        if name in words:
            words[words.index(name) + 1] = value
    for name in dropped:
        if name in words[3:]:
            at = words.index(name, 3)
            del words[at : at + 2]
    for i, word in enumerate(words):
        if words[i - 1] == "--adapter":
            name = word.partition("=")[0]
            words[i] = f"{name}={written(None, tmp_path / name, 'wq', 1)}"
    words += ["--port", "0"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "HOME": "/nonexistent"}
    process = subprocess.Popen(
        words, cwd="/", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving at http://127.0.0.1:"), process.stderr.read()
        yield line.split()[-1]
        process.send_signal(signal.SIGTERM)  # as systemd and container engines stop it
        assert process.wait(HANGS) == 0
    finally:
        process.kill()
        process.communicate()


def status(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers), timeout=HANGS) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


@pytest.mark.parametrize("command", COMMANDS)
def test_options_exist(command: str) -> None:
    words = COMMANDS[command]()
    arguments = build_parser().parse_args(words[words.index("serve") :])
    assert arguments.run.__name__ == "_serve"


@pytest.mark.parametrize("command", ["unit", "compose"])
def test_commands_serve(command: str, tmp_path: Path) -> None:
    words = COMMANDS[command]()
    with running(words, tmp_path) as url:
        assert status(f"{url}health") == 200
        assert "--api-key-file" in words
        assert status(f"{url}v1/models") == 401
        assert status(f"{url}v1/models", Authorization="Bearer right") == 200
        if command == "compose":
            (service,) = compose()["services"]  # other containers reach it by its name
            assert status(f"{url}v1/models", Host=service, Authorization="Bearer right") == 200
            check_health(url)


def check_health(url: str) -> None:
    (service,) = compose()["services"].values()
    kind, program, *rest = service["healthcheck"]["test"]
    assert kind == "CMD" and Path(program).parent == Path(container_command()[0]).parent
    port = re.search(r":(\d+)/", url)[1]
    for inside, fails in ((port, False), ("9", True)):  # nothing listens on the port for discarding
        words = [sys.executable, *(word.replace(":8080/", f":{inside}/") for word in rest)]
        assert words != [sys.executable, *rest]
        assert (subprocess.run(words, stderr=subprocess.DEVNULL, timeout=HANGS).returncode != 0) == fails


def test_the_unit() -> None:
    found = unit()
    assert found.sections() == ["Unit", "Service", "Install"]
    assert float(found["Service"]["TimeoutStopSec"]) >= SHUTDOWN
    assert "forking" not in found["Service"].get("Type", "simple")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """``systemd-analyze verify`` reads every line, and tells of unknown keys and values; it starts nothing."""
    program = tmp_path / "refgpt"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def verify(text: str) -> str:
        path = tmp_path / "refgpt.service"
        path.write_text(text.replace("/opt/refgpt/bin/refgpt", str(program)))
        words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=HANGS)
        lines = (done.stdout + done.stderr).splitlines()
        return "\n".join(line for line in lines if "refgpt" in line) + (f"\n{done.returncode}" * bool(done.returncode))

    assert verify(UNIT.replace("Restart=on-failure", "Restart=sometimes"))
    assert verify(UNIT.replace("NoNewPrivileges", "NoOldPrivileges"))
    assert verify(UNIT) == ""


def test_the_container_file() -> None:
    build, final = stages()
    instructions = {name for stage in (build, final) for name, _ in stage}
    assert instructions <= {"FROM", "RUN", "COPY", "USER", "EXPOSE", "ENTRYPOINT"}
    assert build[0][1].endswith(" AS build")
    python = re.match(r"python:(\d+)\.(\d+)-", final[0][1])
    assert python and build[0][1].startswith(final[0][1])  # the environment is for one Python
    project = PROJECT["project"]
    least = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    assert least and int(python[2]) >= int(least[1])
    (install,) = [rest for name, rest in build if name == "RUN" and "pip install" in rest]
    copied, extras = re.search(r'pip install "(\S+)\[(\S+)\]"', install).groups()
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert ("COPY", f". {copied}") in build
    environment = re.search(r"python -m venv (\S+)", install)[1]
    assert ("COPY", f"--from=build {environment} {environment}") in final
    entry = json.loads(dict(final)["ENTRYPOINT"])
    assert entry[0] == f"{environment}/bin/refgpt" and "refgpt" in project["scripts"]
    assert ("EXPOSE", str(ServerSettings().port)) in final
    assert ("USER", "nobody") in final and all(name != "RUN" for name, _ in final)


@pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd")
def test_the_kernels_need_no_library_that_the_image_lacks() -> None:
    import _refgpt_kernels

    done = subprocess.run(["ldd", _refgpt_kernels.__file__], capture_output=True, text=True, check=True)
    names = {line.split()[0].rpartition("/")[2] for line in done.stdout.splitlines()}
    system = re.compile(r"(linux-vdso|libc|libm|libpthread|ld-linux\S*|ld-musl\S*)\.so(\.\d+)?|statically")
    assert [name for name in names if not system.fullmatch(name)] == []


def test_the_compose_file() -> None:
    found = compose()
    assert found.keys() == {"services", "secrets"}
    (service,) = found["services"].values()
    known = {"build", "command", "volumes", "secrets", "ports", "read_only", "stop_grace_period", "healthcheck"}
    assert service.keys() == known and all(isinstance(word, str) for word in service["command"])
    command = container_command()
    for secret in service["secrets"]:
        assert secret in found["secrets"] and f"/run/secrets/{secret}" in command
    (volume,) = service["volumes"]
    _, inside, mode = volume.split(":")
    assert command[command.index("-m") + 1].startswith(f"{inside}/") and mode == "ro"
    (port,) = service["ports"]
    host, _, inside_port = port.split(":")
    assert host == "127.0.0.1" and int(inside_port) == ServerSettings().port
    assert int(re.fullmatch(r"(\d+)s", service["stop_grace_period"])[1]) >= SHUTDOWN
