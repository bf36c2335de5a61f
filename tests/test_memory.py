"""Weights that take more memory than this process can have: refused before any is read, by what they will take."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import refgpt
import refgpt.cli
from refgpt._common import memory
from refgpt._common.errors import CheckpointError
from refgpt.numbers import casting, packing
from refgpt.numbers.mapped import files_of
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
STORED = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
KEPT = {"c": (None, "f32", "f16", "q8", "q4", "q3"), "numpy": (None, "f32", "f16", "q8", "q4", "q3", "f64")}


@pytest.fixture(scope="module", params=[*STORED, "packed"])
def path(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    stored = STORED.get(request.param, np.float16)
    params = random_params(CONFIG, 3).map(lambda _, leaf: leaf.astype(stored))
    source = write_model(directory / "source", CONFIG, params)
    if request.param in STORED:
        return source
    assert refgpt.cli.main(["convert", str(source), str(directory / "packed"), "--dtype", "q4"]) == 0
    return directory / "packed"


def limit(monkeypatch, n_bytes):
    monkeypatch.setattr(memory, "obtainable_memory", lambda: n_bytes)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize(("backend", "dtype"), [(backend, dtype) for backend in KEPT for dtype in KEPT[backend]])
def test_what_is_planned_is_what_is_taken(monkeypatch, path, backend, dtype, copy):
    kept = refgpt.load(path, backend=backend, dtype=dtype, copy=copy).engine.kept()
    taken = sum(leaf.nbytes for _, leaf in kept.items() if not files_of([leaf]))
    limit(monkeypatch, taken)
    refgpt.load(path, backend=backend, dtype=dtype, copy=copy)
    if taken:
        limit(monkeypatch, taken - 1)
        with monkeypatch.context() as no_reading:
            for module, name in ((packing, "check_finite"), (casting, "narrowed"), (packing, "in_memory")):
                no_reading.setattr(module, name, lambda *_: pytest.fail("a leaf was read"))
            with pytest.raises(CheckpointError, match="the weights take more memory than this process can"):
                refgpt.load(path, backend=backend, dtype=dtype, copy=copy, verify=False)


def test_the_walls(monkeypatch):
    def table(available):
        return f"MemTotal: 1000 kB\nMemAvailable: {available} kB\nSwapTotal: 500 kB\n"

    class Meminfo:
        text = table(10)

        def read_text(self):
            return self.text

    monkeypatch.setattr(memory, "MEMINFO", Meminfo())
    monkeypatch.setattr(memory, "memory_limits", list)
    monkeypatch.setattr(memory, "_own_limits", list)
    assert memory.obtainable_memory() == 1500 * 1024
    monkeypatch.setattr(memory, "memory_limits", lambda: [(900 * 1024, 7)])  # swapping or not
    assert memory.obtainable_memory() == 7
    monkeypatch.setattr(memory, "_own_limits", lambda: [(900 * 1024, 5)])
    assert memory.obtainable_memory() == 5


def test_what_can_only_be_had_by_swapping_is_said(monkeypatch, caplog, path):
    limit(monkeypatch, 1 << 40)
    monkeypatch.setattr(memory, "machine_memory", lambda: (1 << 40, 5))
    with caplog.at_level(logging.WARNING, "refgpt"):
        refgpt.load(path, copy=True)
    assert "but only 5 B can be had without swapping" in caplog.text
