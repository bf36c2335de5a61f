"""ctransformers: ggml as it was in 2023, the last of its line that ran GPT-J."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ctransformers import AutoModelForCausalLM

from benchmarks.peers.engines import n_embedding, seconds


class CTransformers:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        warnings.simplefilter("ignore", UserWarning)  # reset() is called deprecated, and nothing replaces it
        self.model = AutoModelForCausalLM.from_pretrained(str(path), model_type="gptj", threads=threads, batch_size=512)
        self.n_bytes = path.stat().st_size - n_embedding(path.parent) * 18 // 32  # q4_0: 18 bytes for 32 weights
        self.about = {"ctransformers": version("ctransformers")}

    def text(self, ids: Sequence[int], n_new: int) -> tuple[float, float]:
        self.model.reset()

        def decode() -> None:
            for i in range(n_new):
                self.model.eval([ids[i % len(ids)]])

        return seconds(lambda: self.model.eval(ids)), seconds(decode)

    def texts(self, prompts: Sequence[Sequence[int]], n_new: int) -> None:
        return None  # one text at a time

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.logits)


load = CTransformers
