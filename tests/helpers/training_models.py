"""What is trained in the tests: a small model on disk, and batches of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import refgpt
from refgpt import training
from refgpt.numbers.tree import ParamTree
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=5)
BACKENDS = ("c", "numpy")


def model_in(directory: Path, params: ParamTree = PARAMS, **options) -> refgpt.Model:
    """The model, from files."""
    return refgpt.load(write_model(directory / "model", CONFIG, params), **options)


def batch_of(n: int, length: int = 9, seed: int = 0, prefix_len: int = 0) -> training.Batch:
    """Texts of different lengths, with some targets left out."""
    stream = np.random.RandomState(seed)
    ids = stream.randint(0, CONFIG.n_vocab, (n, length))
    labels = np.where(stream.random_sample(ids.shape) < 0.3, -100, ids)
    lens = length - np.arange(n) % 3
    return training.Batch(ids, labels, np.full(n, prefix_len), lens)


def one_by_one(batch: training.Batch) -> list[training.Batch]:
    """The same texts, each a batch of its own without padding."""
    ends = batch.lens.tolist()
    return [
        training.Batch(batch.ids[i : i + 1, :n], batch.labels[i : i + 1, :n], batch.prefix_lens[i : i + 1])
        for i, n in enumerate(ends)
    ]
