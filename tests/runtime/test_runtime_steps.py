"""One pass over a mixture of prompt chunks and decode steps, and forks: no bit depends on either."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgpt._common.errors import GenerationError
from refgpt.numbers.dtypes import KV_DTYPES
from refgpt.runtime import Runtime
from refgpt.runtime.cache import BLOCK
from refgpt.runtime.families import FAMILIES
from refgpt.runtime.recorded import MOST_ROWS
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.buffers import assert_same_bits
from tests.helpers.families import VARIANTS
from tests.helpers.runtime_models import LONG, PROMPT, runtime
from tests.helpers.tiny import random_params

RNG = np.random.default_rng(31)
TEXTS = [RNG.integers(0, LONG.n_vocab, 90).tolist() for _ in range(4)]
PREFIXES = [0, 25, 0, 7]
SPEC = SpecEngine(random_params(LONG, 11), LONG)
SHORT = 14


def want(engine, text, prefix_len):
    """The row of each token, computed as the engine's sessions promise it: the specification's one text at a time."""
    if engine is not SPEC:
        return engine.logits(text, prefix_len)
    first = max(prefix_len, 1)
    rows = [engine.logits(text[:end], prefix_len)[-1] for end in range(first, len(text) + 1)]
    return np.stack([*[rows[0]] * (first - 1), *rows])


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("f32", "f32"), ("q4", "f16"), ("q4", "q8")])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_mixture_of_chunks_and_steps(dtype, kv_dtype, data):
    engine = runtime(dtype, kv_dtype)
    rows = [want(engine, text, prefix) for text, prefix in zip(TEXTS, PREFIXES, strict=True)]
    session, done = engine.session(4, 90), [0] * 4
    while min(done) < 90:
        slots = data.draw(st.permutations([slot for slot in range(4) if done[slot] < 90]))
        parts, n_rows = [], []
        for slot in slots[: data.draw(st.integers(1, len(slots)))]:
            start = done[slot]
            prefix = 0 if start else PREFIXES[slot]
            size = min(90 - start, max(prefix, data.draw(st.sampled_from([1, 1, 2, 5, 9, 40]))))
            parts.append((slot, TEXTS[slot][start : start + size], prefix))
            n_rows.append(data.draw(st.integers(0, size - prefix)))
        got = session.step(parts, n_rows)
        expected = [
            rows[slot][done[slot] + len(ids) - n : done[slot] + len(ids)]
            for (slot, ids, _), n in zip(parts, n_rows, strict=True)
        ]
        assert_same_bits(got, np.concatenate(expected))
        for slot, ids, _ in parts:
            done[slot] += len(ids)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("sizes", "n_rows"),
    [([20], [1]), ([9], [1]), ([20], [6]), ([20], [20]), ([11, 9, 2], [3, 0, 2]), ([3, 9], [1, 1])],
)
def test_the_last_block_is_computed_only_for_the_rows_whose_logits_are_wanted(name, sizes, n_rows, monkeypatch):
    config, family = VARIANTS[name], FAMILIES[VARIANTS[name].model_type]
    engine = Runtime(random_params(config, 5), config, threads=2)
    texts = [[(5 * i + slot) % config.n_vocab for i in range(30)] for slot in range(len(sizes))]
    session = engine.session(len(sizes), 30)
    parts = [(slot, text[:n], 0) for slot, (text, n) in enumerate(zip(texts, sizes, strict=True))]
    computed, layer = [], family.layer

    def watched(i, x, *rest):
        computed.append((i, len(x)))
        return layer(i, x, *rest)

    monkeypatch.setattr(family, "layer", watched)
    got = session.step(parts, n_rows)
    n, n_wanted = sum(sizes), sum(max(rows, 1) for rows in n_rows)
    if n <= MOST_ROWS and n_wanted > 1:  # short passes are recorded for the last row or for all
        n_wanted = n
    assert computed == [*((i, n) for i in range(config.n_layer - 1)), (config.n_layer - 1, n_wanted)]
    monkeypatch.undo()
    whole = [engine.logits(text) for text in texts]
    wanted = [rows[n - asked : n] for rows, n, asked in zip(whole, sizes, n_rows, strict=True)]
    assert_same_bits(got, np.concatenate(wanted))
    after = session.decode(range(len(sizes)), [text[n] for text, n in zip(texts, sizes, strict=True)])
    assert_same_bits(after, np.stack([rows[n] for rows, n in zip(whole, sizes, strict=True)]))


@pytest.mark.parametrize("engine", [runtime(), SPEC], ids=["runtime", "spec"])
def test_each_part_is_asked_for_its_last_row_unless_otherwise_said(engine):
    session = engine.session(2, SHORT)
    session.prefill(0, TEXTS[0][:5])
    got = session.step([(1, TEXTS[1][:8], 8), (0, TEXTS[0][5:7], 0)])
    assert_same_bits(got, np.stack([want(engine, TEXTS[1][:8], 8)[-1], want(engine, TEXTS[0][:7], 0)[-1]]))
    assert session.step([(0, [1, 2], 0)], [0]).shape == (0, LONG.n_vocab)


@pytest.mark.parametrize(
    "engine",
    [runtime(), runtime("f16", "f16"), runtime("q4", "q8"), SPEC],
    ids=["runtime", "f16", "q8", "spec"],
)
@pytest.mark.parametrize("prefix_len", [0, 6])
def test_a_fork_goes_on_apart(engine, prefix_len):
    session, (one, two) = engine.session(3, SHORT), TEXTS[:2]
    session.prefill(0, one[:8], prefix_len)
    fork = session.fork(0)
    assert fork != 0
    for step in range(3):
        got = session.decode([fork, 0], [two[step], one[8 + step]])
        assert_same_bits(got[0], want(engine, [*one[:8], *two[: step + 1]], prefix_len)[-1])
        assert_same_bits(got[1], want(engine, one[: 9 + step], prefix_len)[-1])
    third = session.fork(fork)
    assert {0, fork, third} == {0, 1, 2}
    with pytest.raises(GenerationError, match=r"no slot is empty; got \[0, 1, 2\]"):
        session.fork(0)
    session.release(0)
    assert session.fork(third) == 0
    assert_same_bits(session.decode([0], [9])[0], want(engine, [*one[:8], *two[:3], 9], prefix_len)[-1])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_forks_and_releases_in_any_order(kv_dtype, data):
    """Slots that share blocks, in forks of forks, cut amid what is shared, lent and released: each text is its own."""
    engine = runtime("f16", kv_dtype)
    session, texts = engine.session(4, 220), {}
    for _ in range(data.draw(st.integers(5, 25))):
        empty = [slot for slot in range(4) if slot not in texts]
        act = data.draw(st.sampled_from(["begin", "grow", "grow", "fork", "fork", "fork", "cut", "release", "lend"]))
        if act == "begin" and empty:
            n = data.draw(st.integers(1, 90))
            prefix_len = data.draw(st.sampled_from([0, 0, n // 2]))
            text = TEXTS[data.draw(st.integers(0, 1))][:n]
            session.step([(empty[0], text, prefix_len)])
            texts[empty[0]] = text, prefix_len
        elif texts:
            slot = data.draw(st.sampled_from(sorted(texts)))
            text, prefix_len = texts[slot]
            if act == "fork" and empty:
                texts[session.fork(slot)] = text, prefix_len
            elif act == "grow":
                growing = data.draw(st.lists(st.sampled_from(sorted(texts)), min_size=1, unique=True))
                new = {one: data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=40)) for one in growing}
                new = {one: ids for one, ids in new.items() if len(texts[one][0]) + len(ids) < 220}
                if not new:
                    continue
                rows = session.step([(one, ids, 0) for one, ids in new.items()])
                for row, (one, ids) in zip(rows, new.items(), strict=True):
                    text, prefix_len = texts[one]
                    texts[one] = [*text, *ids], prefix_len
                    assert_same_bits(row, engine.logits([*text, *ids], prefix_len)[-1])
            elif act == "cut":
                n = data.draw(st.integers(max(prefix_len, 1), len(text)))
                session.truncate(slot, n)
                texts[slot] = text[:n], prefix_len
            elif act == "release":
                session.release(slot)
                del texts[slot]
            elif act == "lend" and empty and len(text) >= 16 and not prefix_len:
                n = len(text) // 16 * 16
                lent = [session.export(slot, *cut)[0] for cut in pairwise(sorted({0, 16, n}))]
                session.adopt(empty[0], text[:n], lent)
                texts[empty[0]] = text[:n], 0
    assert session.cache.n_blocks_used <= sum(-(-len(text) // BLOCK) for text, _ in texts.values())
    for slot, (text, prefix_len) in texts.items():
        assert_same_bits(session.decode([slot], [7])[0], engine.logits([*text, 7], prefix_len)[-1])
        session.release(slot)
    assert session.cache.n_blocks_used == 0


def touched(session):
    """How many blocks of the cache have been written to. Only these take memory."""
    return sum(bool(block.any()) for block in session.cache.k[0].view(np.uint8))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_forks_take_memory_only_from_where_they_part(kv_dtype):
    session, text = runtime("f32", kv_dtype).session(4, 260), PROMPT.tolist()
    session.prefill(0, text[:150])  # two full blocks, and 22 positions
    assert [session.fork(0), session.fork(0), session.fork(1)] == [1, 2, 3]
    assert touched(session) == 3
    session.decode([0, 1, 2, 3], [1, 2, 3, 4])
    assert touched(session) == 2 + 4
    for _ in range(200):  # as beams do: the best is continued twice, and another one given up
        session.release(3)
        assert session.fork(1, [3]) == 3
        session.decode([1, 3], [5, 6])
        for slot in (1, 3):
            session.truncate(slot, 150)
    assert touched(session) == 2 + 4


def test_a_fork_outlives_what_it_was_forked_from():
    engine, text = runtime(), PROMPT.tolist()
    session = engine.session(3, 260)
    session.prefill(0, text[:130])
    session.fork(session.fork(0, [1]), [2])
    session.release(0)
    session.prefill(0, text[::-1][:100])  # in other memory
    session.release(1)
    session.prefill(1, text[::-1])
    session.truncate(2, 70)
    assert_same_bits(session.extend(2, text[70:]), engine.logits(text)[70:])


REFUSED = {
    "a slot twice": lambda s: s.step([(0, [1], 0), (0, [2], 0)]),
    "a prefix amid a text": lambda s: s.step([(1, [1], 0), (0, [1, 2], 2)]),
    "no tokens": lambda s: s.step([(1, [1], 0), (0, [], 0)]),
    "an id that does not exist": lambda s: s.step([(1, [1], 0), (0, [LONG.n_vocab], 0)]),
    "more rows than tokens": lambda s: s.step([(1, [1], 0), (0, [1], 0)], [1, 2]),
    "a prefix longer than its piece": lambda s: s.step([(1, [1, 2], 3)]),
    "beyond the context": lambda s: s.step([(1, [1], 0), (0, [1] * LONG.n_ctx, 0)]),
}


@pytest.mark.parametrize("engine", [runtime(), SPEC], ids=["runtime", "spec"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_and_leaves_the_session_as_it_was(engine, what):
    session = engine.session(2, LONG.n_ctx)
    session.prefill(0, TEXTS[0][:5])
    with pytest.raises(GenerationError):
        REFUSED[what](session)
    assert_same_bits(session.decode([0], TEXTS[0][5:6])[0], want(engine, TEXTS[0][:6], 0)[-1])
    assert_same_bits(session.step([(1, TEXTS[1][:4], 4)])[0], want(engine, TEXTS[1][:4], 4)[-1])
