"""Gradients of activations, through both engines."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import RefgptError
from refgpt.spec import Recorder, gradients, tap_names, tap_shapes
from refgpt.tracing import memory, record_gradients
from tests.helpers.model_files import write_model
from tests.helpers.tracing_models import CLOSE, CONFIG, ENGINES, IDS, PARAMS, Spelling, as_model


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


@pytest.mark.parametrize("labels", [None, [-100] * 4 + [9, -100, 33]])
def test_they_are_the_specs(engine, labels):
    recorder = Recorder()
    gradients.gradients(PARAMS, CONFIG, IDS, IDS if labels is None else labels, 3, tap=recorder)
    found = record_gradients(engine, IDS, 3, labels=labels)
    assert list(found) == tap_names(CONFIG)
    assert {name: x.shape for name, x in found.items()} == tap_shapes(CONFIG, len(IDS))
    for name, want in recorder.trace.items():
        assert np.abs(found[name] - want).max() <= CLOSE * np.abs(want).max(), name


def test_only_what_is_asked_for_is_kept(engine):
    whole = record_gradients(engine, IDS)
    found = record_gradients(engine, IDS, names="blocks.*.pattern", positions=[-1, 2])
    assert list(found) == ["blocks.0.pattern", "blocks.1.pattern"]
    for name, gradient in found.items():
        assert (gradient == whole[name][:, [-1, 2]]).all()


def test_a_text_can_be_given(engine):
    model = as_model(engine, Spelling())
    assert (record_gradients(model, "hello")["embed"] == record_gradients(engine, [7, 4, 11, 11, 14])["embed"]).all()


def test_what_takes_too_much_memory_is_refused_first(engine, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 20_000)
    with pytest.raises(RefgptError, match=r"more memory than there is.*shorter text"):
        record_gradients(engine, IDS, names="logits")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ids": [3]}, "no target"),
        ({"names": "blocks.9.q"}, "no such activation"),
        ({"positions": 7}, "positions"),
        ({"labels": [1, 2]}, "one for each id"),
    ],
)
def test_what_cannot_be_used_is_named(engine, changes, fault):
    with pytest.raises(RefgptError, match=fault):
        record_gradients(engine, **({"ids": IDS} | changes))


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_model_gives_them_under_the_names_of_its_activations(tmp_path, backend):
    model = refgpt.load(write_model(tmp_path / "model", CONFIG, PARAMS), backend=backend)
    found = model.trace(IDS, 3, "blocks.1.*", positions=-1, gradients=True)
    want = record_gradients(model.engine, IDS, 3, "blocks.1.*", -1)
    assert found.keys() == want.keys() == model.trace(IDS, 3, "blocks.1.*").keys()
    assert all((found[name] == want[name]).all() for name in want)
    with pytest.raises(RefgptError, match=r"patch: .*no gradients"):
        model.trace(IDS, gradients=True, patch={"embed": np.zeros(32)})
    with pytest.raises(RefgptError, match=r"labels: only a loss"):
        model.trace(IDS, labels=IDS)
    with pytest.raises(RefgptError, match="gradients"):
        model.trace(IDS, gradients="yes")
