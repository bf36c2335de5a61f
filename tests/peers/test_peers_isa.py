"""A comparison that is held to an instruction set: what is built and told, and that directories are not mixed."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers.install import cmake_args, install
from benchmarks.peers.isa import ISAS
from benchmarks.peers.processors import build_peak, peaks
from refgpt.kernels.registry import PREFERENCE


def test_llama_is_compiled_for_the_processor_or_for_the_set():
    assert "-DGGML_NATIVE=ON" in cmake_args("native").split()
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON"} <= set(cmake_args("avx2").split())
    assert "AVX512" not in cmake_args("avx2")


@pytest.mark.parametrize("isa", sorted(ISAS))
def test_a_set_has_refgpts_name_for_it(isa: str):
    assert ISAS[isa].environment.get("REFGPT_ISA", "native") == isa
    assert isa == "native" or isa in PREFERENCE


@pytest.mark.parametrize(("before", "isa"), [({"isa": "avx2"}, "native"), ({"isa": "native"}, "avx2"), ({}, "avx2")])
def test_a_directory_is_for_one_set(tmp_path: Path, before: dict[str, str], isa: str):
    """Also one from before there was a choice: nothing of it is installed again for another set."""
    stamp = tmp_path / "installed.json"
    stamp.write_text(json.dumps(before))
    was = before.get("isa", "native")
    with pytest.raises(SystemExit, match=f"installed for {was}: give {isa} a directory of its own"):
        install(tmp_path, isa)
    assert json.loads(stamp.read_text()) == before
    assert list(tmp_path.iterdir()) == [stamp]


def test_what_is_there_is_not_measured_as_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "installed.json").write_text(json.dumps({"isa": "avx2"}))
    monkeypatch.setattr("sys.argv", ["peers", "--dir", str(tmp_path), "run"])
    monkeypatch.setattr(command, "run_stage", lambda *args, **kwargs: pytest.fail("it was measured"))
    with pytest.raises(SystemExit, match="installed for avx2: give native a directory of its own"):
        command.main()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is x86-64's")
def test_the_yardstick_is_held_too(tmp_path: Path):
    """AVX2 has no dot products of bytes to tell a rate of."""
    program = build_peak(tmp_path, "avx2")
    if program is None:
        pytest.skip("no C compiler")
    assert "avx2" not in Path("/proc/cpuinfo").read_text() or set(peaks(program, 1)) == {"float32"}
