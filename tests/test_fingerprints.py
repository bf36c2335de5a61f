"""The fingerprint of weights: equal for equal weights however they came, and another for any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refgpt.kernels import digests
from refgpt.numbers import checksums
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.fingerprints import fingerprint
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_kernel_and_numpy_agree(dtype):
    params = random_params(CONFIG, 1, dtype)
    assert fingerprint(params, digests) == fingerprint(params, checksums.digests)


def test_any_other_number_shape_or_name_gives_another():
    params = random_params(CONFIG, 1)
    found = {fingerprint(params, digests)}
    for name, leaf in params.items():
        changed = np.array(leaf)
        changed.reshape(-1)[-1] = np.nextafter(changed.reshape(-1)[-1], np.float32(9))
        found.add(fingerprint(params.map(lambda n, x, name=name, new=changed: new if n == name else x), digests))
    found.add(fingerprint(replace(params, wte=params.wte.reshape(-1, 2)), digests))
    found.add(fingerprint(replace(params, wte=params.w_head, w_head=params.wte), digests))
    assert len(found) == 3 + len(list(params.items()))


def test_an_adapter_counts():
    params = random_params(CONFIG, 1)
    wq = params.blocks[0].wq
    a, b = np.ones((2, wq.shape[1]), np.float32), np.ones((wq.shape[0], 2), np.float32)
    found = set()
    for leaf in (wq, Adapted(wq, a, b, 1.0), Adapted(wq, a, b, 2.0), Adapted(wq, a, 2 * b, 1.0)):
        block = replace(params.blocks[0], wq=leaf)
        found.add(fingerprint(replace(params, blocks=(block, *params.blocks[1:])), digests))
    assert len(found) == 4


def test_the_identity_is_that_of_what_is_computed():
    same = [Runtime(random_params(CONFIG, 1), CONFIG, threads=n).identity() for n in (1, 2)]
    assert same[0] == same[1]
    others = [
        Runtime(random_params(CONFIG, 2), CONFIG),
        Runtime(random_params(CONFIG, 1), CONFIG, kv_dtype="f16"),
        Runtime(random_params(CONFIG, 1), CONFIG, dtype="q8"),
        Runtime(random_params(CONFIG, 1), tiny_config(ln_eps=1e-3)),
        SpecEngine(random_params(CONFIG, 1), CONFIG),
    ]
    for other in others:
        assert other.identity() != same[0]
    changed = Runtime(random_params(CONFIG, 1), CONFIG)
    changed.identity()
    changed.adopt(random_params(CONFIG, 2))
    assert changed.identity()["weights"] != same[0]["weights"]
