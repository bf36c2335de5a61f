"""What transformers computes from a directory that is written here: its logits are recorded beside."""

import numpy as np
import pytest

import refgpt
from refgpt._open import open_model
from refgpt.conversion import gguf
from tests.goldens.recorders.conversion import CASES, GOLDENS, IDS, write

RECORDED = np.load(GOLDENS)


def test_every_case_is_recorded():
    assert set(RECORDED) == set(CASES) - {"prefix"}


@pytest.mark.parametrize("case", RECORDED)
def test_logits_are_those_of_transformers(tmp_path, case):
    """Another order of sums: five digits, which only shows that nothing gross is wrong."""
    written = write(case, tmp_path)
    (tmp_path / "gguf").mkdir()
    gguf.write(*open_model(written), None, tmp_path / "gguf")
    for path in (written, tmp_path / "gguf"):
        np.testing.assert_allclose(refgpt.load(path).logits(IDS), RECORDED[case], rtol=1e-5, atol=1e-4)
