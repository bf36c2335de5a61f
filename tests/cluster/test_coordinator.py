"""The coordinator: what becomes of the workers' differences, and which messages it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgpt._common.errors import CheckpointError, RefgptError
from refgpt.cluster.compression import parse_compression
from refgpt.cluster.coordinator import Coordinator, NothingUsable, Rules
from refgpt.cluster.messages import HEADER, Layout, Message
from refgpt.cluster.saving import PROGRESS

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
LAYOUT = Layout.of(WEIGHTS)


def message(worker, difference, round_=0, compression="none", layout=LAYOUT, seed=0, **changes):
    payload = parse_compression(compression).encode(np.asarray(difference, np.float32), seed)
    return dataclasses.replace(Message(worker, round_, 3, 12, 2.5, payload), **changes).to_bytes(layout)


def differences(n, scale=1.0):
    stream = np.random.RandomState(4)
    return [(scale * stream.standard_normal(10)).astype(np.float32) for _ in range(n)]


def test_the_update_is_the_mean_and_all_end_with_the_same_weights():
    coordinator, sent = Coordinator(WEIGHTS, Rules()), differences(3)
    result = coordinator.close({i: message(i, d) for i, d in enumerate(sent)})
    assert result.loss == 2.5 and coordinator.round == 1 and not result.refused
    update = coordinator.read_update(result.update, 0)
    assert np.abs(update - np.mean(sent, 0, dtype=np.float64)).max() < 1e-6
    assert (LAYOUT.join(coordinator.weights) == LAYOUT.join(WEIGHTS) + update).all()
    assert (WEIGHTS["b"] == 1).all()


def test_nesterov_is_the_formula():
    rules = Rules(outer="nesterov", outer_lr=0.7, outer_momentum=0.9)
    coordinator, total, velocity = Coordinator(WEIGHTS, rules), LAYOUT.join(WEIGHTS).astype(np.float64), np.zeros(10)
    for i, difference in enumerate(differences(5)):
        coordinator.close({0: message(0, difference, i)})
        velocity = 0.9 * velocity + difference
        total = total + 0.7 * (difference + 0.9 * velocity)
    assert np.abs(LAYOUT.join(coordinator.weights) - total).max() < 1e-5


@pytest.mark.parametrize("rules", [Rules(max_ratio=1.0), Rules(trim=1)])
def test_one_broken_worker_cannot_move_the_weights_far(rules):
    sent = [*differences(3, 0.01), np.full(10, 1e30, np.float32)]
    coordinator = Coordinator(WEIGHTS, rules)
    coordinator.close({i: message(i, d) for i, d in enumerate(sent)})
    moved = LAYOUT.join(coordinator.weights) - LAYOUT.join(WEIGHTS)
    assert np.linalg.norm(moved) <= max(np.linalg.norm(d) for d in sent[:3]) * 1.001
    plain = Coordinator(WEIGHTS, Rules())
    plain.close({i: message(i, d) for i, d in enumerate(sent)})
    assert np.abs(LAYOUT.join(plain.weights)).max() > 1e20  # which is what the rules are for


@pytest.mark.parametrize(("n_good", "rules"), [(1, Rules(max_ratio=2.0)), (3, Rules(trim=2)), (2, Rules(trim=7))])
def test_one_broken_worker_among_few_cannot_either(n_good, rules):
    sent = [*differences(n_good, 0.01), np.full(10, 1e30, np.float32)]
    coordinator = Coordinator(WEIGHTS, rules)
    coordinator.close({i: message(i, d) for i, d in enumerate(sent)})
    moved = LAYOUT.join(coordinator.weights) - LAYOUT.join(WEIGHTS)
    assert np.linalg.norm(moved) <= 2 * max(np.linalg.norm(d) for d in sent[:-1])


def test_the_weights_and_the_momentum_are_kept_if_the_update_is_not_finite():
    rules = Rules(outer="nesterov", outer_lr=1e30)
    coordinator = Coordinator(WEIGHTS, rules)
    with pytest.raises(RefgptError, match="NaN or infinity") as fault:
        coordinator.close({0: message(0, np.full(10, 1e20))})
    assert not isinstance(fault.value, NothingUsable) and coordinator.round == 0
    coordinator.close({0: message(0, np.full(10, 1e-30))})
    moved = LAYOUT.join(coordinator.weights) - LAYOUT.join(WEIGHTS)
    assert np.abs(moved - 1.9).max() < 1e-5  # without what the first attempt would have left in the momentum


OTHER = Layout({"a": (2, 3), "c": (4,)})
BAD = {
    "another worker": message(2, differences(1)[0]),
    "another round": message(1, differences(1)[0], round_=7),
    "another layout": message(1, differences(1)[0], layout=OTHER),
    "another length": message(1, np.zeros(9, np.float32)),
    "no training": message(1, differences(1)[0], loss=float("nan")),
    "no steps": message(1, differences(1)[0], n_steps=0),
    "NaN": message(1, differences(1)[0], payload=np.full(10, np.nan, np.float32).tobytes()),
    "too large a loss": message(1, differences(1)[0], loss=1e308),
    "too large": message(1, np.full(10, -3e38)),
    "empty": b"",
    "text": "a text",
    "nothing": None,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_messages_are_refused_and_the_worker_is_named(kind):
    good = differences(1)[0]
    coordinator = Coordinator(WEIGHTS, Rules())
    result = coordinator.close({0: message(0, good), 1: BAD[kind]})
    assert list(result.refused) == [1] and [m.worker for m in result.messages] == [0]
    assert (LAYOUT.join(coordinator.weights) == LAYOUT.join(WEIGHTS) + good).all()
    alone = Coordinator(WEIGHTS, Rules())
    with pytest.raises(RefgptError, match=r"no worker sent anything usable.*worker 1"):
        alone.close({1: BAD[kind]})
    assert alone.round == 0 and (LAYOUT.join(alone.weights) == LAYOUT.join(WEIGHTS)).all()


def test_a_message_counts_once():
    coordinator, sent = Coordinator(WEIGHTS, Rules()), message(0, differences(1)[0])
    coordinator.close({0: sent})
    with pytest.raises(RefgptError, match="another round"):
        coordinator.close({0: sent})


@given(at=st.integers(0, HEADER.size + 39), flip=st.integers(1, 255), cut=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_noticed(at, flip, cut):
    sent = bytearray(message(1, differences(1)[0]))
    sent[at] ^= flip
    coordinator = Coordinator(WEIGHTS, Rules())
    result = coordinator.close({0: message(0, differences(1)[0]), 1: bytes(sent[: len(sent) - cut])})
    # Steps, tokens and the loss are what a worker tells of itself: nothing else can be changed unseen.
    if not result.refused:
        assert not cut and 24 <= at < 44


@pytest.mark.parametrize(
    "rules", [Rules(), Rules(parse_compression("topk:0.3,bits:2"), outer="nesterov", outer_lr=0.7)]
)
def test_progress_is_kept_and_resumed_to_the_bit(tmp_path, rules):
    sent = differences(8)

    def go(coordinator, rounds):
        for i in rounds:
            seed = rules.seed_of(i, 0)
            coordinator.close({0: message(0, sent[i], i, str(rules.compression), seed=seed)})

    whole, first = Coordinator(WEIGHTS, rules), Coordinator(WEIGHTS, rules)
    go(whole, range(8))
    go(first, range(5))
    first.save(tmp_path / "progress")
    second = Coordinator(WEIGHTS, rules)
    second.resume(tmp_path / "progress")
    assert second.round == 5 and (second.sent, second.received) == (first.sent, first.received) and second.sent
    go(second, range(5, 8))
    assert all((whole.weights[name] == second.weights[name]).all() for name in WEIGHTS)
    with pytest.raises(CheckpointError, match="another model"):
        Coordinator({"a": WEIGHTS["a"]}, rules).resume(tmp_path / "progress")
    file = tmp_path / "progress" / PROGRESS
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError):
        second.resume(tmp_path / "progress")


@pytest.mark.parametrize(
    "settings_",
    [{"outer": "adam"}, {"outer_lr": -1}, {"max_ratio": 0.5}, {"trim": -1}, {"seed": -1}, {"outer_momentum": 2}],
)
def test_rules_that_make_no_sense_are_refused(settings_):
    with pytest.raises(RefgptError, match=next(iter(settings_))):
        Rules(**settings_)
