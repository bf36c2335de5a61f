"""What the results of an engine depend on, so that what was kept of them is only used where it is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from refgpt.numbers.fingerprints import fingerprint
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig


def identity_of(
    backend: str,
    config: AnyConfig,
    params: ParamTree,
    kv_dtype: str,
    digests: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """See ``Engine.identity``.

    Parameters
    ----------
    backend : str
        What computes, and in what.
    digests : callable
        See ``refgpt.numbers.fingerprints.fingerprint``.
    """
    shape: dict[str, Any] = asdict(config)  # type: ignore[call-overload]
    return {
        "backend": backend,
        "model_type": config.model_type,
        "config": {name: list(value) if isinstance(value, tuple) else value for name, value in shape.items()},
        "kv_dtype": kv_dtype,
        "weights": fingerprint(params, digests),
    }
