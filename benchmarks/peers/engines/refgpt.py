"""refgpt itself, through the engine's own sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import refgpt
from benchmarks.peers.engines import CAPACITY, seconds
from refgpt import kernels
from refgpt.runtime.engine import Session

DTYPES = {"f16": None, "bf16": "bf16", "f32": "f32", "q8": "q8", "q4": "q4", "q3": "q3"}  # the files are float16


class Refgpt:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        # Keys and values in 16 bits, as llama.cpp and ggml keep them; where all else is float32, so are they.
        kv_dtype = "f32" if precision == "f32" else "f16"
        compute = "bf16" if precision == "bf16" else "f32"
        self.model = refgpt.load(path, dtype=DTYPES[precision], threads=threads, kv_dtype=kv_dtype, compute=compute)
        self.sessions: dict[int, Session] = {}
        ops = sorted({kernel.op for kernel in kernels.list_kernels()})
        self.n_bytes = self.model.engine.bytes_per_token
        self.about = {"refgpt": refgpt.__version__, "isa": sorted({kernels.active(op).isa for op in ops})}

    def text(self, ids: Sequence[int], n_new: int) -> tuple[float, float]:
        session = self._session(1)
        return seconds(lambda: session.prefill(0, ids)), seconds(lambda: self._decode(session, [ids], n_new))

    def texts(self, prompts: Sequence[Sequence[int]], n_new: int) -> float:
        session = self._session(len(prompts))
        for i, ids in enumerate(prompts):
            session.prefill(i, ids)
        return seconds(lambda: self._decode(session, prompts, n_new))

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._session(1).prefill(0, ids)

    def _session(self, n_seqs: int) -> Session:
        """Room for so many texts; made once. A prompt empties its slot."""
        if n_seqs not in self.sessions:
            self.sessions[n_seqs] = self.model.engine.session(n_seqs, CAPACITY)
        return self.sessions[n_seqs]

    @staticmethod
    def _decode(session: Session, prompts: Sequence[Sequence[int]], n_new: int) -> None:
        for i in range(n_new):
            session.decode(range(len(prompts)), [ids[i % len(ids)] for ids in prompts])


load = Refgpt
