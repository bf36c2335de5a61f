"""What is measured and how it is said; never how fast this machine is."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt._common.errors import GenerationError
from refgpt.cli import main
from refgpt.evaluation.speed import Measurement, measure
from refgpt.runtime import Runtime
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(n_ctx=40)
ENGINE = Runtime(random_params(CONFIG, 1), CONFIG, threads=1, kv_dtype="f16")


def test_every_test_is_run_as_often_as_asked_and_in_order():
    rows = list(measure(ENGINE, prompts=[8, 40], writes=[3, 5], depths=[0, 35], repetitions=2))
    assert [row.test for row in rows] == ["pp8", "pp40", "tg3", "tg5", "tg3@35", "tg5@35"]
    assert all(len(row.rates) == len(row.read_rates) == 2 and min(row.rates + row.read_rates) > 0 for row in rows)
    assert [bool(row.n_read) for row in rows] == [False, False, True, True, True, True]


def test_what_a_token_reads_is_the_weights_but_for_the_embedding_and_the_cache_before_it():
    c, f, v = CONFIG.d_model, CONFIG.d_ff, CONFIG.n_vocab
    padded = -(-v // 16) * 16  # the head, in whole panels
    block = 4 * c * c + 2 * c * f + 3 * c + f
    assert ENGINE.bytes_per_token == 4 * (2 * block + 2 * c + padded * c + v)
    assert ENGINE.n_bytes == ENGINE.bytes_per_token + 4 * v * c
    d_head = -(-CONFIG.d_head // 16) * 16  # of values, in whole panels
    assert ENGINE.cache_bytes(10) == 10 * 2 * CONFIG.n_head * (CONFIG.d_head + d_head) * 2
    (row,) = measure(ENGINE, prompts=[], writes=[4], depths=[20], repetitions=1)
    assert row.n_read == ENGINE.bytes_per_token + ENGINE.cache_bytes(22)


def test_figures_are_medians_and_the_share_is_taken_pair_by_pair():
    row = Measurement("tg8", (10.0, 20.0, 40.0), 100, (1000.0, 4000.0, 16000.0))
    assert row.rate == 20
    assert row.share == 0.5  # of 1, 0.5 and 0.25
    assert row.spread == pytest.approx(np.std([10, 20, 40], ddof=1))


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": [41]},
        {"prompts": [0]},
        {"writes": [0]},
        {"depths": [-1]},
        {"writes": [10], "depths": [31]},
        {"repetitions": 0},
    ],
)
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(GenerationError):
        measure(ENGINE, **({"prompts": [8], "writes": [4]} | options))  # at the call


def test_the_command_prints_a_row_a_test(capsys):
    assert main(["bench", "-p", "8,16", "-n", "4", "-d", "0,20", "-r", "1", "-t", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "f16" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["test", "pp8", "pp16", "tg4", "tg4@20"]
    assert lines[-1].endswith("%")


def test_the_command_refuses_what_does_not_fit(capsys):
    assert main(["bench", "-p", "9999999"]) == 1
    assert "refgpt: error" in capsys.readouterr().err
