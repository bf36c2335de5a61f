"""Optimisers: AdamW, and Muon for matrices.

Every operation is elementwise, or a product of whole matrices, in the dtype of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgpt._common.arguments import BELOW_ONE, collected, keep_whole, number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown

#: Coefficients of the quintic iteration that moves singular values towards 1: Keller Jordan 2024,
#: https://kellerjordan.github.io/posts/muon
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def _names(where: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else collected(where, value, "names of weights", RefgptError)
    for name in names:
        if not isinstance(name, str):
            raise RefgptError("is no name", where=where, got=shown(name), wanted="names of weights")
    return tuple(names)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101).

    Attributes
    ----------
    betas : (float, float)
        Which share of the mean of gradients, and of the mean of their squares, is kept at each step.
    eps : float
        Added to the root of the mean of squares.
    weight_decay : float
        At each step weights shrink by this share times the learning rate.
    decay : collection of str, optional
        Names of the weights that shrink. The default is the matrices of the blocks and the head, or an adapter's.
    averaged_over : int
        How many workers' weights are averaged. Each worker has its own optimiser. Adam divides by the root of a
        gradient's mean square, which is the square of its mean plus its variance. An average over N workers has the
        same mean and 1/N of the variance; above 1, steps are divided by the root of that. A worker's own denominators
        are larger, so that weights with noisy gradients learn more slowly than in a large batch. The mean is estimated
        from the latest gradients, so more than ``(1 + betas[0]) / (1 - betas[0]) / 2`` workers (9.5 with 0.9) act like
        that many.

    Raises
    ------
    RefgptError
        If a value cannot be used.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: Collection[str] | None = None
    averaged_over: int = 1

    def __post_init__(self) -> None:
        betas = collected("betas", self.betas, "two numbers", RefgptError)
        if len(betas) != 2:
            raise RefgptError("cannot be used", where="betas", got=shown(self.betas), wanted="two numbers")
        object.__setattr__(self, "betas", tuple(number("betas", beta, 0, BELOW_ONE, RefgptError) for beta in betas))
        object.__setattr__(self, "eps", number("eps", self.eps, 0, None, RefgptError))
        object.__setattr__(self, "weight_decay", number("weight_decay", self.weight_decay, 0, None, RefgptError))
        if self.decay is not None:
            object.__setattr__(self, "decay", _names("decay", self.decay))
        keep_whole(self, "averaged_over", 1, None, RefgptError)

    def update(
        self,
        w: np.ndarray,
        g: np.ndarray,
        state: dict[str, np.ndarray],
        step: int,
        lr: float,
        decay: bool,
        threads: int | None = None,
    ) -> None:
        """Take one step for one array, in place.

        Parameters
        ----------
        w, g : ndarray
            The weights, and their gradient.
        state : dict of str to ndarray
            "mean" and "square" of the gradients so far; empty before the first step.
        step : int
            The number of this step, from 1.
        lr : float
            The learning rate.
        decay : bool
            Whether these weights shrink.
        threads : int, optional
            Take the step in a kernel, with this number of threads: float32 only, the same bits.
        """
        mean, square = state.get("mean"), state.get("square")
        if mean is None or square is None:
            mean, square = state["mean"], state["square"] = np.zeros_like(w), np.zeros_like(w)
        shrink = 1 - lr * self.weight_decay if decay else 1.0
        if threads is None:
            self._update(w, g, mean, square, step, lr, shrink)
        else:
            self._update_by_kernel(w, np.ascontiguousarray(g), mean, square, step, lr, shrink, threads)

    def _update(
        self, w: np.ndarray, g: np.ndarray, mean: np.ndarray, square: np.ndarray, step: int, lr: float, shrink: float
    ) -> None:
        beta1, beta2 = self.betas
        mean_correction, square_correction = self._corrections(step)
        mean *= beta1
        mean += (1 - beta1) * g
        square *= beta2
        square += (1 - beta2) * g * g
        w *= shrink
        if self.averaged_over == 1:
            w -= lr / mean_correction * mean / (np.sqrt(square) / math.sqrt(square_correction) + self.eps)
            return
        direction = mean / mean_correction
        squared = direction * direction
        variance = np.maximum(square / square_correction - squared, 0)
        w -= lr * direction / (np.sqrt(squared + self._share_of_variance(step) * variance) + self.eps)

    def _update_by_kernel(
        self,
        w: np.ndarray,
        g: np.ndarray,
        mean: np.ndarray,
        square: np.ndarray,
        step: int,
        lr: float,
        shrink: float,
        threads: int,
    ) -> None:
        from refgpt import kernels  # the NumPy backend works without compiled kernels

        mean_correction, square_correction = self._corrections(step)
        how: dict[str, Any] = {"betas": self.betas, "eps": self.eps, "shrink": shrink, "threads": threads}
        if self.averaged_over == 1:
            kernels.adamw(w, g, mean, square, rate=lr / mean_correction, correction=math.sqrt(square_correction), **how)
            return
        how |= {
            "mean_correction": mean_correction,
            "square_correction": square_correction,
            "of_variance": self._share_of_variance(step),
        }
        kernels.adamw_averaged(w, g, mean, square, rate=lr, **how)

    def _corrections(self, step: int) -> tuple[float, float]:
        """Adam's bias corrections: the divisors of the mean and of the square, which began at 0."""
        beta1, beta2 = self.betas
        return 1 - beta1**step, 1 - beta2**step

    def _share_of_variance(self, step: int) -> float:
        """The variance's factor in the squared denominator, where it is added to the squared mean."""
        beta1 = self.betas[0]
        # The square of the mean still contains this share of the variance; it may be at most half of the whole share.
        known = (1 - beta1) / (1 + beta1) * (1 + beta1**step) / (1 - beta1**step)
        share = max(1 / self.averaged_over, 2 * known)
        return (share - known) / (1 - known) if share < 1 else 1.0


@dataclass(frozen=True)
class Muon:
    """Momentum that is made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), for matrices.

    Attributes
    ----------
    names : collection of str
        The weights that it trains; AdamW trains the others.
    momentum : float
        Which share of the sum of gradients is kept at each step. The momentum is Nesterov's.
    lr_scale : float
        The learning rate of these weights, as a multiple of the step's. Muon's usual rates are about ten times AdamW's.

    Raises
    ------
    RefgptError
        If a value cannot be used.
    """

    names: Collection[str]
    momentum: float = 0.95
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", _names("names", self.names))
        object.__setattr__(self, "lr_scale", number("lr_scale", self.lr_scale, 0, None, RefgptError))
        object.__setattr__(self, "momentum", number("momentum", self.momentum, 0, BELOW_ONE, RefgptError))

    def update(
        self,
        w: np.ndarray,
        g: np.ndarray,
        state: dict[str, np.ndarray],
        lr: float,
        weight_decay: float,
        threads: int | None = None,
    ) -> None:
        """Take one step for one matrix, in place.

        Parameters
        ----------
        w, g : ndarray
            The weights, and their gradient.
        state : dict of str to ndarray
            "momentum": the sum of gradients so far; empty before the first step.
        lr : float
            The step's learning rate.
        weight_decay : float
            The weights shrink by this share times the learning rate.
        threads : int, optional
            Make the direction orthogonal in kernels, with this number of threads: float32 only, sums in their order.
        """
        lr *= self.lr_scale
        sum_ = state.get("momentum")
        if sum_ is None:
            sum_ = state["momentum"] = np.zeros_like(w)
        share = (1 - self.momentum) * g
        sum_ *= self.momentum
        sum_ += share
        share += self.momentum * sum_
        step = orthogonalised(share) if threads is None else _orthogonalised(share, threads)
        if weight_decay:
            w *= 1 - lr * weight_decay
        step *= lr * math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
        w -= step


def orthogonalised(x: np.ndarray) -> np.ndarray:
    """A matrix with the same singular vectors, and singular values near 1: five steps of Newton-Schulz.

    x [n_out, n_in] -> [n_out, n_in]
    """
    tall = x.shape[0] > x.shape[1]
    y = _divided(x.T if tall else x)  # at most as many rows as columns
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = y @ y.T
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y.T if tall else y


def _divided(y: np.ndarray) -> np.ndarray:
    """By its length as a vector, so that no singular value is larger than 1."""
    divided: np.ndarray = y / (np.sqrt((y * y).sum()) + 1e-7)
    return divided


def _orthogonalised(x: np.ndarray, threads: int) -> np.ndarray:
    """The same in kernels, whose sums have an order of their own."""
    from refgpt import kernels  # the NumPy backend works without compiled kernels

    divided = _divided(x.T).T if x.shape[0] > x.shape[1] else _divided(x)
    return kernels.orthogonalised(np.ascontiguousarray(divided), NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, threads=threads)
