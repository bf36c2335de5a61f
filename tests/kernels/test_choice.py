"""Which row runs, and what importing the kernels does to a process. Each test looks at a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import refgpt
from refgpt._common.errors import KernelError
from refgpt.kernels import active, force_isa, list_kernels
from refgpt.kernels.registry import PREFERENCE
from tests.helpers.buffers import RUNNABLE
from tests.helpers.work import HANGS

OBSTACLES = {kernel.isa: kernel.obstacle for kernel in list_kernels()}
HERE = [isa for isa in PREFERENCE if OBSTACLES[isa] is None]


def run_python(code: str, **environment: str) -> str:
    """What a fresh Python prints. It and its children are ended if they hang."""
    inherited = {name: value for name, value in os.environ.items() if name != "REFGPT_ISA"}
    path = os.pathsep.join([str(Path(refgpt.__file__).parents[1]), inherited.get("PYTHONPATH", "")])
    environment = inherited | {"PYTHONPATH": path} | environment
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=HANGS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("the process hangs: " + process.communicate()[0]) from None


SHOW_ACTIVE = """
from refgpt.errors import KernelError
from refgpt.kernels import list_kernels
try:
    print(*sorted({k.isa for k in list_kernels() if k.active}), len([k for k in list_kernels() if k.active]))
except KernelError as error:
    print("KernelError:", error)
"""


@pytest.mark.parametrize("isa", HERE)
def test_the_instruction_set_in_the_environment_is_the_one_that_runs(isa):
    assert run_python(SHOW_ACTIVE, REFGPT_ISA=isa) == f"{isa} {len({k.op for k in list_kernels()})}\n"


@pytest.mark.parametrize("isa", ["", "unset"])
def test_the_first_that_can_run_is_the_default(isa):
    environment = {} if isa else {"REFGPT_ISA": ""}
    assert run_python(SHOW_ACTIVE, **environment).split()[:1] == HERE[:1]


@pytest.mark.parametrize("isa", ["sse9", "AVX2", " avx2", *(isa for isa in PREFERENCE if OBSTACLES[isa])])
def test_an_instruction_set_that_cannot_run_is_an_error_that_says_why(isa):
    printed = run_python(SHOW_ACTIVE, REFGPT_ISA=isa)
    assert printed.startswith("KernelError:")
    assert isa in printed
    assert (OBSTACLES.get(isa) or "names no instruction set") in printed


@pytest.mark.parametrize("isa", HERE)
def test_force_isa_holds_within_its_block(isa, monkeypatch):
    monkeypatch.delenv("REFGPT_ISA", raising=False)
    before = active("gelu")
    with force_isa(isa):
        assert {kernel.isa for kernel in list_kernels() if kernel.active} == {isa}
        with force_isa("scalar"):
            assert active("softmax").isa == "scalar"
        assert active("softmax").isa == isa
        others = [kernel for kernel in list_kernels() if kernel.isa != isa]
        assert all(kernel.why_not == (kernel.obstacle or "another is forced") for kernel in others)
    assert active("gelu") is before
    with pytest.raises(KernelError), force_isa("sse9"):
        pass
    assert active("gelu") is before


def test_a_row_that_cannot_run_is_refused():
    import numpy as np

    from refgpt.kernels import gelu

    unfit = [kernel for kernel in list_kernels() if kernel.op == "gelu" and kernel not in RUNNABLE]
    x = np.ones((1, 1), np.float32)
    for kernel in unfit:
        with pytest.raises(KernelError, match="cannot run here"):
            gelu(x, kernel=kernel)
    assert unfit or len(HERE) == len(PREFERENCE)


FORK = """
import os, sys
import numpy as np
from refgpt.kernels import linear, pack
rng = np.random.default_rng(0)
x, w = rng.standard_normal((40, 700), np.float32), pack(rng.standard_normal((1300, 700), np.float32))
want = linear(x, w, threads=4).tobytes()
child = os.fork()
if child == 0:
    os._exit(0 if linear(x, w, threads=4).tobytes() == want else 1)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("parent", int(linear(x, w, threads=4).tobytes() != want))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_after_threads_ran_computes_the_same_and_does_not_hang():
    assert run_python(FORK) == "child 0\nparent 0\n"


SUBNORMALS = """
import numpy as np
from refgpt.kernels import linear, pack
linear(np.ones((40, 700), np.float32), pack(np.ones((1300, 700), np.float32)), threads=2)
print(np.float32(1e-40) * np.float32(1) != 0, (np.full(100, 1e-40, np.float32) * np.float32(1) != 0).all(),
      np.float64(1e-310) * np.float64(1) != 0)
"""


def test_subnormal_numbers_survive_the_kernels():
    assert run_python(SUBNORMALS) == "True True True\n"


STACK = """
import resource
most = resource.getrlimit(resource.RLIMIT_STACK)[1]
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20 if most < 0 else min(8 << 20, most), most))  # of this thread
from dataclasses import replace
import numpy as np
from refgpt.kernels import linear, list_kernels, pack
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.quantisation import quantise
x = np.ones((64, 700), np.float32)
w = {"linear_q8": quantise(np.ones((1300, 700), np.float32), "q8")}
w["linear_bf16_dots"] = replace(pack(np.full((1300, 700), 0x3F80, np.uint16).view(BFLOAT16)), compute="bf16")
rows = [row for row in list_kernels() if row.op in w and row.obstacle is None]
for row in rows:
    linear(x, w[row.op], threads=4, kernel=row)
print("done" if rows else "nothing")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take a thread's stack from the limit")
def test_workers_have_room_for_the_sums_of_kernels_where_the_system_grants_little():
    """musl grants 128 KiB, as this limit makes glibc do."""
    run = subprocess.run(
        ["sh", "-c", 'ulimit -S -s 128; exec "$0" -c "$1"', sys.executable, STACK], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
