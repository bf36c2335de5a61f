"""Small files of RAFT's shape, and a model that answers as it is told."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from refgpt.evaluation.raft_tasks import FIELDS
from refgpt.tokenizers import Tokenizer
from tests.helpers.tiny import tiny_config

LABELS = ("no", "yes")


def write_task(folder: Path, name: str, labels: list[str], file: str = "{}/train.csv") -> Path:
    """A task whose row ``i`` has ``labels[i]`` and texts that tell its number and label."""
    path = folder / file.format(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow([*FIELDS[name], "Label", "ID"])
        for i, label in enumerate(labels):
            rows.writerow([*(f"{field[0]}{i}, which is {label}" for field in FIELDS[name]), label, i])
    return path


def write_settings(folder: Path, instructions: str = "Answer.\nPossible labels:\n1. no\n2. yes") -> None:
    """A file of settings as HELM reads it: here every task has its columns in another order."""
    fields = {name: list(columns[::-1]) for name, columns in FIELDS.items()}
    lines = [json.dumps(fields), json.dumps({name: instructions for name in FIELDS})]
    (folder / "prompt_construction_settings.json").write_text("\n".join(lines) + "\n")


class Bytes(Tokenizer):
    """One token a byte, and one that ends a text."""

    def __init__(self) -> None:
        super().__init__({**{i: bytes([i]) for i in range(256)}, 256: b""}, 256)

    def _encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode())


class Told:
    """An engine that writes ``answer(prompt)`` and then ends, and finds the label of ``answer`` the likeliest."""

    kv_dtype = "f32"

    def __init__(self, answer, n_ctx=4096):
        self.config, self.answer, self.prompts = tiny_config(n_vocab=257, n_ctx=n_ctx, bos_id=256), answer, []

    def session(self, n_seqs, capacity):
        self.left, self.scripts = [[]] * n_seqs, [None] * n_seqs
        return self

    def step(self, parts, n_rows):
        rows = []
        for (seq, ids, prefix_len), n in zip(parts, n_rows, strict=True):
            if self.scripts[seq] is None:
                prompt = Bytes().decode(ids)
                self.prompts.append((prompt, prefix_len == len(ids)))
                self.scripts[seq] = [*self.answer(prompt).encode(), 256]
                self.left[seq] = list(self.scripts[seq])
            rows += [self._row(seq) for _ in range(n)]
        return np.stack(rows)

    def fork(self, seq, slots):
        self.scripts[slots[0]] = self.scripts[seq]
        return slots[0]

    def truncate(self, seq, n):
        self.left[seq] = self.scripts[seq][1:]

    def release(self, seq):
        self.scripts[seq] = None

    def _row(self, seq):
        row = np.zeros(257, np.float32)
        row[self.left[seq].pop(0) if self.left[seq] else 256] = 9
        return row


def model_told(answer, **options):
    """A model for the tests, and its prompts in ``model.engine.prompts``."""
    return SimpleNamespace(engine=Told(answer, **options), tokenizer=Bytes(), mask="prefix")
