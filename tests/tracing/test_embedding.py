"""Texts as vectors, through both engines and the command: the mean or other summary of recorded hidden states."""

from __future__ import annotations

import json

import numpy as np
import pytest

import refgpt
import refgpt.runtime.gptj
import refgpt.spec.gptj
from refgpt._common.errors import GenerationError
from refgpt.runtime import Runtime
from refgpt.spec import forward, tap_names
from refgpt.tracing import embedding, record
from tests.helpers.families import VARIANTS
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=0)
PARAMS = random_params(CONFIG, seed=6, dtype="f16")
TEXTS = ["The quick", "fox", "a dog is here"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tokenizer(write_model(tmp_path_factory.mktemp("models") / "tiny", CONFIG, PARAMS))


def states(ids, layer, prefix_len):
    """Hidden states of the float64 specification."""
    seen = {}
    forward(PARAMS, CONFIG, ids, prefix_len, tap=lambda name, x: seen.setdefault(name, x))
    return seen[["embed", "blocks.0.resid_post", "ln_final"][layer]]


@pytest.mark.parametrize("backend", ["c", "numpy"])
@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("layer", [0, 1, 2, -1, -3])
def test_vectors_are_pooled_hidden_states(path, backend, mask, layer):
    model = refgpt.load(path, backend=backend, mask=mask)
    ids = [model.tokenizer.encode(text) for text in TEXTS]
    pools = {"mean": lambda x: x.mean(0), "last": lambda x: x[-1], "first": lambda x: x[0], "max": lambda x: x.max(0)}
    for pooling, pool in pools.items():
        got = model.embed(TEXTS, layer=layer, pooling=pooling)
        assert got.shape == (3, CONFIG.d_model) and got.dtype == np.float32
        want = [pool(states(one, layer % 3, len(one) if mask == "prefix" else 0)) for one in ids]
        np.testing.assert_allclose(got, want, atol=2e-5)
        assert (got == model.embed(ids, layer=layer, pooling=pooling)).all()
        assert (model.embed(TEXTS[1], layer, pooling) == got[1:2]).all()


@pytest.mark.parametrize("backend, module", [("c", refgpt.runtime.gptj), ("numpy", refgpt.spec.gptj)])
def test_nothing_beyond_the_layer_is_computed(path, backend, module, monkeypatch):
    calls, block = [], module.block

    def counted(*arguments):
        calls.append(arguments)
        return block(*arguments)

    monkeypatch.setattr(module, "block", counted)
    refgpt.load(path, backend=backend).embed(["ab"], layer=1)
    assert len(calls) == 1


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("dtype", [None, "q8"])
def test_texts_that_share_a_pass_have_the_bits_that_they_have_alone(path, mask, dtype, monkeypatch):
    model = refgpt.load(path, mask=mask, dtype=dtype)
    texts = [[1 + (i * j) % 60 for j in range(1, 2 + i * 7 % 61)] for i in range(30)]
    alone = np.concatenate([model.embed([text]) for text in texts])
    rows = []
    forward = model.engine.family.forward

    def watched(params, config, batch, *arguments, **options):
        rows.append(len(batch.ids))
        return forward(params, config, batch, *arguments, **options)

    monkeypatch.setattr(model.engine.family, "forward", watched)
    for most in (512, 40, 1):
        rows.clear()
        monkeypatch.setattr(embedding, "ROWS", most)
        assert (model.embed(texts) == alone).all()
        assert sum(rows) == sum(map(len, texts)) and max(rows) <= max(most, 61)
        assert len(rows) == (30 if most == 1 else len(rows)) and (most < 512 or len(rows) < 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_family_gives_a_text_its_own_states(name):
    config = VARIANTS[name]
    engine = Runtime(random_params(config, 3), config, threads=2)
    texts = [[1, 2, 3], [4], list(range(5, 40))]
    for tap in (tap_names(config)[0], "blocks.0.resid_post", "ln_final"):
        together = engine.states(texts, [0, 0, 0], tap)
        for found, ids in zip(together, texts, strict=True):
            assert np.array_equal(found, record(engine, ids, 0, tap)[tap])


def test_no_texts_are_no_vectors(path):
    assert refgpt.load(path).embed([]).shape == (0, CONFIG.d_model)


@pytest.mark.parametrize(
    "texts, asked, said",
    [
        (["ab", "c" * 65], {}, r"^texts\[1\], ids: the prompt is longer than the model's context"),
        (["ab", [61]], {}, r"^texts\[1\], ids\[0\]: the id does not exist"),
        (["ab", 5], {}, r"^texts\[1\]: cannot be used; got int"),
        ([b"ab"], {}, r"^texts\[0\]: cannot be used; got bytes"),
        (5, {}, "^texts: cannot be used"),
        (["a"], {"layer": 3}, "^layer: cannot be used; got 3; wanted a whole number from -3 to 2"),
        (["a"], {"pooling": "median"}, "^pooling: cannot be used; got 'median'"),
    ],
)
def test_what_cannot_be_embedded_is_named(path, texts, asked, said):
    with pytest.raises(GenerationError, match=said):
        refgpt.load(path).embed(texts, **asked)


def test_the_command_writes_a_vector_a_line(path, run, tmp_path):
    model = refgpt.load(path)
    got = run("embed", "-m", path, "The quick", "--layer", 1, "--pooling", "last")
    assert json.loads(got.out) == {"text": "The quick", "embedding": model.embed("The quick", 1, "last")[0].tolist()}
    (tmp_path / "lines.txt").write_text("\n".join([TEXTS[0], "", *TEXTS[1:]]) + "\n")
    out = tmp_path / "out.jsonl"
    assert run("embed", "-m", path, "-f", tmp_path / "lines.txt", "--each-line", "-o", out).code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert (np.array([line["embedding"] for line in lines], np.float32) == model.embed(TEXTS)).all()
    refused = run("embed", "-m", path, "a" * 65)
    assert refused.code == 1 and "longer than the model's context" in refused.err
