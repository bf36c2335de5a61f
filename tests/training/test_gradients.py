"""The gradients of batches: through both backends, against the specification."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest

import refgpt
from refgpt import kernels, training
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.checkpoints.families.gptj import HUGGING_FACE
from refgpt.runtime import gradients as in_kernels
from refgpt.spec import gradients
from refgpt.tracing import memory
from tests.helpers.buffers import assert_same_bits
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params
from tests.helpers.training_models import BACKENDS, CONFIG, PARAMS, batch_of, model_in

# float32 against float64, end to end: a wrong row, mask or factor shows in the first digits.
CLOSE = 1e-4


def oracle(params, batch):
    """Mean over all targets, of texts without their padding, in float64."""
    texts = [
        (batch.ids[i, :n], batch.labels[i, :n], int(batch.prefix_lens[i])) for i, n in enumerate(batch.lens.tolist())
    ]
    n_targets = sum(int((labels[1:] != -100).sum()) for _, labels, _ in texts)
    parts = [gradients.gradients(params, CONFIG, ids, labels, p, n_targets) for ids, labels, p in texts]
    return sum(loss for loss, _ in parts), {
        HUGGING_FACE.names(name): sum(found[name] for _, found in parts) for name, _ in params.items()
    }


@pytest.mark.parametrize("prefix_len", [0, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_has_the_specs_gradients(tmp_path, backend, prefix_len):
    batch = batch_of(4, prefix_len=prefix_len)
    loss, found = training.gradients(model_in(tmp_path, backend=backend), batch)
    want_loss, want = oracle(PARAMS, batch)
    assert abs(loss - want_loss) <= CLOSE * want_loss
    assert list(found) == list(want)
    for name, gradient in found.items():
        assert gradient.dtype == np.float32 and gradient.shape == want[name].shape
        assert np.abs(gradient - want[name]).max() <= CLOSE * np.abs(want[name]).max(), name


def test_float64_is_the_oracle_itself(tmp_path):
    batch = batch_of(3)
    loss, found = training.gradients(model_in(tmp_path, backend="numpy", dtype="f64"), batch)
    want_loss, want = oracle(PARAMS, batch)
    assert abs(loss - want_loss) <= 1e-14 * loss
    assert all(np.abs(found[name] - want[name]).max() <= 1e-15 for name in want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantised_weights_count_as_what_they_decode_to(tmp_path, backend):
    model = model_in(tmp_path, backend=backend, dtype="q8")
    batch = batch_of(2)
    _, found = training.gradients(model, batch)
    _, want = oracle(model.params(), batch)
    # In C rows are rounded to 8 bits on their way to such weights: a hundredth, and no more digits than that.
    assert all(np.abs(found[n] - want[n]).max() <= 0.1 * np.abs(want[n]).max() for n in want)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(None, None), ("f16", None), ("q8", None), ("q4", None), ("q3", None), ("f32", "q8")]
)
@pytest.mark.parametrize("adapter", [False, True])
def test_blocks_computed_again_have_the_same_bits(tmp_path, dtype, kv_dtype, adapter, monkeypatch):
    model = model_in(tmp_path, backend="c", dtype=dtype, kv_dtype=kv_dtype)
    if adapter:
        training.new_adapter(model, rank=2, targets="q,v")
    batch = batch_of(3, prefix_len=3)
    loss, found = training.gradients(model, batch)
    blocks = []
    layer = model.engine.family.layer
    monkeypatch.setattr(model.engine.family, "layer", lambda i, *rest: (blocks.append(i), layer(i, *rest))[1])
    again, recomputed = training.gradients(model, batch, recompute=True)
    assert again == loss and all(found[name].tobytes() == recomputed[name].tobytes() for name in found)
    assert blocks == [0, 1, 1, 0]  # of three texts that share a pass


def test_a_text_is_learnt_in_memory_linear_in_it(tmp_path):
    """Never as much as a text's logits [t, v] would take, nor its pattern [h, t, t]."""
    config = dataclasses.replace(CONFIG, n_vocab=6000, n_ctx=1200)
    path = write_model(tmp_path / "model", config, random_params(config, 3))
    model, ids = refgpt.load(path), np.random.RandomState(0).randint(0, 6000, (1, 1200))
    training.new_adapter(model, rank=2)
    tracemalloc.start()
    training.gradients(model, training.Batch(ids, ids), recompute=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < min(4 * 1200 * 6000, 4 * CONFIG.n_head * 1200 * 1200)


@pytest.mark.parametrize("dtype", [None, "q8"])
def test_a_model_may_be_wider_than_its_vocabulary(tmp_path, dtype):
    """As those that read bytes are."""
    config = dataclasses.replace(CONFIG, n_vocab=11)
    params, ids = random_params(config, 3), np.random.RandomState(1).randint(0, 11, (2, 40))
    path, batch = write_model(tmp_path / "model", config, params), training.Batch(ids, ids)
    loss, found = training.gradients(refgpt.load(path, dtype=dtype), batch)
    want_loss, want = training.gradients(refgpt.load(path, backend="numpy", dtype=dtype or "f64"), batch)
    close = CLOSE if dtype is None else 0.1
    assert abs(loss - want_loss) <= close * want_loss
    assert all(np.abs(found[name] - want[name]).max() <= close * np.abs(want[name]).max() for name in want)


def test_what_nobody_wants_is_not_computed(tmp_path, monkeypatch):
    """Below the lowest adapter nothing is, and in its block no more than its own gradients need."""
    model = model_in(tmp_path, backend="c")
    training.new_adapter(model, rank=2, targets="q,v")
    turned, backward = [], kernels.linear_backward

    def watched(dy, w, *rest, **how):
        turned.append(w.shape)
        return backward(dy, w, *rest, **how)

    monkeypatch.setattr(kernels, "linear_backward", watched)
    training.gradients(model, batch_of(1))
    c, f, v = CONFIG.d_model, CONFIG.d_ff, CONFIG.n_vocab
    assert turned == [(v, c), (c, f), (f, c), (c, c), (c, c), (c, c), (c, c), (c, c)]  # head; all of block 1; wo


@pytest.mark.parametrize("how", ["full", "recompute", "adapter"])
def test_texts_that_share_a_pass_have_the_bits_of_texts_alone(tmp_path, monkeypatch, how):
    """Of different lengths: more rows than the head's sums, and fewer than a panel."""
    stream, lens = np.random.RandomState(0), np.array([31, 2, 17, 8, 32, 9])
    ids = stream.randint(0, CONFIG.n_vocab, (len(lens), 32))
    batch = training.Batch(ids, np.where(stream.random_sample(ids.shape) < 0.3, -100, ids), lens // 2, lens)
    model = model_in(tmp_path, backend="c", threads=2)
    if how == "adapter":
        training.new_adapter(model, rank=2, targets="all")
    monkeypatch.setattr(in_kernels.loss, "HEAD_ROWS", 12)
    monkeypatch.setattr(in_kernels.loss, "MOST_LOGITS", 30 * CONFIG.n_vocab)
    results = []
    for most in (1, 50, 1000):
        monkeypatch.setattr(in_kernels.activations, "MOST_ROWS", most)
        results.append(training.gradients(model, batch, recompute=how == "recompute"))
    (want_loss, want), *others = results
    for found_loss, found in others:
        assert found_loss == want_loss
        for name, gradient in found.items():
            assert_same_bits(gradient, want[name])


def test_a_text_that_does_not_fit_into_memory_is_refused_first(tmp_path, monkeypatch):
    model = model_in(tmp_path, backend="c")
    monkeypatch.setattr(memory, "available_memory", lambda: 20_000)
    with pytest.raises(RefgptError, match=r"more memory than there is.*recompute=True"):
        training.gradients(model, batch_of(1))


def test_padding_is_never_looked_at(tmp_path):
    model, ids = model_in(tmp_path, backend="numpy"), np.array([[3, 9, 4, 60]])
    loss, found = training.gradients(model, training.Batch(ids[:, :3], ids[:, :3]))
    padded = training.Batch([[3, 9, 4, 999]], [[3, 9, 4, 999]], lens=[3])
    padded_loss, padded_found = training.gradients(model, padded)
    assert loss == padded_loss and all((found[name] == padded_found[name]).all() for name in found)


def test_a_tied_head_is_trained_as_the_embeddings_that_it_is(tmp_path):
    import json

    from safetensors.numpy import load_file, save_file

    model_in(tmp_path)
    path = tmp_path / "model"
    tensors = load_file(path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, path / "model.safetensors")
    told = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(told))
    batch, tied = batch_of(2), PARAMS.map(lambda name, leaf: PARAMS.wte if name == "w_head" else leaf)
    _, want = oracle(tied, batch)
    both = want["transformer.wte.weight"] + want.pop("lm_head.weight")
    import refgpt

    model = refgpt.load(path, backend="numpy")
    _, found = training.gradients(model, batch)
    assert list(found) == list(want)
    assert np.abs(found["transformer.wte.weight"] - both).max() <= CLOSE * np.abs(both).max()
    trainer = training.Trainer(model)
    trainer.step([batch], 1e-2)
    assert model.params().wte is model.params().w_head


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (([3, 4], [3, 4]), r"ids: .*wanted whole numbers \[b, t\]"),
        (([[3, 4]], [[3]]), "labels: there must be one for each id"),
        (([[3, 4], [5]], [[3, 4], [5]]), "ids"),
        (([[3, 4.5]], [[3, 4]]), "ids"),
        (([[]], [[]]), "ids"),
        (([[3, 4]], [[3, 4]], [3]), r"prefix_lens\[0\].*got 3"),
        (([[3, 4]], [[3, 4]], None, [0]), r"lens\[0\].*got 0"),
        (([[3, 4]], [[3, 4]], None, [1, 2]), "lens: there must be one for each text"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(arguments, fault):
    with pytest.raises(GenerationError, match=fault):
        training.Batch(*arguments)


def test_what_the_model_cannot_take_is_named(tmp_path):
    model = model_in(tmp_path, backend="numpy")
    with pytest.raises(GenerationError, match=r"text 1 of the batch, ids\[1\].*got 61"):
        training.gradients(model, training.Batch([[3, 4], [3, 61]], [[3, 4], [3, 4]]))
    with pytest.raises(GenerationError, match=r"text 0 of the batch, labels\[1\].*got -7"):
        training.gradients(model, training.Batch([[3, 4]], [[3, -7]]))
    with pytest.raises(GenerationError, match="no target"):
        training.gradients(model, training.Batch([[3, 4]], [[3, -100]]))
    with pytest.raises(RefgptError, match=r"model: .*wanted a Model"):
        training.gradients("gpt-j", batch_of(1))


def test_a_family_without_gradients_is_refused_by_name(tmp_path, monkeypatch):
    model = model_in(tmp_path, backend="numpy")
    monkeypatch.delitem(gradients.FAMILIES, "gptj")
    for call in (lambda: training.gradients(model, batch_of(1)), lambda: training.Trainer(model)):
        with pytest.raises(RefgptError, match=r"no gradients.*got gptj"):
            call()
