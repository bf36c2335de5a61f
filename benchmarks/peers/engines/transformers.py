"""transformers, on PyTorch: the calls that its ``generate`` makes, a pass over the prompt and one for each token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.peers.engines import seconds

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Transformers:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[precision]).eval()
        self.n_bytes = sum(p.nbytes for p in self.model.parameters())
        if not self.model.config.tie_word_embeddings:
            self.n_bytes -= self.model.get_input_embeddings().weight.nbytes
        self.about = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "attention": self.model.config._attn_implementation,
        }

    def text(self, ids: Sequence[int], n_new: int) -> tuple[float, float]:
        return self._run([ids], n_new)

    def texts(self, prompts: Sequence[Sequence[int]], n_new: int) -> float:
        return self._run(prompts, n_new)[1]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._pass([list(ids)], None).logits[0, -1].float().numpy()

    def _run(self, prompts: Sequence[Sequence[int]], n_new: int) -> tuple[float, float]:
        cache = None

        def prefill() -> None:
            nonlocal cache
            cache = self._pass([list(ids) for ids in prompts], None).past_key_values

        def decode() -> None:
            for i in range(n_new):
                self._pass([[ids[i % len(ids)]] for ids in prompts], cache)

        return seconds(prefill), seconds(decode)

    def _pass(self, ids: list[list[int]], cache):
        return self.model(input_ids=torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)


load = Transformers
