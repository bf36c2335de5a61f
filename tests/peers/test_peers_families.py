"""Checkpoints of the families beside GPT-J, and the files that are made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import refgpt
from benchmarks.peers import families
from benchmarks.peers.__main__ import LAYERS
from benchmarks.peers.checkpoint import pieces
from benchmarks.peers.engines import n_embedding
from benchmarks.peers.families import FAMILIES
from benchmarks.peers.lineup import CHECKPOINT, TWIN, forms_of, groups, suffix
from benchmarks.peers.models import make_gguf, makers
from benchmarks.peers.report import widths
from refgpt.numbers.leaves import widen
from refgpt.spec import gpt2, gpt_neox, leaf_shapes
from tests.helpers.families import COMMON

SHAPES = {
    "gpt2": gpt2.Config(**COMMON | {"n_vocab": 300}),
    "gpt-neox": gpt_neox.Config(**COMMON | {"n_vocab": 300}, d_rotary=2, activation="gelu"),
}


@pytest.fixture(scope="module", params=SHAPES)
def written(request, tmp_path_factory):
    """A family and the directory of its models, of which the checkpoint is made."""
    models = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        family = replace(
            FAMILIES[request.param], config=lambda n_layer: replace(SHAPES[request.param], n_layer=n_layer)
        )
        patch.setitem(families.FAMILIES, request.param, family)
        makers(2, request.param)[CHECKPOINT](models, models / CHECKPOINT)
    return request.param, models


def test_a_checkpoint_of_each_family_is_what_was_drawn(written):
    family, models = written
    model = refgpt.load(models / CHECKPOINT)
    assert replace(model.config, bos_id=None, eos_id=None) == SHAPES[family]
    leaves = dict(refgpt.load(models / CHECKPOINT, backend="numpy").params().items())
    for name, shape in leaf_shapes(SHAPES[family]).items():
        drawn = np.concatenate(list(pieces(name, shape, 0))).reshape(shape)
        assert (widen(leaves[name], np.float32) == drawn).all(), name
        assert abs(drawn.mean() - name.rpartition(".")[2].startswith("ln") * name.endswith("_w")) < 0.03, name


def test_its_file_for_llama_cpp_is_the_same_model_and_has_a_token_for_each_id(written):
    _, models = written
    make_gguf(models, models / TWIN)
    assert [path.name for path in models.iterdir() if path.suffix] == [TWIN]
    one, other = refgpt.load(models / CHECKPOINT), refgpt.load(models / TWIN)
    ids = list(range(0, 300, 7))
    assert (one.logits(ids) == other.logits(ids)).all()
    assert other.tokenizer.n_vocab == 300 and other.tokenizer.exists.all()
    assert other.tokenizer.encode("ab c") == [256, 32, 99]


def test_a_head_that_is_the_embedding_is_read(written):
    family, models = written
    assert n_embedding(models) == (0 if family == "gpt2" else 300 * 32)


def test_the_shapes_are_those_of_known_models():
    assert FAMILIES["gpt2"].config(12).n_params == 124_439_808
    pythia = FAMILIES["gpt-neox"]
    assert pythia.config(pythia.n_layer).n_params == 6_857_302_016
    assert set(LAYERS) == set(FAMILIES)
    assert widths({"family": "gpt2"}) == (768, 3072, 50257)
    assert widths({}) == (4096, 16384, 50400)


def test_ggml_of_2023_is_left_to_gptj():
    for family in LAYERS:
        adapters = {engine.adapter for group in groups(2, family) for engine in group.engines}
        assert ("ctransformers" in adapters) is (family == "gptj")
        assert ("ggml-q4_0.bin" in forms_of(groups(2, family))) is (family == "gptj")
        assert suffix(family) == ("" if family == "gptj" else f"-{family}")
