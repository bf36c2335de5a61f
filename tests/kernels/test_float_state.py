"""Rounding modes and flush-to-zero that another library has left behind change no bit of any result."""

import platform
import subprocess
import sys
import threading

import numpy as np
import pytest

from refgpt._common.float_state import default_float_state
from refgpt.generation.sampling import log_softmax
from refgpt.kernels import linear, pack
from refgpt.kernels.native import lib
from refgpt.kernels.selfcheck import PROMISED, digest
from refgpt.numbers.quantisation import quantise
from refgpt.runtime import Runtime
from refgpt.runtime.rotation import rotary_tables
from tests.helpers.buffers import RUNNABLE
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params, tiny_config

# As the registers MXCSR and FPCR hold them.
STATES = {
    "x86_64": {"upward": 0x5F80, "toward zero": 0x7F80, "flushing": 0x9FC0, "trapping": 0x1900},
    "aarch64": {"upward": 1 << 22, "toward zero": 3 << 22, "flushing": 1 << 24},
}.get(platform.machine().replace("arm64", "aarch64"), {})
under_other_states = pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))


class Left:
    """Within the block the thread has a state as another library may have left it."""

    def __init__(self, state: int) -> None:
        self._state = state

    def __enter__(self) -> None:
        self._before = lib.refgpt_default_float_state()
        lib.refgpt_set_float_state(self._state)

    def __exit__(self, *_: object) -> None:
        self.after = lib.refgpt_default_float_state()
        lib.refgpt_set_float_state(self._before)


def is_default() -> bool:
    """Whether this thread rounds to nearest and keeps subnormals."""
    one, little, least = np.float32([1]), np.float32([2.0**-30]), np.array([1], np.uint32).view(np.float32)
    kept = (least * np.float32(1)).view(np.uint32)[0] == 1
    return bool((one + little == 1).all() and (-one - little == -1).all() and (one - little == 1).all() and kept)


@under_other_states
def test_the_states_of_this_test_are_other_states(state):
    if state != STATES.get("trapping"):
        with Left(state):
            assert not is_default()
    assert is_default()


@under_other_states
@pytest.mark.parametrize("kernel", RUNNABLE, ids=str)
def test_a_kernel_has_its_bits_and_its_caller_has_its_state(kernel, state):
    with Left(state) as _, default_float_state():  # NumPy makes the inputs
        assert digest(kernel) == PROMISED[kernel.op]
    x, w = np.linspace(-1, 1, 75 * 40, dtype=np.float32).reshape(40, 75), pack(np.ones((50, 75), np.float32))
    want, left = linear(x, w, threads=3).tobytes(), Left(state)
    with left:
        got = linear(x, w, threads=3).tobytes()
    assert got == want
    assert left.after == state


PROGRAM = """
import hashlib, sys
import numpy as np
from refgpt.kernels import linear, pack
from refgpt.kernels.native import lib
x = np.linspace(-1, 1, 300 * 400, dtype=np.float32).reshape(300, 400)
w = pack(np.linspace(-3, 5, 400 * 800, dtype=np.float32).reshape(800, 400))
if len(sys.argv) > 1:
    lib.refgpt_set_float_state(int(sys.argv[1]))
got = [linear(x, w, threads=4).tobytes() for _ in range(10)]
lib.refgpt_default_float_state()
print(*{hashlib.sha256(g).hexdigest() for g in got})
"""


@under_other_states
def test_threads_that_were_made_under_another_state_have_the_default(state):
    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
        ).stdout

    assert run(str(state)) == run()


@under_other_states
def test_what_python_and_numpy_compute_is_the_same(state):
    config = tiny_config()
    params = random_params(config, 3, "f32")
    kin = {variant: random_params(variant, 3) for variant in VARIANTS.values()}
    rng = np.random.default_rng(0)
    w, logits = rng.standard_normal((33, 70)).astype(np.float32), rng.standard_normal(500).astype(np.float32)

    def everything() -> list[bytes]:
        tables = rotary_tables(16, 300)
        quantised = [quantise(w, kind).data for kind in ("q8", "q4", "q3")]
        runtimes = [
            Runtime(params, config, dtype=dtype, threads=2).logits([1, 2, 3]) for dtype in ("f16", "q8", "q4", "q3")
        ]
        runtimes += [Runtime(kin[c], c, threads=2).logits([1, 2, 3]) for c in VARIANTS.values()]
        return [a.tobytes() for a in (*tables, *quantised, *runtimes, log_softmax(logits))]

    want = everything()
    with Left(state):
        got = everything()
    assert got == want


@under_other_states
def test_the_state_comes_back_when_the_block_ends_in_an_error(state):
    @default_float_state()
    def fail() -> None:
        assert is_default()
        raise ValueError

    left = Left(state)
    with left, pytest.raises(ValueError):
        fail()
    assert left.after == state


def test_threads_have_states_of_their_own():
    seen = []
    with default_float_state():
        thread = threading.Thread(target=lambda: seen.append(is_default()))
        thread.start()
        thread.join()
    assert seen == [True]
