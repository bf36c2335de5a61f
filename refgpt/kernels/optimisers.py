"""The kernels of optimisers that work element by element; Muon's are in ``orthogonal``. See ``refgpt.kernels.ops`` for
what functions share."""

from __future__ import annotations

import numpy as np

from refgpt.kernels.calling import arguments, as_float32, check_apart, check_array, floats, run, table_row
from refgpt.kernels.native import CHUNK
from refgpt.kernels.registry import Kernel
from refgpt.numbers.panels import LANES

#: Elements of an item of both kernels.
ADAMW_ITEM = CHUNK * LANES


def adamw(
    w: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    *,
    betas: tuple[float, float],
    eps: float,
    rate: float,
    correction: float,
    shrink: float = 1.0,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> None:
    """One step of AdamW for one array, in place of w, mean and square.

    Parameters
    ----------
    w, g, mean, square : ndarray of any one shape
        Weights, gradient, and the means of gradients and of their squares so far.
    betas, eps : float
        Adam's.
    rate : float
        The learning rate over ``1 - betas[0]^t``.
    correction : float
        The root of ``1 - betas[1]^t``.
    shrink : float
        One less the learning rate times the weight decay.
    """
    others = {"rate": rate, "correction": correction, "shrink": shrink}
    _step("adamw", w, g, mean, square, betas, eps, others, threads, kernel)


def adamw_averaged(
    w: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    *,
    betas: tuple[float, float],
    eps: float,
    rate: float,
    mean_correction: float,
    square_correction: float,
    of_variance: float,
    shrink: float = 1.0,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> None:
    """One step with the denominators of a gradient averaged over several workers; see ``refgpt.training.AdamW``.

    Parameters
    ----------
    w, g, mean, square, betas, eps, shrink
        See ``adamw``.
    rate : float
        The learning rate.
    mean_correction, square_correction : float
        Bias corrections: mean and square are divided by ``1 - betas[0]^t`` and ``1 - betas[1]^t``.
    of_variance : float
        The variance's factor in the squared denominator.
    """
    others = {
        "rate": rate,
        "mean_correction": mean_correction,
        "square_correction": square_correction,
        "of_variance": of_variance,
        "shrink": shrink,
    }
    _step("adamw_averaged", w, g, mean, square, betas, eps, others, threads, kernel)


def _step(
    op: str,
    w: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    betas: tuple[float, float],
    eps: float,
    others: dict[str, float],
    threads: int | None,
    kernel: Kernel | None,
) -> None:
    """Check the arrays and run one of the two kernels."""
    check_array("w", w)
    check_apart("w", w, g, mean, square)
    check_apart("mean", mean, g, square)
    check_apart("square", square, g)
    args = arguments(
        "adamw",
        g=floats("g", g, w.shape),
        w=floats("w", w, w.shape, written=True),
        mean=floats("mean", mean, w.shape, written=True),
        square=floats("square", square, w.shape, written=True),
        n=w.size,
        beta1=as_float32(betas[0]),
        rest1=as_float32(1 - betas[0]),
        beta2=as_float32(betas[1]),
        rest2=as_float32(1 - betas[1]),
        eps=as_float32(eps),
        **{name: as_float32(value) for name, value in others.items()},
    )
    run(table_row(op, kernel), args, -(-w.size // ADAMW_ITEM), 64, threads)
