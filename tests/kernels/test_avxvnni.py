"""AVX-VNNI's dot products where only AVX-512 has them: the same bodies, compiled in that encoding."""

import ctypes
import os
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from refgpt.kernels import Kernel, linear, list_kernels
from refgpt.kernels.native import ffi
from tests.helpers.buffers import SCALAR
from tests.helpers.oracles import hold_to_scalar, hold_to_spec, linear_quantised_case
from tests.helpers.quantised import quantised_panels
from tests.helpers.work import HANGS

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CC", "cc").split()[0])
OBSTACLES = {kernel.isa: kernel.obstacle for kernel in list_kernels()}
#: Nothing else differs from AVX2's rows.
BODIES = ("simd/avxvnni.h", "simd/common.h", "simd/tile.h", "ops/linear_quantised.h")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
    pytest.mark.skipif("lacks" in (OBSTACLES["avx512vnni"] or ""), reason="this CPU lacks AVX-512 VNNI"),
    pytest.mark.skipif(OBSTACLES["avxvnni"] is None, reason="its own rows run here, and are tested with the others"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, Kernel]:
    """linear_q8, linear_q4 and linear_q3 of AVX-VNNI."""
    folder = tmp_path_factory.mktemp("avxvnni")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        built = runpy.run_path(str(ROOT / "csrc" / "build.py"))
    source, library = folder / "rows.c", folder / "rows.so"
    source.write_text("".join(f'#include "{name}"\n' for name in BODIES))
    flags = [*built["FLAGS"], *built["EVEX_AVXVNNI"], "-O1", "-fvisibility=default", "-shared", "-fPIC", "-Wno-unused"]
    command = [str(COMPILER), *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 0, run.stderr
    loaded = ctypes.CDLL(str(library))

    def row(op: str) -> Kernel:
        address = ctypes.cast(loaded[f"refgpt_{op}_avxvnni"], ctypes.c_void_p).value
        return Kernel(op, "avxvnni", None, ffi.cast("refgpt_kernel", address))

    return {op: row(op) for op in ("linear_q8", "linear_q4", "linear_q3")}


@pytest.mark.parametrize("kind", ["q8", "q4", "q3"])
@pytest.mark.parametrize("n_rows", [1, 5, 6, 7, 13, 24, 25, 49, 100])
def test_the_dot_products_have_the_bits_of_the_scalar_row(rows, kind, n_rows):
    rng, kernel = np.random.default_rng(n_rows), rows[f"linear_{kind}"]
    for n_out, n_in in ((1, 70), (33, 320), (210, 600)):
        case = linear_quantised_case(kind, n_in, n_rows, "ordinary", rng, n_out)
        hold_to_spec(case, kernel)
        hold_to_scalar(case, kernel)


@pytest.mark.parametrize("n_rows", [1, 20])
def test_the_largest_integers_do_not_overflow(rows, n_rows):
    for kind, weights in {"q8": (-128, 127), "q4": (-8, 7), "q3": (-4, 3)}.items():
        for weight in weights:
            w = quantised_panels(kind, np.full((20, 96), weight), np.ones((20, 3), np.float16))
            x = np.full((n_rows, 96), -127, np.float32)
            assert (linear(x, w, kernel=rows[f"linear_{kind}"]) == linear(x, w, kernel=SCALAR[f"linear_{kind}"])).all()
