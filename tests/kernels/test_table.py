"""A kernel cannot exist untested: files, rows of the table, oracles and benchmarks are compared with one another."""

import re
import runpy
from itertools import groupby
from pathlib import Path

from refgpt.kernels import list_kernels
from refgpt.kernels.registry import PREFERENCE
from tests.helpers.buffers import SCALAR
from tests.helpers.oracles import ORACLES

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
OPS = {kernel.op for kernel in list_kernels()}

# Everything in csrc that is not the body of an op.
SKELETON = re.compile(
    r"""refgpt_kernels\.h | kernels\.(def|h) | (dispatch|cpu|float_state|indices|parallel)\.c | build\.py
        | (scalar|avx2|avxvnni|avx512|avx512vnni|avx512bf16|neon|neondot)\.c | simd/\w+\.h | testing/\w+\.(c|h|sh)""",
    re.VERBOSE,
)


def files() -> set[str]:
    found = (path.relative_to(CSRC) for path in CSRC.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.as_posix() for path in found}


def test_the_compiled_table_is_kernels_def():
    table = (CSRC / "kernels.def").read_text(encoding="utf-8")
    isas = re.findall(r"KERNEL\(op, (\w+)\)", table)
    rows = [(op, isa) for op in re.findall(r"^EVERY_ISA\((\w+)\)$", table, re.MULTILINE) for isa in isas]
    assert rows == [(kernel.op, kernel.isa) for kernel in list_kernels()]
    assert len(set(rows)) == len(rows)


def test_every_op_has_every_instruction_set():
    for op, rows in groupby(sorted(list_kernels(), key=str), key=lambda kernel: kernel.op):
        assert {kernel.isa for kernel in rows} == set(PREFERENCE), op


def test_every_op_has_an_oracle_and_every_oracle_an_op():
    assert set(ORACLES) == OPS


def test_every_op_can_be_compared_with_its_scalar_row():
    assert set(SCALAR) == OPS


def test_every_op_has_a_benchmark():
    cases = runpy.run_path(str(ROOT / "benchmarks" / "cases.py"))
    assert set(cases["CASES"]) == OPS
    assert all(cases["CASES"].values())


def test_every_file_is_part_of_the_skeleton_or_the_body_of_an_op():
    bodies = {name for name in files() if not SKELETON.fullmatch(name)}
    kernels = [op for name in bodies for op in re.findall(r"^KERNEL\((\w+)\)", (CSRC / name).read_text("utf-8"), re.M)]
    assert sorted(kernels) == sorted(OPS)
    for name in bodies:
        ops = re.findall(r"^KERNEL\((\w+)\)", (CSRC / name).read_text("utf-8"), re.M)
        assert ops, name
        (family,) = re.findall(r"^ops/(\w+?)(?:_quantised)?\.h$", name)
        assert all(re.fullmatch(rf"{family}(_[bfq]*\d+)?", op) for op in ops), name


def test_every_body_is_compiled_for_every_instruction_set():
    included = set(re.findall(r'#include "([\w/]+\.h)"', (CSRC / "kernels.h").read_text(encoding="utf-8")))
    assert {name for name in files() if not SKELETON.fullmatch(name)} <= included
    for isa in PREFERENCE:
        assert f'#include "simd/{isa}.h"' in (CSRC / f"{isa}.c").read_text(encoding="utf-8")
        assert '#include "kernels.h"' in (CSRC / f"{isa}.c").read_text(encoding="utf-8")
