"""Dropout of adapters: for each text, adapters leave out some of their inputs.

The inputs that are left out are the same at every position of a text and drawn anew for the next text, as Gal and
Ghahramani 2016 (https://arxiv.org/abs/1512.05287) do in sequences; PEFT draws anew at each position. So dropout is the
same as leaving out columns of A, the passes need no other kernels, and the gradients are exact. The draw depends only
on the seed, the number of the step, the number of the text in it and the matrix; it does not depend on micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import ParamTree
from refgpt.spec.gradients import Gradient
from refgpt.training.parameters import Parameters, TrainedModel


class Dropout:
    """Leaves out some columns of the adapters' A inside a ``with`` block; after it they are whole again.

    Parameters
    ----------
    model : Model
    rate : float
        The share that is left out, below 1; the other columns are multiplied by ``1 / (1 - rate)``.
    seed, step : int
        The seed of the training, and the number of the step.
    """

    def __init__(self, model: TrainedModel, rate: float, seed: int, step: int) -> None:
        self._engine, self._rate, self._place = model.engine, rate, (seed, step)
        self._model, self._whole = model, model.engine.kept()
        self._kept: dict[str, np.ndarray] = {}  # by leaf: [n_in], 0 or 1 / (1 - rate)
        self._parameters = Parameters(model)

    def __enter__(self) -> Dropout:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.adopt(self._whole)

    def draw(self, text: int) -> None:
        """Draw anew which columns are left out, for a text by its number in the step."""
        stream = np.random.RandomState([*self._place, text])
        for leaf, adapted in Parameters(self._model).adapted.items():
            kept = stream.random_sample(adapted.shape[1]) >= self._rate
            self._kept[leaf] = np.where(kept, np.float32(1 / (1 - self._rate)), np.float32(0))
        self._engine.adopt(self._thinned(self._engine.kept()))
        self._parameters = Parameters(self._model)

    def _thinned(self, current: ParamTree) -> ParamTree:
        whole = dict(self._whole.items())

        def thinned(name: str, leaf: Leaf) -> Leaf:
            of = whole[name]
            if not isinstance(of, Adapted) or not isinstance(leaf, Adapted):
                return leaf
            return Adapted(leaf.base, of.a * self._kept[name], of.b, of.scale, leaf.panels)

        return current.map(thinned)

    def split(self, leaf: str, gradient: Gradient) -> Iterator[tuple[str, Gradient]]:
        """See ``Parameters.split``; the gradient of columns that were left out is zero."""
        (name_a, of_a), of_b = self._parameters.split(leaf, gradient)
        if not isinstance(of_a, np.ndarray):
            addend, of_a = of_a, np.zeros(of_a.shape, np.float32)
            addend.add_to(of_a)
        yield name_a, of_a * self._kept[leaf].astype(of_a.dtype)
        yield of_b
