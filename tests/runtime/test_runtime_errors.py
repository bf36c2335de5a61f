"""Prompts and sessions that cannot be: an error, and a session that goes on as if nothing had been asked."""

import numpy as np
import pytest

from refgpt._common.errors import CheckpointError, GenerationError, RefgptError
from refgpt.runtime import Runtime, cache
from refgpt.spec.gptj import Params
from tests.helpers.buffers import assert_same_bits
from tests.helpers.runtime_models import LONG, PROMPT, SHAPES, runtime
from tests.helpers.tiny import random_params, tiny_config

FULL, EMPTY, GOING, BOTH_WAYS = 0, 1, 2, 3


@pytest.fixture
def session():
    """Slot 0 is full, slot 1 unused; slot 2 holds five tokens, slot 3 eight, of which six see each other."""
    session = runtime().session(4, 20)
    session.prefill(FULL, PROMPT[:20])
    session.prefill(GOING, PROMPT[:5])
    session.prefill(BOTH_WAYS, PROMPT[:7], 6)
    session.extend(BOTH_WAYS, PROMPT[7:8])
    return session


REFUSED = {
    "a full sequence": lambda s: s.decode([FULL], [1]),
    "a full sequence among others": lambda s: s.decode([GOING, FULL], [1, 1]),
    "a prompt beyond the capacity": lambda s: s.prefill(GOING, PROMPT[:21]),
    "a prompt beyond the context": lambda s: s.prefill(GOING, np.zeros(LONG.n_ctx + 1, int)),
    "an empty prompt": lambda s: s.prefill(GOING, []),
    "an id that does not exist": lambda s: s.prefill(GOING, [LONG.n_vocab]),
    "a prefix longer than the prompt": lambda s: s.prefill(GOING, [1, 2], 3),
    "a prefix amid a text": lambda s: s.feed(GOING, [1, 2], 2),
    "a prefix after a prefix": lambda s: s.feed(BOTH_WAYS, [1, 2], 2),
    "no tokens to extend with": lambda s: s.extend(GOING, []),
    "extending beyond the capacity": lambda s: s.extend(GOING, PROMPT[:16]),
    "extending by an id that does not exist": lambda s: s.extend(GOING, [1, LONG.n_vocab]),
    "extending a slot that does not exist": lambda s: s.extend(4, [1]),
    "cutting a prefix": lambda s: s.truncate(BOTH_WAYS, 5),
    "all but one of a prefix": lambda s: s.truncate(BOTH_WAYS, 1),
    "cutting to more than there is": lambda s: s.truncate(GOING, 6),
    "cutting to less than nothing": lambda s: s.truncate(GOING, -1),
    "cutting to half a token": lambda s: s.truncate(GOING, 2.5),
    "cutting a slot that does not exist": lambda s: s.truncate(4, 0),
    "a slot that does not exist": lambda s: s.prefill(4, [1]),
    "a negative slot": lambda s: s.prefill(-1, [1]),
    "decoding in a slot that does not exist": lambda s: s.decode([4], [1]),
    "decoding in a negative slot": lambda s: s.decode([-1], [1]),
    "one slot twice": lambda s: s.decode([GOING, GOING], [1, 1]),
    "more slots than tokens": lambda s: s.decode([GOING, EMPTY], [1]),
    "more tokens than slots": lambda s: s.decode([GOING], [1, 2]),
    "more tokens than slots, after as many rows of one": lambda s: (
        s.extend(GOING, [1, 2]),
        s.truncate(GOING, 5),
        s.decode([GOING], [6, 7]),
    ),
    "a token that does not exist": lambda s: s.decode([GOING], [-1]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_and_leaves_the_session_as_it_was(session, what):
    with pytest.raises(RefgptError):
        REFUSED[what](session)
    assert_same_bits(session.decode([GOING], PROMPT[5:6])[0], runtime().logits(PROMPT[:6])[-1])
    assert_same_bits(session.decode([BOTH_WAYS], PROMPT[8:9])[0], runtime().logits(PROMPT[:9], 6)[-1])


def test_the_last_position_of_the_context_can_be_reached():
    session = runtime().session(1, LONG.n_ctx)
    ids = np.resize(PROMPT, LONG.n_ctx)
    session.prefill(0, ids[:-1])
    assert_same_bits(session.decode([0], ids[-1:])[0], runtime().logits(ids)[-1])
    with pytest.raises(RefgptError, match="full"):
        session.decode([0], [1])


@pytest.mark.parametrize(("n_seqs", "capacity"), [(0, 5), (-1, 5), (1, 0), (1, -3)])
def test_a_session_without_room_is_refused(n_seqs, capacity):
    with pytest.raises(RefgptError):
        runtime().session(n_seqs, capacity)


@pytest.mark.parametrize("options", [{"dtype": "i8"}, {"dtype": "f64"}, {"kv_dtype": "bf16"}, {"threads": 0}])
def test_options_that_do_not_exist_are_refused(options):
    config = SHAPES["plain"]
    with pytest.raises(RefgptError):
        Runtime(random_params(config, 1), config, **options)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_weights_that_are_not_numbers_are_named(bad):
    config = SHAPES["plain"]
    params = random_params(config, 1)
    params.blocks[1].w_out[3, 4] = bad
    with pytest.raises(CheckpointError, match=r"blocks\.1\.w_out"):
        Runtime(params, config)


def test_progress_counts_the_bytes_of_the_file_to_the_end():
    config, seen = SHAPES["plain"], []
    params: Params = random_params(config, 1, "f16")
    Runtime(params, config, progress=lambda done, total: seen.append((done, total)))
    total = sum(leaf.nbytes for _, leaf in params.items())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert {t for _, t in seen} == {total}
    assert seen[-1] == (total, total)


def test_a_cache_that_does_not_fit_is_said_with_its_size(monkeypatch):
    def none_left(shape, dtype):
        raise MemoryError

    monkeypatch.setattr(cache, "aligned_zeros", none_left)
    config = tiny_config(n_head=2)  # whose keys fill their panels
    said = r"3 x 64 positions in f16: .*does not fit into memory; wanted 49152 bytes; .*kv_dtype.*fewer prompts"
    with pytest.raises(GenerationError, match=said):
        Runtime(random_params(config, 0), config, kv_dtype="f16").session(3, 64)
