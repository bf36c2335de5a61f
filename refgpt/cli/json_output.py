"""The output of ``--json``: one object on standard output."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from refgpt.tracing import Report


def print_json(result: Mapping[str, Any]) -> None:
    """Print an object as JSON. NaN and infinities, which JSON lacks, become null."""
    print(json.dumps(_finite(result), indent=2, allow_nan=False))


def verify_record(report: Report) -> dict[str, Any]:
    """The result of a comparison with the spec, with the keys that ``verify`` and ``inspect`` share."""
    first = report.first_broken
    return {
        "ok": first is None,
        "first_broken": first and first.name,
        "activations": [asdict(tap) | {"ok": bool(tap.ok)} for tap in report.taps],
        "logit_error": report.logit_error,
        "same_argmax": report.same_argmax,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
