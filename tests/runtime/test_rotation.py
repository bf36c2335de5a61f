"""Rotary tables: the spec's angles, with bits that no library chooses."""

import hashlib

import numpy as np
import pytest

from refgpt.runtime import Runtime
from refgpt.runtime.kernel_engine import FEW_POSITIONS
from refgpt.runtime.rotation import rotary_tables
from refgpt.spec import rotary_angles
from refgpt.spec.bounds.ops import U
from tests.helpers.tiny import random_params, tiny_config


@pytest.mark.parametrize(("d_rotary", "n_ctx"), [(64, 2048), (32, 512), (2, 1), (6, 3), (14, 300), (256, 5000)])
def test_tables_are_cosines_and_sines_of_the_specs_angles(d_rotary, n_ctx):
    cos, sin = rotary_tables(d_rotary, n_ctx)
    assert cos.shape == sin.shape == (n_ctx, d_rotary)
    angles = rotary_angles(np.arange(n_ctx), d_rotary)
    # Rounded once to float32, after a float64 error of some roundings of the largest angle.
    room = U + 8 * n_ctx * 2.0**-53
    for table, want in ((cos[:, ::2], np.cos(angles)), (sin[:, 1::2], np.sin(angles))):
        assert (np.abs(table - want) <= room).all()
    assert (cos[:, 1::2] == cos[:, ::2]).all()
    assert (sin[:, ::2] == -sin[:, 1::2]).all()


def test_the_tables_of_gpt_j_have_these_bits_everywhere():
    cos, sin = rotary_tables(64, 2048)
    digest = hashlib.sha256(cos.astype("<f4").tobytes() + sin.astype("<f4").tobytes()).hexdigest()
    assert digest.startswith("9c5cd9b54b9e8ed3")


@pytest.mark.parametrize("d_rotary", [2, 10, 64])
def test_the_bits_of_a_position_do_not_depend_on_how_many_there_are(d_rotary):
    whole = rotary_tables(d_rotary, 4099)
    for n in (1, 2, 3, 64, 1000, 2048, 2049, 4098):
        for table, want in zip(rotary_tables(d_rotary, n), whole, strict=True):
            assert table.dtype == np.float32 and table.flags.c_contiguous
            assert table.tobytes() == want[:n].tobytes()


def test_tables_grow_with_what_is_asked_for():
    """A configuration may name a million positions beside a file of half a megabyte."""
    config = tiny_config(n_layer=1, d_model=512, n_head=2, d_rotary=256, n_ctx=1 << 20)
    engine = Runtime(random_params(config, 1), config, threads=1)
    first = engine.tables(1)
    assert len(first[0]) == FEW_POSITIONS and engine.tables(FEW_POSITIONS) is first
    grown = engine.tables(FEW_POSITIONS + 1)
    assert len(grown[0]) == 2 * FEW_POSITIONS
    assert all(np.array_equal(after[:FEW_POSITIONS], before) for after, before in zip(grown, first, strict=True))
    for n_ctx, n in ((100, 100), (3000, 2500)):
        small = tiny_config(n_layer=1, n_ctx=n_ctx)
        assert len(Runtime(random_params(small, 1), small, threads=1).tables(n)[0]) == n_ctx


def test_a_session_may_have_room_for_a_million_positions():
    """Its rows pass from one table to the next, recorded passes included, with the bits of a session that is small."""
    config = tiny_config(n_layer=1, n_ctx=1 << 20)
    engine = Runtime(random_params(config, 1), config, threads=1)
    ids = (np.arange(FEW_POSITIONS + 4) % config.n_vocab).tolist()
    logits = []
    for capacity in (len(ids), 1 << 20):
        session = engine.session(1, capacity)
        session.prefill(0, ids[: FEW_POSITIONS - 2])
        logits.append(np.concatenate([session.decode([0], [i]) for i in ids[FEW_POSITIONS - 2 :]]))
        engine = Runtime(random_params(config, 1), config, threads=1)  # so that the next one grows, too
    assert np.array_equal(*logits)
    assert np.array_equal(logits[0], engine.logits(ids)[FEW_POSITIONS - 2 :])
