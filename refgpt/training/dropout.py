"""Dropout of adapters: each text is met by adapters that do not see some of their inputs.

What is left out of a matrix's input is the same at every position of a text and drawn anew for the next, as Gal and
Ghahramani 2016 (https://arxiv.org/abs/1512.05287) do in sequences; PEFT draws anew at each position. So it is the same
as leaving out columns of A, the passes need no other kernels, and the gradients are exact. What is drawn depends on
the seed, the number of the step, that of the text in it and the matrix, and on nothing else: not on micro-batches.
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
    """Adapters with some columns of A left out, within a ``with`` block; after it they are whole again.

    Parameters
    ----------
    model : Model
    rate : float
        What share is left out, below 1; the others are multiplied by ``1 / (1 - rate)``.
    seed, step : int
        What is drawn depends on them.
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
        """Leave out others, for a text by its number in the step."""
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
        """``Parameters.split``; of columns that were left out the gradient is zero."""
        (name_a, of_a), of_b = self._parameters.split(leaf, gradient)
        if not isinstance(of_a, np.ndarray):
            addend, of_a = of_a, np.zeros(of_a.shape, np.float32)
            addend.add_to(of_a)
        yield name_a, of_a * self._kept[leaf].astype(of_a.dtype)
        yield of_b
