"""NEON on other machines: cross-compiled, run under qemu, every row compared with its scalar row."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from refgpt.kernels import list_kernels
from tests.helpers.work import HANGS

SCRIPT = Path(__file__).parents[2] / "csrc" / "testing" / "run_driver.sh"
LACKING = [tool for tool in ("sh", "aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(tool) is None]


@pytest.mark.skipif(bool(LACKING), reason=f"NEON not cross-tested: no {' and no '.join(LACKING)}")
def test_every_neon_row_has_the_bits_of_its_scalar_row():
    run = subprocess.run(["sh", str(SCRIPT), "neon"], capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 0, run.stdout + run.stderr
    compared = re.findall(r"^(\w+)/(neon\w*): \d+ shapes, every bit as the scalar row$", run.stdout, re.MULTILINE)
    rows = [(kernel.op, kernel.isa) for kernel in list_kernels() if kernel.isa.startswith("neon")]
    assert sorted(compared) == sorted(rows)
