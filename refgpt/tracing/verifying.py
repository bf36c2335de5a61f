"""Holding an engine to the spec, activation by activation.

The engine's activations are recorded once. Then the spec runs in float64 with every activation forced to the engine's
as soon as it has been looked at, so that each one is judged by what the engine itself computed it from: a fault shows
where it happens and nowhere else. A second, free run of the spec shows what all the rounding adds up to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refgpt.numbers.tree import ParamTree
from refgpt.runtime.engine import Engine
from refgpt.spec import forward
from refgpt.spec.bounds import tap_bound
from refgpt.tracing.recording import record


@dataclass(frozen=True)
class TapResult:
    """One activation of the engine beside the spec's.

    Attributes
    ----------
    name : str
    error : float
        Largest absolute difference.
    bound : float
        What is allowed where the difference comes closest to it.
    ratio : float
        Difference over bound there; NaN if any difference is.
    cosine : float
        Of the angle between the two, as vectors.
    """

    name: str
    error: float
    bound: float
    ratio: float
    cosine: float

    @property
    def ok(self) -> bool:
        """Whether every element is within its bound."""
        return self.ratio <= 1


@dataclass(frozen=True)
class Report:
    """What ``verify`` found.

    Attributes
    ----------
    taps : tuple of TapResult
        In the order of the forward pass.
    logit_error : float
        Largest difference of the logits when the spec runs by itself, over the standard deviation of its logits.
    same_argmax : float
        Share of the positions at which both hold the same token for the likeliest.
    """

    taps: tuple[TapResult, ...]
    logit_error: float
    same_argmax: float

    @property
    def first_broken(self) -> TapResult | None:
        """The first activation beyond its bound."""
        return next((tap for tap in self.taps if not tap.ok), None)

    def lines(self) -> Iterator[str]:
        """The report as a table, one line an activation."""
        yield f"{'activation':<22} {'max error':>10} {'bound':>10} {'of bound':>9} {'cosine':>14}"
        for tap in self.taps:
            yield (
                f"{tap.name:<22} {tap.error:10.2e} {tap.bound:10.2e} {tap.ratio:9.2%} {tap.cosine:14.11f}"
                f"  {'ok' if tap.ok else 'BROKEN'}"
            )
        first = self.first_broken
        yield f"first divergence: {first.name if first else 'none'}"
        yield (
            f"end to end: logits differ by at most {self.logit_error:.2e} of their standard deviation; "
            f"same likeliest token at {self.same_argmax:.0%} of the positions"
        )


def verify(engine: Engine, params: ParamTree, ids: Sequence[int], prefix_len: int = 0) -> Report:
    """Run an engine and the float64 spec on one text.

    Parameters
    ----------
    engine : Engine
        A float32 engine. The bounds are those of its cache (``kv_dtype``) and of its sums (``sum_chunk``).
    params : Params
        The weights as the engine keeps them.
    ids : sequence of int [t]
    prefix_len : int
        So many leading positions see one another.

    Returns
    -------
    Report

    Raises
    ------
    RefgptError
        If the ids cannot be used.
    """
    config = engine.config
    trace = record(engine, ids, prefix_len)
    results = []

    def judge_and_force(name: str, want: np.ndarray) -> np.ndarray:
        bound = tap_bound(name, trace, params, config, prefix_len, engine.kv_dtype, engine.sum_chunk)
        results.append(_judge(name, trace[name], want, bound))
        return trace[name]

    forward(params, config, ids, prefix_len, np.float64, judge_and_force)
    free = forward(params, config, ids, prefix_len)
    logits = trace["logits"]
    return Report(
        taps=tuple(results),
        logit_error=float(np.abs(logits - free).max() / free.std()),
        same_argmax=float((logits.argmax(-1) == free.argmax(-1)).mean()),
    )


def _judge(name: str, got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> TapResult:
    error = np.abs(got - want)
    bound = np.broadcast_to(bound, error.shape)
    # Nothing over nothing is fine; something over nothing, NaN included, is not.
    ratio = np.divide(error, bound, out=np.where(error == 0, 0, np.inf), where=bound > 0)
    worst = np.unravel_index(int(ratio.argmax()), ratio.shape)  # argmax takes NaN for the largest
    got = got.astype(np.float64)
    lengths = float(np.linalg.norm(got) * np.linalg.norm(want))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = float(np.vdot(got, want) / lengths) if lengths else 1.0
    return TapResult(name, float(error.max()), float(bound[worst]), float(ratio[worst]), cosine)
