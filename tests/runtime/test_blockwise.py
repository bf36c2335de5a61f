"""Texts that go through a model block by block: the bits of a whole pass."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt.runtime import Runtime, blockwise
from refgpt.runtime.blockwise import Blockwise
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params

N_TEXTS, LENGTH = 5, 11


class Trace(dict):
    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        self[name] = value
        return value


@pytest.mark.parametrize("rows", [1, 30, 1000])
@pytest.mark.parametrize("dtype", ["f32", "q4"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_bits_of_whole_passes(name, dtype, rows, monkeypatch):
    monkeypatch.setattr(blockwise, "ROWS", rows)
    config = VARIANTS[name]
    ids = np.random.default_rng(3).integers(0, config.n_vocab, (N_TEXTS, LENGTH))
    engine = Runtime(random_params(config, 11), config, dtype=dtype, threads=2, kv_dtype="f32")
    for prefix_len in (0, 4) if config.window is None else (0,):
        want = [Trace() for _ in ids]
        for text, trace in zip(ids, want, strict=True):
            engine.logits(text, prefix_len, trace)
        texts = Blockwise(config, ids, prefix_len, threads=1)
        texts.embed(engine.params)
        for i in range(config.n_layer):
            for tap, matrices in texts.inputs.items():
                got = np.concatenate(list(texts.activations(i, engine.params, tap)))
                trace = np.concatenate([one[f"blocks.{i}.{tap}"].reshape(LENGTH, -1) for one in want])
                assert got.tobytes() == trace.tobytes(), (i, tap)
                widths = {getattr(engine.params.blocks[i], matrix).shape[1] for matrix in matrices}
                assert widths == {got.shape[1]}
            texts.advance(i, engine.params)
            trace = np.concatenate([one[f"blocks.{i}.resid_post"] for one in want])
            assert texts.states.tobytes() == trace.tobytes(), i
        got = np.concatenate(list(texts.last_inputs(engine.params)))
        assert got.tobytes() == np.concatenate([one["ln_final"] for one in want]).tobytes()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_matrix_of_a_block_has_its_input(name):
    config = VARIANTS[name]
    block = random_params(config, 1).blocks[0]
    matrices = {field for field, leaf in vars(block).items() if leaf is not None and leaf.ndim == 2}
    inputs = Blockwise(config, np.zeros((1, 2), np.int64)).inputs
    assert sorted(matrices) == sorted(name for names in inputs.values() for name in names)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_product_of_an_input_and_its_matrix_is_what_the_block_computes(name):
    """An input named for the wrong matrix of the same width would be found here."""
    config = VARIANTS[name]
    engine = Runtime(random_params(config, 11), config, dtype="f32", threads=1)
    ids = np.arange(LENGTH)[None]
    texts, trace = Blockwise(config, ids), Trace()
    engine.logits(ids[0], 0, trace)
    outputs = {"wq": "q", "wk": "k", "wv": "v", "wo": "attn_out", "w_in": "mlp_pre", "w_out": "mlp_out"}
    for tap, matrices in texts.inputs.items():
        x = trace[f"blocks.1.{tap}"].reshape(LENGTH, -1).astype(np.float64)
        for matrix in matrices:
            block = engine.params.blocks[1]
            w, bias = getattr(block, matrix), getattr(block, matrix.replace("w", "b", 1), None)
            want = x @ w.rows(0, w.n_out).T + (0 if bias is None else bias)
            assert np.allclose(trace[f"blocks.1.{outputs[matrix]}"].reshape(LENGTH, -1), want, atol=1e-4), matrix
