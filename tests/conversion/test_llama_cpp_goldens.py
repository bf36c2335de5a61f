"""What llama.cpp computes from the GGUF files that are written here: its logits are recorded beside."""

import numpy as np
import pytest

import refgpt
from tests.goldens.recorders.llama_cpp import CASES, GOLDENS, IDS, digest, write

RECORDED = np.load(GOLDENS)


def test_every_case_is_recorded():
    assert set(RECORDED) == {*CASES, *(f"{case} sha256" for case in CASES)}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_llama_cpp(tmp_path, case):
    """Three digits of the largest logit: ggml looks GELU up in a table of float16, GPT-NeoX's by its tanh form.

    In a file of float16 it rounds activations to float16 too.
    """
    path = write(case, tmp_path)
    want = RECORDED[case]
    assert want.shape == (len(IDS), CASES[case][0].n_vocab)
    assert np.abs(refgpt.load(path).logits(IDS) - want).max() < 1e-3 * np.abs(want).max()
    same = digest(path) == str(RECORDED[f"{case} sha256"])
    assert same, "llama.cpp has read another file: record llama_cpp again"
