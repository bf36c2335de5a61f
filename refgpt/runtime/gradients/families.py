"""The families that have a backward pass in kernels."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from refgpt.runtime.gradients import gpt2, gpt_neo, gpt_neox, gptj
from refgpt.runtime.gradients.activations import Activations
from refgpt.runtime.gradients.ops import Ops
from refgpt.spec.gradients import LeafGradients
from refgpt.spec.taps import Tap, no_tap


class Family(Protocol):
    """A module that runs a family's backward pass, beside the one of ``refgpt.spec.gradients`` that specifies it.

    Attributes
    ----------
    READS : tuple of str
        Names of a block's activations that ``backward`` reads.
    HEAD : str
        The leaf that gives the logits.
    """

    READS: tuple[str, ...]
    HEAD: str

    def backward(
        self,
        params: Any,
        config: Any,
        ids: np.ndarray,
        activations: Activations,
        dlast: np.ndarray,
        leaves: LeafGradients,
        ops: Ops,
        tap: Tap = no_tap,
    ) -> None:
        """Gradients of leaves and activations: see ``refgpt.runtime.gradients.gptj.backward``."""
        ...


#: By family, as ``refgpt.spec.gradients.FAMILIES``.
FAMILIES: dict[str, Family] = {"gptj": gptj, "gpt2": gpt2, "gpt_neo": gpt_neo, "gpt_neox": gpt_neox}
