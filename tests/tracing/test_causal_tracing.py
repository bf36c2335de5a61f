"""Causal tracing: what must come back whole, what must not move, and one cell by hand."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.spec import forward
from refgpt.tracing import causal_trace, patch, record
from tests.helpers.tracing_models import CLOSE, ENGINES, IDS, ORACLE, RUNTIME, Spelling, as_model

CORRUPT = [7, 3, 11, 0, 3, 12, 33]  # token 2 differs


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


def test_what_must_come_back_and_what_must_not_move(engine):
    found = causal_trace(engine, IDS, CORRUPT, 4, 9)
    assert found.restored.shape == (2, 7) and found.positions.tolist() == list(range(7))
    for prompt, value in ((IDS, found.clean), (CORRUPT, found.corrupt)):
        row = engine.logits(prompt)[-1]
        assert value == float(row[4]) - float(row[9])
    assert np.abs(found.recovered[1, -1] - 1) <= CLOSE  # all that the last row's logits are made of
    assert np.abs(found.recovered[:, :2]).max() <= CLOSE  # the prompts do not differ yet
    assert np.abs(found.recovered[1, :-1]).max() <= CLOSE  # nobody reads them after the last block
    assert (np.abs(found.recovered[0, 2:]) > 1e-3).all()


def test_a_cell_is_the_corrupt_run_with_one_state_restored(engine):
    for part in ("resid_post", "attn_out", "mlp_out", "z", "k_rot"):
        found = causal_trace(engine, IDS, CORRUPT, 4, 9, part=part, positions=[-2, 2], prefix_len=2)
        name, clean = f"blocks.0.{part}", record(engine, IDS, 2)

        def restored(value, state=clean[name]):
            value = value.copy()
            value[2] = state[2]
            return value

        row = patch(engine, CORRUPT, {name: restored}, 2)[-1]
        assert found.restored[0, 1] == pytest.approx(float(row[4]) - float(row[9]), abs=1e-6)
        assert found.positions.tolist() == [5, 2]


def test_a_window_restores_neighbouring_blocks(engine):
    single, both = (causal_trace(engine, IDS, CORRUPT, 4, 9, part="mlp_out", window=n).restored for n in (1, 2))
    assert np.abs(both[0] - single[0]).max() <= 1e-6  # with the block before it, of which there is none
    clean = record(engine, IDS)
    states = {f"blocks.{i}.mlp_out": clean[f"blocks.{i}.mlp_out"] for i in range(2)}

    def restore(name):
        return lambda value: np.where(np.arange(7)[:, None] == 2, states[name], value).astype(value.dtype)

    row = patch(engine, CORRUPT, {name: restore(name) for name in states})[-1]
    assert both[1, 2] == pytest.approx(float(row[4]) - float(row[9]), abs=1e-6)
    assert np.abs(causal_trace(engine, IDS, CORRUPT, 4, 9, part="mlp_out", window=3).restored[0] - both[1]).max() < 1e-6


def test_the_engines_agree():
    ours, spec = (causal_trace(engine, IDS, CORRUPT, 4, 9) for engine in (RUNTIME, ORACLE))
    assert np.abs(ours.restored - spec.restored).max() <= CLOSE


def test_answers_are_the_likeliest_unless_named(engine):
    found = causal_trace(engine, IDS, [5, 5, 5, 5, 5, 5, 8], positions=-1)
    assert found.answer == engine.logits(IDS)[-1].argmax() != found.other
    assert found.other == engine.logits([5, 5, 5, 5, 5, 5, 8])[-1].argmax()
    assert found.clean > 0 > found.corrupt


def test_the_default_model_keeps_the_word_where_it_stands():
    model = refgpt.load()
    clean, corrupt = (f"The {who} said that" for who in ("queen", "king"))
    he, she = (model.tokenizer.encode(f"that {word}")[-1] for word in ("he", "she"))
    found = causal_trace(model, clean, corrupt, she, he)
    n = len(model.tokenizer.encode(clean))
    assert found.restored.shape == (6, n) and found.clean > found.corrupt + 0.2
    differ = [t for t in range(n) if model.tokenizer.encode(clean)[t] != model.tokenizer.encode(corrupt)[t]]
    assert found.recovered[0].argmax() in differ and found.recovered[-1].argmax() == n - 1
    spec = forward(model.params(), model.config, model.tokenizer.encode(clean))[-1]
    assert found.clean == pytest.approx(spec[she] - spec[he], abs=1e-4)


def test_a_bar_counts_the_passes(monkeypatch, capsys):
    causal_trace(RUNTIME, IDS, CORRUPT, 4, 9, positions=slice(2, 5), progress=True)
    shown = capsys.readouterr().err
    assert "causal tracing: 100%" in shown and "6/6" in shown
    causal_trace(RUNTIME, IDS, CORRUPT, 4, 9, positions=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"corrupt": IDS[:-1]}, "corrupt: the prompts must have as many tokens; got 6 tokens; wanted the 7"),
        ({"corrupt": IDS, "answer": 4, "other": 9}, "corrupt: the prompts do not differ in their answers; got a diff"),
        ({"corrupt": IDS}, "other: both prompts have the same answer"),
        ({"answer": 3, "other": 3}, "other: both prompts have the same answer; got token 3 of both"),
        ({"answer": 61}, "answer: cannot be used; got 61"),
        ({"part": "pattern"}, "part: cannot be used; got 'pattern'"),
        ({"part": "embed"}, "part: cannot be used"),
        ({"window": 0}, "window: cannot be used; got 0"),
        ({"positions": 7}, "positions: cannot be used; got 7"),
        ({"corrupt": [99] * 7}, "does not exist in this vocabulary"),
    ],
)
def test_mistakes_are_named(arguments, said):
    with pytest.raises(RefgptError, match=said):
        causal_trace(RUNTIME, IDS, **{"corrupt": CORRUPT, **arguments})


def test_texts():
    with pytest.raises(GenerationError, match="is a text"):
        causal_trace(RUNTIME, "had", "hid")
    assert causal_trace(as_model(RUNTIME, Spelling()), "had", "hid", 4, 9).restored.shape == (2, 3)
