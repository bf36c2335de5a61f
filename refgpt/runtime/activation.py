"""The kernels of the activations that a configuration can name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refgpt import kernels
from refgpt.spec.ops import ACTIVATIONS, gelu_erf

#: As ``refgpt.spec.ops.ACTIVATIONS``.
KERNELS: dict[str, Callable[..., np.ndarray]] = {
    name: kernels.gelu_erf if formula is gelu_erf else kernels.gelu for name, formula in ACTIVATIONS.items()
}
