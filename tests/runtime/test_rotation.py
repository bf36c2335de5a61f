"""Rotary tables: the spec's angles, with bits that no library chooses."""

import hashlib

import numpy as np
import pytest

from refgpt.runtime.rotation import rotary_tables
from refgpt.spec import rotary_angles
from refgpt.spec.bounds.ops import U


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
