"""Comparing an engine with the spec, activation by activation.

The engine's activations are recorded once. Then the spec runs in float64, and every activation is set to the engine's
value after it was compared. So each one is checked against the engine's own inputs, and a fault shows only where it
happens. A second run of the spec by itself shows the accumulated rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from refgpt._common.arguments import flag, function_of, instance_of, whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.float_state import default_float_state
from refgpt._common.progress import counted
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.engine import Engine
from refgpt.spec import forward, leaf_shapes, tap_names, tap_shapes
from refgpt.spec.bounds import tap_bound
from refgpt.spec.ids import check_prefix
from refgpt.tracing.memory import check_fits, dtype_of, trace_bytes
from refgpt.tracing.recording import record
from refgpt.tracing.subjects import engine_of, ids_of

#: Number of float64 copies in memory at a time: of the largest activation for its bound, of the largest matrix for its
#: product.
COPIES_OF_ACTIVATION, COPIES_OF_MATRIX = 16, 3


@dataclass(frozen=True)
class TapResult:
    """One activation of the engine compared with the spec's.

    Attributes
    ----------
    name : str
    error, bound : float
        Absolute difference and bound of the element with the largest ratio of the two.
    ratio : float
        ``error / bound`` of that element; 0 if both are 0, NaN if any difference is NaN.
    max_error : float
        Largest absolute difference of all elements, often of an element with a wide bound.
    cosine : float
        Cosine of the angle between the two, as vectors.
    """

    name: str
    error: float
    bound: float
    ratio: float
    max_error: float
    cosine: float

    @property
    def ok(self) -> bool:
        """Whether every element is within its bound."""
        return self.ratio <= 1

    def line(self) -> str:
        """A row of the report's table, whose columns ``Report.HEAD`` names."""
        return (
            f"{self.name:<22} {self.error:10.2e} {self.bound:10.2e} {self.ratio:9.2%} {self.max_error:10.2e} "
            f"{self.cosine:14.11f}  {'ok' if self.ok else 'BROKEN'}"
        )


@dataclass(frozen=True)
class Report:
    """The result of ``verify``.

    Attributes
    ----------
    taps : tuple of TapResult
        In the order of the forward pass.
    logit_error : float
        Largest difference of the logits when the spec runs by itself, divided by the standard deviation of its logits.
    same_argmax : float
        Share of the positions at which both have the same most likely token.
    """

    #: The head of the table: error, bound and share are those of the element that comes closest to its bound.
    HEAD: ClassVar = f"{'activation':<22} {'error':>10} {'bound':>10} {'of bound':>9} {'max error':>10} {'cosine':>14}"

    taps: tuple[TapResult, ...]
    logit_error: float
    same_argmax: float

    @property
    def first_broken(self) -> TapResult | None:
        """The first activation beyond its bound."""
        return next((tap for tap in self.taps if not tap.ok), None)

    def lines(self) -> Iterator[str]:
        """The report as a table, one line per activation, with the conclusion below."""
        yield self.HEAD
        for tap in self.taps:
            yield tap.line()
        yield from self.conclusion()

    def conclusion(self) -> Iterator[str]:
        """The lines below the table."""
        first = self.first_broken
        yield f"first divergence: {first.name if first else 'none'}"
        yield (
            f"end to end: logits differ by at most {self.logit_error:.2e} of their standard deviation; "
            f"same likeliest token at {self.same_argmax:.0%} of the positions"
        )


def verify_bytes(engine: Engine, n: int) -> int:
    """Upper bound for the memory that ``verify`` needs for a text of ``n`` tokens, besides the engine and the weights.

    All of the engine's activations are kept. One activation at a time is in memory as float64, with its bound and the
    bound's inputs, and so is one matrix of the weights.
    """
    engine, n = engine_of(engine), whole_number("n", n, 1, None, RefgptError)
    kept = trace_bytes(engine.config, n, tap_names(engine.config), itemsize=dtype_of(engine).itemsize)
    largest = max(prod(shape) for shape in tap_shapes(engine.config, n).values())
    matrix = max(prod(shape) for shape in leaf_shapes(engine.config).values())
    return sum(kept.values()) + 8 * (COPIES_OF_ACTIVATION * largest + COPIES_OF_MATRIX * matrix)


@default_float_state()
def verify(
    engine: Engine,
    params: ParamTree,
    ids: Sequence[int],
    prefix_len: int = 0,
    *,
    progress: bool = False,
    on_tap: Callable[[TapResult], object] | None = None,
) -> Report:
    """Run an engine and the float64 spec on one text.

    Parameters
    ----------
    engine : Engine
        A float32 engine. The bounds are those of its cache (``kv_dtype``), of its sums (``sum_chunk``) and of the rows
        that its linear layers round (``compute``).
    params : Params
        The weights as the engine keeps them.
    ids : sequence of int [t]
    prefix_len : int
        Number of leading positions that see one another.
    progress : bool
        Show a progress bar on standard error. It counts blocks; the spec computes each block twice.
    on_tap : callable, optional
        Called with each ``TapResult`` as soon as it is known.

    Returns
    -------
    Report

    Raises
    ------
    RefgptError
        If the ids cannot be used, or this needs more memory than there is (``verify_bytes``). Raised before anything is
        computed.
    """
    tokens = ids_of(engine, ids, prefix_len)
    prefix_len = check_prefix(prefix_len, len(tokens), engine.config)
    progress = flag("progress", progress, RefgptError)
    instance_of("params", params, ParamTree, RefgptError)
    if on_tap is not None:
        function_of("on_tap", on_tap, RefgptError)
    config = engine.config
    check_fits(
        verify_bytes(engine, len(tokens)),
        f"activations of {len(tokens)} tokens, and one matrix of weights in float64",
        "take a shorter text",
        where="verify",
    )
    results: list[TapResult] = []
    with counted(progress, 2 * config.n_layer, "block", "verifying", leave=False) as done:
        trace = record(engine, tokens, prefix_len)

        def end_block(name: str) -> None:
            if name.endswith(".resid_post"):
                done()

        def judge_and_force(name: str, want: np.ndarray) -> np.ndarray:
            of = (engine.kv_dtype, engine.sum_chunk, engine.compute)
            bound = tap_bound(name, trace, params, config, prefix_len, *of)
            results.append(_judge(name, trace[name], want, bound))
            if on_tap is not None:
                on_tap(results[-1])
            end_block(name)
            return trace[name]

        def only_count(name: str, value: np.ndarray) -> np.ndarray:
            end_block(name)
            return value

        forward(params, config, tokens, prefix_len, np.float64, judge_and_force)
        free = forward(params, config, tokens, prefix_len, tap=only_count)
    logits = trace["logits"]
    return Report(
        taps=tuple(results),
        logit_error=float(np.abs(logits - free).max() / free.std()),
        same_argmax=float((logits.argmax(-1) == free.argmax(-1)).mean()),
    )


def _judge(name: str, got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> TapResult:
    error = np.abs(got - want)
    bound = np.broadcast_to(bound, error.shape)
    # 0 / 0 is within the bound; anything else over 0, including NaN, is not.
    ratio = np.divide(error, bound, out=np.where(error == 0, 0, np.inf), where=bound > 0)
    worst = np.unravel_index(int(ratio.argmax()), ratio.shape)  # argmax takes NaN for the largest
    got = got.astype(np.float64)
    lengths = float(np.linalg.norm(got) * np.linalg.norm(want))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = float(np.vdot(got, want) / lengths) if lengths else 1.0
    return TapResult(name, float(error[worst]), float(bound[worst]), float(ratio[worst]), float(error.max()), cosine)
