"""Texts with different adapters in one pass: each has the bits that it has alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refgpt.runtime.session
from refgpt._common.errors import GenerationError
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.adapters import random_pairs, with_named
from tests.helpers.buffers import assert_same_bits
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params

N = 40
FAMILIES = ("gptj", "gpt2", "gpt_neo, local first", "gpt_neox, one after the other")
#: Adapters of different matrices and ranks; the last one's head is adapted too, where it is a matrix of its own.
KINDS = {"oz": ("wq wv", 3), "law": ("wk wo w_in", 17), "sea": ("wq w_out w_head", 1)}


@cache
def engine_of(variant="gptj", dtype=None, stored="f32", kind="c", threads=2, kv_dtype=None):
    config = VARIANTS[variant]
    params = random_params(config, 11, stored)
    options = {"dtype": dtype, "threads": threads, "kv_dtype": kv_dtype}
    base = SpecEngine(params, config) if kind == "numpy" else Runtime(params, config, **options)
    named = {name: random_pairs(params, seed, *kinds) for seed, (name, kinds) in enumerate(KINDS.items())}
    return with_named(base, named)


@cache
def rows_of(engine, adapter, text, prefix_len=0):
    """The logits of a text alone, from an engine to which the adapter is always applied."""
    alone = engine if adapter is None else engine.adapters[adapter]
    return alone.logits(list(text), prefix_len)


def texts_of(engine, n=5):
    stream = np.random.RandomState(4)
    return [tuple(stream.randint(0, engine.config.n_vocab, N).tolist()) for _ in range(n)]


@pytest.mark.parametrize(
    ("variant", "dtype", "stored", "kv_dtype"),
    [
        *((variant, None, "f32", None) for variant in FAMILIES),
        *(("gptj", dtype, "f32", None) for dtype in ("f16", "q8", "q4", "q3")),
        ("gptj", None, "bf16", "q8"),
        ("gpt2", "q4", "f32", None),
    ],
)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_mixture_has_the_bits_of_each_alone(variant, dtype, stored, kv_dtype, data):
    engine = engine_of(variant, dtype, stored, kv_dtype=kv_dtype)
    texts, n_slots = texts_of(engine), 5
    session, done = engine.session(n_slots, N), [0] * n_slots
    adapters = [data.draw(st.sampled_from([None, *KINDS])) for _ in range(n_slots)]
    prefix_lens = [0 if "local" in variant else data.draw(st.sampled_from([0, 6])) for _ in range(n_slots)]
    for slot, adapter in enumerate(adapters):
        session.use_adapter(slot, adapter)
        assert session.adapter_of(slot) == adapter
    while min(done) < N:
        slots = data.draw(st.permutations([slot for slot in range(n_slots) if done[slot] < N]))
        parts, n_rows, want = [], [], []
        for slot in slots[: data.draw(st.integers(1, len(slots)))]:
            start = done[slot]
            prefix_len = 0 if start else prefix_lens[slot]
            size = min(N - start, max(prefix_len, data.draw(st.sampled_from([1, 1, 2, 9, 23]))))
            parts.append((slot, texts[slot][start : start + size], prefix_len))
            n_rows.append(data.draw(st.integers(0, size - prefix_len)))
            done[slot] = stop = start + size
            want.append(rows_of(engine, adapters[slot], texts[slot], prefix_lens[slot])[stop - n_rows[-1] : stop])
        assert_same_bits(session.step(parts, n_rows), np.concatenate(want))


@pytest.mark.parametrize("kind", ["c", "numpy"])
def test_each_adapter_changes_the_text(kind):
    engine, text = engine_of(kind=kind), texts_of(engine_of())[0]
    rows = [rows_of(engine, adapter, text)[-1] for adapter in (None, *KINDS)]
    assert all(np.abs(one - other).max() > 0.1 for i, one in enumerate(rows) for other in rows[:i])


def test_the_specification_mixes_too():
    engine = engine_of(kind="numpy")
    session, texts = engine.session(4, N), texts_of(engine, 4)
    adapters = [None, *KINDS]
    for slot, adapter in enumerate(adapters):
        session.use_adapter(slot, adapter)
    got = session.step([(slot, texts[slot][:7], 0) for slot in (2, 0, 3, 1)])
    for slot, row in zip((2, 0, 3, 1), got, strict=True):
        alone = engine if adapters[slot] is None else engine.adapters[adapters[slot]]
        assert_same_bits(row, alone.logits(texts[slot][:7])[-1])


@pytest.mark.parametrize("kind", ["c", "numpy"])
def test_a_fork_has_the_adapter_of_its_source(kind):
    engine = engine_of(kind=kind)
    session, text = engine.session(3, N), texts_of(engine)[0]
    for slot, adapter in enumerate(("oz", "law", "sea")):  # leftovers of the same ids with another adapter
        session.use_adapter(slot, adapter)
        session.prefill(slot, text[:20])
    session.release(1)
    session.release(2)
    assert session.fork(0, [2]) == 2 and session.adapter_of(2) == "oz"
    alone = engine.adapters["oz"].session(1, N)
    alone.prefill(0, text[:20])
    assert_same_bits(session.decode([2], [5])[0], alone.decode([0], [5])[0])


@pytest.mark.parametrize("kind", ["c", "numpy"])
def test_unusable_adapters_are_refused(kind):
    session = engine_of(kind=kind).session(2, N)
    with pytest.raises(GenerationError, match="no adapter of this name; got 'Oz'; wanted one of oz, law, sea"):
        session.use_adapter(0, "Oz")
    session.use_adapter(0, "oz")
    session.prefill(0, [1, 2])
    session.use_adapter(0, "oz")
    for other in ("law", None):
        with pytest.raises(GenerationError, match="the slot is not empty"):
            session.use_adapter(0, other)
    assert session.adapter_of(0) == "oz" and session.adapter_of(1) is None
    for slot in (-1, 2):
        out_of_range = rf"seq: not slots of this session; got \[{slot}\]; wanted 0 to 1, each once"
        with pytest.raises(GenerationError, match=out_of_range):
            session.use_adapter(slot, "oz")
        with pytest.raises(GenerationError, match=out_of_range):
            session.adapter_of(slot)
    plain = engine_of(kind=kind).adapters["oz"].session(1, N)
    with pytest.raises(GenerationError, match="load the model with adapters="):
        plain.use_adapter(0, "oz")


@pytest.mark.parametrize("kind", ["c", "numpy"])
def test_saved_texts_are_of_one_adapter(kind, tmp_path):
    engine = engine_of(kind=kind)
    session, text = engine.session(2, N), texts_of(engine)[0]
    session.use_adapter(0, "oz")
    session.prefill(0, text[:9])
    session.save(tmp_path / "saved")
    with pytest.raises(GenerationError, match="saved with another model"):
        session.load(tmp_path / "saved", 1)
    session.use_adapter(1, "oz")
    assert session.load(tmp_path / "saved", 1) == list(text[:9])
    alone = engine.adapters["oz"].session(1, N)
    assert alone.load(tmp_path / "saved") == list(text[:9])  # what was saved beside others, and alone
    assert_same_bits(session.decode([1], [5])[0], alone.decode([0], [5])[0])


def test_recordings_of_mixtures_are_bounded(monkeypatch):
    monkeypatch.setattr(refgpt.runtime.session, "MOST_RECORDED", 8)
    engine = engine_of()
    session, texts = engine.session(16, N), texts_of(engine, 16)
    names, done = [None, *KINDS], [0] * 16
    for slot in range(16):
        session.use_adapter(slot, names[slot % 4])
    stream = np.random.RandomState(1)
    for _ in range(40):
        slots = stream.permutation([slot for slot in range(16) if done[slot] < N])[: stream.randint(1, 8)].tolist()
        got = session.decode(slots, [texts[slot][done[slot]] for slot in slots])
        for slot, row in zip(slots, got, strict=True):
            assert_same_bits(row, rows_of(engine, names[slot % 4], texts[slot])[done[slot]])
            done[slot] += 1
    assert sum(bool(kind[-1]) for kind in session._recorded) == 8


def test_the_base_is_not_changed_while_adapters_use_it():
    engine = engine_of()
    with pytest.raises(GenerationError, match="its weights cannot be changed; got oz, law, sea"):
        engine.adopt(engine.kept())


@pytest.mark.parametrize("threads", [1, 3])
def test_no_bit_depends_on_the_number_of_threads(threads):
    rows = []
    for n in (2, threads):
        session = engine_of(threads=n).session(3, N)
        for slot, adapter in enumerate((None, "law", "oz")):
            session.use_adapter(slot, adapter)
        rows.append(session.step([(slot, list(range(20)), 0) for slot in range(3)], [20] * 3))
    assert_same_bits(*rows)
