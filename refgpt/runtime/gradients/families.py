"""The families that have a backward pass in kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from refgpt.runtime.gradients import gptj
from refgpt.runtime.gradients.ops import Ops
from refgpt.spec.gradients import LeafGradients
from refgpt.spec.taps import Tap, no_tap


class Family(Protocol):
    """A module that runs a family's backward pass, beside the one of ``refgpt.spec.gradients`` that specifies it."""

    def backward(
        self,
        params: Any,
        config: Any,
        ids: np.ndarray,
        trace: Mapping[str, np.ndarray],
        dlogits: np.ndarray,
        leaves: LeafGradients,
        ops: Ops,
        tap: Tap = no_tap,
    ) -> None:
        """Gradients of leaves and activations: see ``refgpt.spec.gradients.gptj.backward``."""
        ...


#: By family, as ``refgpt.spec.gradients.FAMILIES``.
FAMILIES: dict[str, Family] = {"gptj": gptj}
