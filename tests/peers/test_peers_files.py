"""The model in the forms that we write: checkpoint, twin, legacy file."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import refgpt
from benchmarks.peers import checkpoint, ggml_file, twin
from benchmarks.peers.checkpoint import gptj_config, stored_name, write_checkpoint
from refgpt import ModelConfig
from refgpt.checkpoints import open_checkpoint
from refgpt.numbers.leaves import widen
from refgpt.spec.gptj import leaf_shapes
from refgpt.spec.ops import layer_norm, softmax
from refgpt.spec.positions import rotate_pairs
from tests.helpers.tiny import random_params, tiny_config

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config(d_ff=96, bos_id=60, eos_id=60)


# ---- checkpoint ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gptj")
    write_checkpoint(directory, CONFIG, seed=3, quiet=True)
    return directory


def test_the_checkpoint_loads_and_is_what_was_drawn(written: Path):
    model = refgpt.load(written)
    assert model.config == CONFIG
    leaves = dict(refgpt.load(written, backend="numpy").params().items())
    for name, shape in leaf_shapes(CONFIG).items():
        assert leaves[name].dtype == np.float16
        drawn = np.concatenate(list(checkpoint.pieces(name, shape, 3))).reshape(shape)
        assert (leaves[name] == drawn).all(), name
    assert np.isfinite(model.logits([1, 2, 3])).all()


def test_the_safetensors_library_reads_it_too(written: Path):
    tensors = safetensors.numpy.load_file(written / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        stored_name(leaf): shape for leaf, shape in leaf_shapes(CONFIG).items()
    }
    assert {"transformer.h.1.attn.q_proj.weight", "transformer.wte.weight", "lm_head.bias"} <= tensors.keys()


def test_numbers_do_not_depend_on_the_pieces(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "PIECE", 37)
    write_checkpoint(tmp_path, CONFIG, seed=3, quiet=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (written / "model.safetensors").read_bytes()


def test_weights_have_sane_magnitudes_and_differ():
    config = tiny_config(n_layer=1, d_model=256, n_head=4, d_ff=1024)
    leaves = {
        name: np.concatenate(list(checkpoint.pieces(name, shape, 0))).astype(np.float64)
        for name, shape in leaf_shapes(config).items()
    }
    for name, leaf in leaves.items():
        assert 0.015 < leaf.std() < 0.025, name
        assert abs(leaf.mean() - name.endswith("ln_w")) < 0.005, name
    assert (leaves["blocks.0.wq"] != leaves["blocks.0.wk"]).mean() > 0.9


def test_the_full_width_is_gptjs():
    assert gptj_config(28) == ModelConfig()
    assert json.dumps(checkpoint.config_json(gptj_config(4))).count('"n_layer": 4') == 1


def test_openvino_sends_no_reports_of_its_use():
    """Its library for that is kept from being imported, before anything imports OpenVINO."""
    script = (
        "import sys, benchmarks.peers.openvino_model; raise SystemExit(sys.modules['openvino_telemetry'] is not None)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
    adapter = (ROOT / "benchmarks/peers/engines/openvino.py").read_text(encoding="utf-8")
    assert adapter.index("from benchmarks.peers.openvino_model") < adapter.index("\nimport openvino")


# ---- twin ------------------------------------------------------------------------------------------------------------


def rotate_halves(x: np.ndarray, positions: np.ndarray, d_rotary: int) -> np.ndarray:
    """GPT-NeoX's rotary embedding: dimension i turns with i + d_rotary / 2. x [t, h, d]"""
    half = d_rotary // 2
    angles = positions[:, None] * 10000.0 ** (-2 * np.arange(half) / d_rotary)  # [t, half]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:d_rotary]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., d_rotary:]], axis=-1)


def neox_block(x: np.ndarray, tensors: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """One block of GPT-NeoX with parallel residual, as its paper has it, in float64. x [t, c]"""
    t, c = x.shape
    p = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    h = layer_norm(x, p["attn_norm.weight"], p["attn_norm.bias"], config.ln_eps)
    qkv = h @ p["attn_qkv.weight"].T + p["attn_qkv.bias"]
    q, k, v = (part.reshape(t, config.n_head, config.d_head) for part in np.split(qkv, 3, axis=1))
    q, k = (rotate_halves(part, np.arange(t), config.d_rotary) for part in (q, k))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(config.d_head)
    pattern = softmax(np.where(np.tri(t, dtype=bool), scores, -np.inf))
    z = np.einsum("hts,shd->thd", pattern, v).reshape(t, c)
    attended = z @ p["attn_output.weight"].T + p["attn_output.bias"]
    m = layer_norm(x, p["ffn_norm.weight"], p["ffn_norm.bias"], config.ln_eps) @ p["ffn_up.weight"].T + p["ffn_up.bias"]
    m = 0.5 * m * (1 + np.tanh(np.sqrt(2 / np.pi) * (m + 0.044715 * m**3)))
    return x + attended + m @ p["ffn_down.weight"].T + p["ffn_down.bias"]


def test_the_twin_computes_what_gptj_does():
    """Both are float64 here, so that all that is left is rounding in the last digits."""
    from refgpt.spec.gptj import block as gptj_block
    from refgpt.spec.masks import causal_mask

    params = random_params(CONFIG, seed=2)
    x = np.random.default_rng(0).standard_normal((7, CONFIG.d_model))
    wide = params.map(lambda _, leaf: leaf.astype(np.float64)).blocks[1]
    want = gptj_block(x, wide, CONFIG, causal_mask(7), np.arange(7))
    got = neox_block(x, twin.block_tensors(params.blocks[1], CONFIG), CONFIG)
    assert np.abs(got - want).max() < 1e-12


def test_rows_move_within_their_heads_only():
    config = tiny_config(d_rotary=6)  # 4 heads of 8
    rows = np.arange(32)[:, None]
    assert twin.half_split(rows, config)[:8, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 7]
    assert twin.half_split(rows, config)[24:, 0].tolist() == [24, 26, 28, 25, 27, 29, 30, 31]
    assert rotate_pairs(np.ones((1, 4, 8)), np.arange(1), 6).shape == (1, 4, 8)


# ---- legacy file -----------------------------------------------------------------------------------------------------


def weights_of_blocks(raw: bytes, shape: tuple[int, int]) -> np.ndarray:
    """q4_0 read by its definition, one weight at a time."""
    found = []
    for at in range(0, len(raw), 18):
        (d,) = struct.unpack_from("<e", raw, at)
        halves = [raw[at + 2 + i] for i in range(16)]
        found += [d * ((byte & 15) - 8) for byte in halves] + [d * ((byte >> 4) - 8) for byte in halves]
    return np.array(found).reshape(shape)


def test_four_bit_blocks_are_near_the_weights():
    w = np.random.default_rng(1).standard_normal((6, 96)).astype(np.float16)
    w[2, :32] = 0
    got = weights_of_blocks(ggml_file.quantise_q4_0(w), (6, 96))
    blocks, found = w.astype(np.float64).reshape(-1, 32), got.reshape(-1, 32)
    step = np.abs(blocks).max(1, keepdims=True) / 8
    error = np.abs(found - blocks)
    # Half a step, a whole one at the end of 16 codes for 17 values, and what d loses as a float16.
    assert (error <= step * (1 + 2**-7)).all()
    assert (error <= step * (0.5 + 2**-7)).mean() > 0.95
    assert (found[6] == 0).all()
    at = np.abs(blocks).argmax(1)[:, None]
    assert np.allclose(np.take_along_axis(found, at, 1), np.take_along_axis(blocks, at, 1), rtol=2**-10)


def test_the_legacy_file_is_read_as_the_same_model(written: Path, tmp_path: Path):
    path = tmp_path / "model.bin"
    ggml_file.write_ggml(written, path)
    assert struct.unpack_from("<I8i", path.read_bytes()) == (0x67676D6C, 61, 64, 32, 4, 2, 4, 2002, 61)
    found, whole = open_checkpoint(path), open_checkpoint(written)
    assert found.config == replace(whole.config, bos_id=found.config.bos_id, eos_id=found.config.eos_id)
    want = dict(whole.params.items())
    for name, leaf in found.params.items():
        error = np.abs(widen(leaf, np.float64) - want[name].astype(np.float64))
        step = np.abs(want[name].astype(np.float64)).max() / 8
        assert (error <= 1.01 * step if leaf.ndim == 2 else error == 0).all(), name
