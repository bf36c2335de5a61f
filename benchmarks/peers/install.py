"""An environment for refgpt and its peers. Standard library only: this runs before there is one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.isa import ISAS
from benchmarks.quick import QUICK

ROOT = Path(__file__).resolve().parents[2]
STAMP = "installed.json"  # what is installed, and for which instruction set
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
#: Compiling llama.cpp takes minutes; a download that hangs should not take for ever.
INSTALL_SECONDS = 3600
#: The language part of llama.cpp alone.
LLAMA_PARTS = {
    "LLAVA_BUILD": "OFF",
    "MTMD_BUILD": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
}
#: llama.cpp's own server, without its page and all else.
SERVER_PARTS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
#: What llama.cpp says of a build that uses an x86 processor; told if it is missing.
WANTED_FLAGS = ("AVX2", "FMA", "F16C")


def python_of(work: Path) -> Path:
    """The environment's interpreter; in quick mode, which installs nothing, this one."""
    return Path(sys.executable) if QUICK else work / "venv" / "bin" / "python"


def llama_server_of(work: Path) -> Path:
    """Where ``install_llama_server`` puts llama.cpp's own server."""
    return work / "llama.cpp" / "build" / "bin" / "llama-server"


def requirements() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def fingerprint() -> str:
    """Of everything that refgpt is built from."""
    files = [ROOT / "pyproject.toml", *(ROOT / "csrc").rglob("*.*"), *(ROOT / "refgpt").rglob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix in {".c", ".h", ".def", ".py", ".toml"}):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def cmake_args(isa: str, parts: Mapping[str, str] = LLAMA_PARTS) -> str:
    """llama.cpp for an instruction set, or for this very processor ("native")."""
    return " ".join(f"-D{name}={value}" for name, value in {**ISAS[isa].cmake, **parts}.items())


def read_stamp(work: Path, isa: str) -> dict[str, str]:
    """What is installed. A directory keeps to one instruction set: engines built for two are not compared."""
    stamp = work / STAMP
    done = json.loads(stamp.read_text()) if stamp.exists() else {"isa": isa}
    if done.setdefault("isa", "native") != isa:
        raise SystemExit(f"{work} was installed for {done['isa']}: give {isa} a directory of its own")
    return done


def install(work: Path, isa: str) -> None:
    """Make the environment, or bring it up to date. A peer that cannot be installed is reported and left out."""
    done = read_stamp(work, isa)
    if not python_of(work).exists():
        venv.create(work / "venv", with_pip=True)
        done = {"isa": isa}
    for what, target, version in [
        ("refgpt", f"{ROOT}[server]", fingerprint()),
        *((line, line, line) for line in requirements()),
    ]:
        if done.get(what) == version:
            continue
        print(f"installing {what} ...", flush=True)
        why_not = pip_install(work, target, isa)
        if why_not is None:
            done[what] = version
            (work / STAMP).write_text(json.dumps(done, indent=1))
        elif what == "refgpt":
            raise SystemExit(f"refgpt cannot be installed: {why_not}")
        else:
            print(f"{what} cannot be installed, so it is left out: {why_not}", flush=True)
    check_llama(work, isa)


def pip_install(work: Path, target: str, isa: str) -> str | None:
    """None, or the last line of what went wrong; all of it is in install.log."""
    command = [str(python_of(work)), "-m", "pip", "install", "--no-binary", "llama-cpp-python", target]
    if target.startswith("llama-cpp-python"):
        command.append("--no-cache-dir")  # a wheel from there may have been built for another instruction set
    parallel = {"CMAKE_ARGS": cmake_args(isa), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    log = work / "install.log"
    with log.open("a") as file:
        try:
            status = subprocess.run(
                command, env=os.environ | parallel, stdout=file, stderr=file, timeout=INSTALL_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            return f"it took longer than {INSTALL_SECONDS} s"
    return None if status == 0 else log.read_text(errors="replace").strip().splitlines()[-1] + f" ({log})"


def install_llama_server(work: Path, isa: str) -> None:
    """Build llama.cpp's own server, whose source is part of llama-cpp-python's. If that fails, it is reported."""
    program = llama_server_of(work)
    if program.exists():
        return
    print("building llama-server ...", flush=True)
    directory, log = program.parents[2], work / "install.log"
    directory.mkdir(exist_ok=True)
    (release,) = [line for line in requirements() if line.startswith("llama-cpp-python==")]
    name = release.replace("-", "_").replace("==", "-")  # of the source's archive and its folder
    pip = [str(python_of(work)), "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    make = ["cmake", "--build", "build", "--target", program.name, "--parallel", str(os.cpu_count() or 1)]
    commands = [
        [*pip, release],
        ["tar", "-xzf", f"{name}.tar.gz"],
        ["cmake", "-S", f"{name}/vendor/llama.cpp", "-B", "build", *cmake_args(isa, SERVER_PARTS).split()],
        make,
    ]
    with log.open("a") as file:
        for command in commands:
            try:
                options: dict[str, Any] = {"stdout": file, "stderr": file, "timeout": INSTALL_SECONDS}
                status = subprocess.run(command, cwd=directory, **options).returncode
            except (OSError, subprocess.TimeoutExpired) as error:
                status = str(error)
            if status:
                print(f"llama-server cannot be built, so it is left out: {command[0]}: {status} ({log})", flush=True)
                return


def check_llama(work: Path, isa: str) -> None:
    """Warn of a llama.cpp that was built without what it may use here, or with more: it would be compared unfairly."""
    ask = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    run = subprocess.run([str(python_of(work)), "-c", ask], capture_output=True, text=True, timeout=60)
    processor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    missing = [flag for flag in WANTED_FLAGS if flag.lower() in processor.split() and f"{flag} = 1" not in run.stdout]
    if run.returncode == 0 and missing:
        print(f"warning: this llama.cpp was built without {', '.join(missing)}: {run.stdout.strip()}", flush=True)
    if isa != "native" and "AVX512 = 1" in run.stdout:
        print(f"warning: this llama.cpp was built for more than {isa}: {run.stdout.strip()}", flush=True)
