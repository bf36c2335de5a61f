"""The models that are looked into: a small one in each engine, and the bounds that hold between the two."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import forward
from refgpt.spec.bounds import tap_bound
from refgpt.tracing import record
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=9)
IDS = [7, 3, 60, 0, 3, 12, 33]
OTHER = [1, 2, 3, 4, 5, 6, 33]
ORACLE = SpecEngine(PARAMS, CONFIG, np.float64)
RUNTIME = Runtime(PARAMS, CONFIG, threads=1)
ENGINES = {"spec": ORACLE, "runtime": RUNTIME}
# End to end, against a wrong mask, row, layer or patch, which show in the first digits; rounding is for ``verify``.
CLOSE = 1e-4


class Spelling:
    """A tokenizer of letters: "a" is 0."""

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids)


def as_model(engine, tokenizer=None):
    """An engine as a loaded model has it."""
    return SimpleNamespace(engine=engine, tokenizer=tokenizer)


def assert_within_bounds(engine, params, ids, prefix_len=0, patch=None, patched=()):
    """Each activation of a float32 engine, patched ones apart, is what the spec makes of those it came from."""
    trace = record(engine, ids, prefix_len, patch=patch)
    judged = []

    def judge_and_force(name, want):
        if name not in patched:
            of = (engine.kv_dtype, engine.sum_chunk, engine.compute)
            bound = tap_bound(name, trace, params, engine.config, prefix_len, *of)
            assert (np.abs(trace[name] - want) <= bound).all(), name
            judged.append(name)
        return trace[name]

    forward(params, engine.config, ids, prefix_len, np.float64, judge_and_force)
    assert len(judged) == len(trace) - len(patched)
