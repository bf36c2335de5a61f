"""The families that run in kernels, and the interface through which a session uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from refgpt.kernels import Program
from refgpt.runtime import gpt2, gpt_neo, gpt_neox, gptj
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.cache import KVCache
from refgpt.runtime.taps import TapView
from refgpt.spec.taps import Tap, no_tap


class Family(Protocol):
    """A module that runs a family of models in kernels, beside the one of ``refgpt.spec`` that specifies it."""

    @property
    def INPUTS(self) -> Mapping[str, tuple[str, ...]]:
        """For each activation that is multiplied with matrices, the names of these; in the order of the pass."""
        ...

    def tables(self, config: Any, n_positions: int) -> Any:
        """What ``forward`` takes from the configuration alone, such as angles, for ``n_positions`` positions."""
        ...

    def embed(self, params: Any, config: Any, batch: Batch, to: Buffers, tap: TapView) -> np.ndarray:
        """What enters the first block. -> [t, c]"""
        ...

    def layer(
        self,
        i: int,
        x: np.ndarray,
        params: Any,
        config: Any,
        batch: Batch,
        kv: tuple[np.ndarray, np.ndarray],
        tables: Any,
        to: Buffers,
        tap: TapView,
    ) -> np.ndarray:
        """Block ``i``, whose keys and values are those of its layer. x [t, c] -> [t, c], in x's place"""
        ...

    def forward(
        self,
        params: Any,
        config: Any,
        batch: Batch,
        cache: KVCache,
        tables: Any,
        buffers: Buffers,
        tap: Tap = no_tap,
        program: Program | None = None,
        params_for_logits: Any = None,
    ) -> np.ndarray:
        """Logits of some rows after one pass over all of them: see ``refgpt.runtime.gptj.forward``."""
        ...


#: By family, as ``refgpt.spec.FAMILIES``.
FAMILIES: dict[str, Family] = {"gpt2": gpt2, "gpt_neo": gpt_neo, "gptj": gptj, "gpt_neox": gpt_neox}
