"""One summation order: chunks, company, threads and instruction sets change no bit of a sequence's logits."""

import numpy as np
import pytest

from refgpt.kernels import force_isa
from tests.helpers.buffers import RUNNABLE, assert_same_bits
from tests.helpers.runtime_models import LONG, PROMPT, fed, runtime

KINDS = [("f32", "f32"), ("f16", "f32"), ("bf16", "f16"), ("q8", "f32"), ("q4", "f16"), ("q3", "f16"), ("f32", "q8")]
KINDS += [("bf16 dots", "f32")]
each_kind = pytest.mark.parametrize(("dtype", "kv_dtype"), KINDS)


@each_kind
@pytest.mark.parametrize("chunk", [1, 7, 64, 199])
@pytest.mark.parametrize("prefix_len", [0, 90])
def test_a_prompt_in_chunks(dtype, kv_dtype, chunk, prefix_len):
    engine = runtime(dtype, kv_dtype)
    assert_same_bits(fed(engine, PROMPT, chunk, prefix_len), engine.logits(PROMPT, prefix_len))


@each_kind
@pytest.mark.parametrize("prefix_len", [0, 33])
def test_a_prompt_decoded_token_by_token(dtype, kv_dtype, prefix_len):
    """With the cache and, by ``logits``, without: also where the prompt has seen itself both ways."""
    engine = runtime(dtype, kv_dtype)
    want, session = engine.logits(PROMPT, prefix_len), engine.session(1, 200)
    rows = [session.prefill(0, PROMPT[:33], prefix_len), *(session.decode([0], [i])[0] for i in PROMPT[33:])]
    assert_same_bits(np.stack(rows), want[32:])


@each_kind
@pytest.mark.parametrize("prefix_len", [0, 20, 33])
def test_a_sequence_extended_cut_and_extended_again(dtype, kv_dtype, prefix_len):
    """Whatever was there between, and whoever sits in the next slot."""
    engine = runtime(dtype, kv_dtype)
    want, session = engine.logits(PROMPT, prefix_len), engine.session(2, 200)
    session.prefill(1, PROMPT[:150])
    session.prefill(0, PROMPT[:33], prefix_len)
    assert_same_bits(session.extend(0, PROMPT[33:36]), want[33:36])
    for kept in (36, 34, 33):
        session.truncate(0, kept)
        session.extend(0, PROMPT[::-1][:100])
        session.truncate(0, kept)
        assert_same_bits(session.extend(0, PROMPT[kept:50]), want[kept:50])
        assert_same_bits(session.decode([0, 1], [PROMPT[50], 3])[0], want[50])
    session.truncate(0, 0)
    assert_same_bits(session.extend(0, PROMPT[:40]), engine.logits(PROMPT[:40]))
    session.truncate(0, 1)  # nothing of a prefix is left that could not be cut
    session.prefill(0, PROMPT[:33], prefix_len)
    session.truncate(0, 0)
    rows = [session.decode([0], [new])[0] for new in PROMPT[:3]]
    assert_same_bits(np.stack(rows), engine.logits(PROMPT[:3]))
    session.truncate(0, 1)
    assert_same_bits(session.prefill(0, PROMPT[:33], prefix_len), want[32])


@each_kind
def test_a_sequence_alone_and_among_nine_others(dtype, kv_dtype):
    engine, rng = runtime(dtype, kv_dtype), np.random.default_rng(9)
    want, session = engine.logits(PROMPT), engine.session(10, 230)
    mine = 4
    for seq in range(10):
        others = rng.integers(0, LONG.n_vocab, int(rng.integers(1, 190)))
        row = session.prefill(seq, PROMPT[:170] if seq == mine else others)
        if seq == mine:
            assert_same_bits(row, want[169])
    for t in range(170, 200):
        seqs = rng.permutation([mine, *rng.permutation([s for s in range(10) if s != mine])[: rng.integers(0, 10)]])
        ids = np.where(seqs == mine, PROMPT[t], rng.integers(0, LONG.n_vocab, len(seqs)))
        assert_same_bits(session.decode(seqs, ids)[np.flatnonzero(seqs == mine)[0]], want[t])


@each_kind
@pytest.mark.parametrize("threads", [1, 5])
def test_threads(dtype, kv_dtype, threads):
    assert_same_bits(runtime(dtype, kv_dtype, threads).logits(PROMPT), runtime(dtype, kv_dtype, 2).logits(PROMPT))


@each_kind
@pytest.mark.parametrize("isa", sorted({kernel.isa for kernel in RUNNABLE}))
def test_instruction_sets(dtype, kv_dtype, isa):
    engine = runtime(dtype, kv_dtype)
    want = engine.logits(PROMPT)
    with force_isa(isa):
        assert_same_bits(engine.logits(PROMPT), want)
        session = engine.session(1, 200)
        session.prefill(0, PROMPT[:-1])
        assert_same_bits(session.decode([0], PROMPT[-1:])[0], want[-1])


@each_kind
@pytest.mark.parametrize("prefix_len", [0, 20])
def test_a_slot_forgets_the_text_it_held_before(dtype, kv_dtype, prefix_len):
    engine = runtime(dtype, kv_dtype)
    want, session = engine.logits(PROMPT[:60], prefix_len), engine.session(2, 250)
    for seq in (0, 1):
        session.prefill(seq, PROMPT[::-1], 150)
        session.decode([seq], [3])
    for seq in (1, 0):
        assert_same_bits(session.prefill(seq, PROMPT[:50], prefix_len), want[49])
    for t in range(50, 60):
        for row in session.decode([1, 0], [PROMPT[t]] * 2):
            assert_same_bits(row, want[t])


def test_the_capacity_of_a_session_changes_nothing():
    engine = runtime()
    want = engine.logits(PROMPT[:50])[-1]
    for capacity in (50, 64, 260, 10**9):
        assert_same_bits(engine.session(1, capacity).prefill(0, PROMPT[:50]), want)


def test_logits_belong_to_the_caller():
    session = runtime().session(1, 60)
    first = session.prefill(0, PROMPT[:50])
    kept = first.copy()
    second = session.decode([0], [1])
    again = second.copy()
    session.decode([0], [2])
    assert_same_bits(first, kept)
    assert_same_bits(second, again)
