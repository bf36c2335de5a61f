"""CTranslate2. Its interface has no single step, so the times are those at which its tokens arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np

from benchmarks.peers.engines import n_embedding


class CTranslate2:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        self.generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads
        )
        width = {"int8": 1, "float32": 4}[precision]
        self.n_bytes = (path / "model.bin").stat().st_size - width * n_embedding(path.parent)
        self.about = {"ctranslate2": ctranslate2.__version__, "compute type": self.generator.compute_type}

    def text(self, ids: Sequence[int], n_new: int) -> tuple[float, float]:
        start, arrivals = self._generate([ids], n_new)
        return arrivals[0] - start, arrivals[-1] - arrivals[0]

    def texts(self, prompts: Sequence[Sequence[int]], n_new: int) -> float:
        _, arrivals = self._generate(prompts, n_new)
        return arrivals[-1] - arrivals[0]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return np.array(self.generator.forward_batch([list(ids)]))[0, -1]

    def _generate(self, prompts: Sequence[Sequence[int]], n_new: int) -> tuple[float, list[float]]:
        """When it began, and when each step's last token was there: the first ends the prompt, ``n_new`` follow."""
        arrivals = [0.0] * (n_new + 1)

        def arrived(step) -> bool:
            arrivals[step.step] = time.perf_counter()
            return False

        start = time.perf_counter()
        self.generator.generate_batch(
            [[f"<{i}>" for i in ids] for ids in prompts],
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            min_length=n_new + 1,
            max_length=n_new + 1,
            callback=arrived,
        )
        if not all(arrivals):
            raise RuntimeError(f"{n_new + 1} steps were asked for, {sum(map(bool, arrivals))} came")
        return start, arrivals


load = CTranslate2
