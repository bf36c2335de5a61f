"""llama.cpp, through llama-cpp-python's binding of its C functions; it runs the twin, see ``twin.py``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp as c
import numpy as np
from gguf import GGUFReader

from benchmarks.peers.engines import CAPACITY, seconds

N_BATCH = 512  # llama.cpp's own default for a pass over a prompt


@c.llama_log_callback
def say_nothing(level, text, user_data) -> None:
    pass


class LlamaCpp:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        c.llama_log_set(say_nothing, ctypes.c_void_p(0))
        c.llama_backend_init()
        self.threads = threads
        params = c.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = c.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.contexts: dict[int, ctypes.c_void_p] = {}
        tensors = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
        looked_up = {"token_embd.weight", "position_embd.weight"}
        if "output.weight" not in tensors:  # the embedding is the head too
            looked_up.remove("token_embd.weight")
        self.n_bytes = sum(n for name, n in tensors.items() if name not in looked_up)
        self.about = {"llama-cpp-python": c.__version__, "system": c.llama_print_system_info().decode()}

    def text(self, ids: Sequence[int], n_new: int) -> tuple[float, float]:
        context = self._context(1)
        return seconds(lambda: self._prefill(context, 0, ids)), seconds(lambda: self._decode(context, [ids], n_new))

    def texts(self, prompts: Sequence[Sequence[int]], n_new: int) -> float:
        context = self._context(len(prompts))
        for i, ids in enumerate(prompts):
            self._prefill(context, i, ids)
        return seconds(lambda: self._decode(context, prompts, n_new))

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        context = self._context(1)
        self._prefill(context, 0, ids)
        return np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), (self.n_vocab,)).copy()

    def _context(self, n_seqs: int) -> ctypes.c_void_p:
        """A context with room for so many texts, emptied; made once, with llama.cpp's defaults."""
        if n_seqs not in self.contexts:
            params = c.llama_context_default_params()
            params.n_ctx = CAPACITY * n_seqs
            params.n_seq_max = n_seqs
            params.n_batch = params.n_ubatch = N_BATCH
            params.n_threads = params.n_threads_batch = self.threads
            self.contexts[n_seqs] = c.llama_init_from_model(self.model, params)
        c.llama_memory_clear(c.llama_get_memory(self.contexts[n_seqs]), True)
        return self.contexts[n_seqs]

    def _prefill(self, context: ctypes.c_void_p, seq: int, ids: Sequence[int]) -> None:
        n = len(ids)
        self._pass(context, ids, range(n), [seq] * n, [False] * (n - 1) + [True])

    def _decode(self, context: ctypes.c_void_p, prompts: Sequence[Sequence[int]], n_new: int) -> None:
        n = len(prompts)
        for i in range(n_new):
            new = [ids[i % len(ids)] for ids in prompts]
            self._pass(context, new, [len(ids) + i for ids in prompts], range(n), [True] * n)

    def _pass(self, context, ids, positions, seqs, wanted) -> None:
        batch = c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, (token, position, seq, logits) in enumerate(zip(ids, positions, seqs, wanted, strict=True)):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, seq
        failed = c.llama_decode(context, batch)
        c.llama_synchronize(context)
        c.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode: {failed}")


load = LlamaCpp
