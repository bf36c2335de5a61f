"""Flags of the environment that would change the bits of results reach neither the compiler nor the link."""

import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.work import HANGS

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CC", "cc").split()[0])

UNWANTED = [
    "-ffast-math",
    "-Ofast",
    "-funsafe-math-optimizations",
    "-ffinite-math-only",
    "-fassociative-math",
    "-freciprocal-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-honor-nans",
    "-ffp-contract=fast",
    "-ffp-model=fast",
    "-fsingle-precision-constant",
    "-march=native",
    "-march=x86-64-v3",
    "-mcpu=native",
    "-mfma",
    "-mavx2",
    "-mfpmath=387",
    "-mdaz-ftz",
    "-mrecip",
    "--optimize=fast",
    "-fdenormal-fp-math=preserve-sign",
]
WANTED = [
    "cc",
    "-O2",
    "-Os",
    "-g",
    "-fPIC",
    "-Wall",
    "-fwrapv",
    "-mtune=native",
    "-flto",
    "-fsanitize=address",
    "-DNDEBUG",
    "-ffp-exception-behavior=maytrap",
    "-fno-fast",
    "-arch",
    "arm64",
    "-mmacosx-version-min=11.0",
    "-msse2",
    "-pthread",
    "-Wl,-rpath,/opt/-ffast-math",
    "-fno-math-errno",
    "-shared",
    "-mbranch-protection=standard",
    "-m64",
]


def build(monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    return runpy.run_path(str(ROOT / "csrc" / "build.py"))


def test_flags_that_change_bits_are_told_from_those_that_do_not(monkeypatch):
    kept, dropped = build(monkeypatch)["without_unwanted"]([*WANTED, *UNWANTED])
    assert kept == WANTED
    assert dropped == UNWANTED


def test_a_build_of_chosen_instruction_sets(monkeypatch):
    """Scalar is always among them: every other row is held to it."""
    built = build(monkeypatch)
    known = list(built["isa_flags"]())
    monkeypatch.setenv("REFGPT_BUILD_ISAS", "")
    assert built["chosen_isas"]() == known
    for named in (known[-1], f"scalar, {known[-1]}"):
        monkeypatch.setenv("REFGPT_BUILD_ISAS", named)
        assert built["chosen_isas"]() == list(dict.fromkeys(["scalar", known[-1]]))
    monkeypatch.setenv("REFGPT_BUILD_ISAS", "avx1024 scalar")
    with pytest.raises(ValueError, match=r"REFGPT_BUILD_ISAS names avx1024: this architecture has scalar"):
        built["chosen_isas"]()


def test_only_the_chosen_ones_are_compiled(tmp_path, monkeypatch):
    """The table has the rows of the others, without functions."""
    lines = commands_of_a_build({"REFGPT_BUILD_ISAS": "scalar"}, tmp_path, monkeypatch)
    others = set(build(monkeypatch)["isa_flags"]()) - {"scalar"}
    assert any("scalar.c" in line for line in lines)
    assert not [line for line in lines for isa in others if f"{isa}.c" in line]
    table = next(line for line in lines if "dispatch.c" in line)
    assert all(f"-DREFGPT_WITHOUT_{isa}" in table.split() for isa in others)


def test_an_object_is_kept_only_while_every_file_and_flag_is_the_same(tmp_path, monkeypatch):
    first = commands_of_a_build({}, tmp_path, monkeypatch)
    again = commands_of_a_build({}, tmp_path, monkeypatch)[len(first) :]
    other = commands_of_a_build({"REFGPT_CFLAGS": "-DOTHER"}, tmp_path, monkeypatch)[len(first) + len(again) :]
    scalar = [any(f"{Path('csrc', 'scalar.c')}" in line for line in lines) for lines in (first, again, other)]
    assert scalar == [True, False, True]

    built = build(monkeypatch)
    monkeypatch.setitem(built["made_from"].__globals__, "CSRC", tmp_path)
    (tmp_path / "ops").mkdir()
    keys = []
    for text in ("int a;", "int b;"):
        (tmp_path / "ops" / "op.h").write_text(text)
        keys += [built["made_from"](["cc"]), built["made_from"](["cc", "-g"])]
    assert len(set(keys)) == 4


# Writes down its arguments, and makes what it was asked for.
FAKE = """#!/bin/sh
echo "$0 $*" >> "$COMMANDS"
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then : > "$2"; fi
    shift
done
"""

# The same, but too old for AVX-VNNI.
OLD = FAKE.replace("while", """case "$*" in *-mavxvnni*) exit 1 ;; esac\nwhile""", 1)

ENVIRONMENTS = {
    "CFLAGS": {"CFLAGS": "-O2 -ffast-math -march=native -DKEPT"},
    "LDFLAGS": {"LDFLAGS": "-Wl,-O1 -ffast-math -DKEPT"},
    "CPPFLAGS": {"CPPFLAGS": "-funsafe-math-optimizations -DKEPT"},
    "CC": {"CC": "{fake} -Ofast -mfma -DKEPT"},
    "LDSHARED": {"LDSHARED": "{fake} -shared -Ofast -DKEPT"},
    "REFGPT_CFLAGS": {"REFGPT_CFLAGS": "-ffast-math -DKEPT"},
}


def commands_of_a_build(given, tmp_path, monkeypatch, told="", compiler=FAKE):
    """What a build in such an environment has a compiler do; the builder sees ``told``."""
    build(monkeypatch)
    fake, commands = tmp_path / "fake-cc", tmp_path / "commands"
    fake.write_text(compiler)
    fake.chmod(0o755)
    given = {"CC": "{fake}"} | given
    environment = {name: value for name, value in os.environ.items() if name not in ("CFLAGS", "LDFLAGS", "CPPFLAGS")}
    environment |= {name: value.format(fake=fake) for name, value in given.items()} | {"COMMANDS": str(commands)}
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import setuptools; setuptools.setup()",
            "build_ext",
            "--build-temp",
            str(tmp_path / "temp"),
            "--build-lib",
            str(tmp_path / "lib"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert run.returncode == 0, run.stderr
    assert told in run.stdout + run.stderr
    return commands.read_text().splitlines()


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_no_command_of_a_build_has_them(where, tmp_path, monkeypatch):
    told = "" if where == "REFGPT_CFLAGS" else f"(in {where}"
    lines = commands_of_a_build(ENVIRONMENTS[where], tmp_path, monkeypatch, told)
    links = [line for line in lines if " -c " not in line]
    assert len(lines) > 5 and len(links) == 1
    assert any("-DKEPT" in line for line in lines)
    words = {word for line in lines for word in line.split()}
    unwanted = {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-march=native"}
    assert not words & unwanted
    assert all("-mfma" not in line for line in lines if "avx" not in line)
    assert all("-ffp-contract=off" in line and "-fno-fast-math" in line for line in lines if line not in links)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only", "-O3 -ffast-math"])
def test_what_reaches_the_compiler_otherwise_does_not_compile(flag):
    run = subprocess.run(
        [COMPILER, "-std=gnu11", *flag.split(), "-fsyntax-only", f"-I{ROOT / 'csrc'}", str(ROOT / "csrc" / "scalar.c")],
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "CFLAGS" in run.stderr


X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="an instruction set of x86-64")


@X86
def test_an_instruction_set_that_the_compiler_does_not_know_is_left_out(tmp_path, monkeypatch):
    told = (
        "left out avxvnni: this compiler or its assembler does not know it; GCC 11 with binutils 2.36, and Clang 12, do"
    )
    lines = commands_of_a_build({}, tmp_path, monkeypatch, told, compiler=OLD)
    assert not [line for line in lines if "avxvnni.c" in line]
    assert [line for line in lines if "avx2.c" in line]
    table = next(line for line in lines if "dispatch.c" in line)
    assert [word for word in table.split() if "WITHOUT" in word] == ["-DREFGPT_WITHOUT_avxvnni"]


@X86
def test_avx_vnni_is_compiled_in_its_own_encoding_or_for_tests_in_that_of_avx512(tmp_path, monkeypatch):
    own = commands_of_a_build({}, tmp_path, monkeypatch)
    evex = commands_of_a_build({"REFGPT_EVEX_AVXVNNI": "1"}, tmp_path, monkeypatch, compiler=OLD)[len(own) :]
    (rows,) = [line.split() for line in own if "avxvnni.c" in line]
    assert "-mavxvnni" in rows and "-mavx512vnni" not in rows
    assert not [line for line in own if "-DREFGPT_EVEX_AVXVNNI" in line]
    (rows,) = [line.split() for line in evex if "avxvnni.c" in line]
    assert "-mavx512vnni" in rows and "-mavxvnni" not in rows
    assert "-DREFGPT_EVEX_AVXVNNI" in next(line for line in evex if "cpu.c" in line).split()
