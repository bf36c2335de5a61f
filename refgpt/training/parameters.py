"""The trained parameters of a model: all its weights, or its adapters; their names and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.checkpoints import Checkpoint
from refgpt.checkpoints.adapters import peft_key
from refgpt.checkpoints.families import FAMILIES
from refgpt.checkpoints.families.names import named_tensors
from refgpt.numbers import checksums
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.fingerprints import fingerprint
from refgpt.numbers.leaves import Leaf, widen
from refgpt.runtime.engine import Engine
from refgpt.runtime.gradients import MatrixGradient
from refgpt.spec.gradients import Gradient, gradients_of


class TrainedModel(Protocol):
    """The attributes of a loaded model that training needs."""

    @property
    def engine(self) -> Engine: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def tokenizer(self) -> Any: ...


def check_model(model: Any) -> TrainedModel:
    """Return a model after a check that it can be trained; raises a RefgptError if not."""
    if not hasattr(model, "engine") or not hasattr(model, "checkpoint"):
        raise RefgptError("cannot be used", where="model", got=shown(model), wanted="a Model, as refgpt.load gives it")
    gradients_of(model.engine.config)
    found: TrainedModel = model
    return found


class Parameters:
    """The trained weights, by the names that they have in files.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    adapted : dict of str to Adapted
        The matrices that have an adapter, by leaf. If there are any, only the adapters are trained.
    """

    def __init__(self, model: TrainedModel) -> None:
        params, stored = model.engine.kept(), model.checkpoint.params
        self.leaves: dict[str, Leaf] = dict(params.items())
        self.adapted = {name: leaf for name, leaf in self.leaves.items() if isinstance(leaf, Adapted)}
        self._model, self._product = model, model.engine.product
        self._tied = stored.w_head is stored.wte
        self._places = FAMILIES[model.engine.config.model_type].HUGGING_FACE.names

    @property
    def tied(self) -> bool:
        """Whether the head is trained and is the embeddings, whose gradient is then a sum of two."""
        return self._tied and not self.adapted

    @property
    def wanted(self) -> list[str]:
        """The leaves whose gradients are needed."""
        return list(self.adapted or self.leaves)

    def name(self, leaf: str) -> str:
        """The name of a leaf in files; a tied head has the name of the embeddings.

        If three leaves share a tensor, each has the tensor's name followed by [q], [k] or [v].
        """
        place = self._places.place("wte" if leaf == "w_head" and self._tied else leaf)
        return place.tensor if place.part is None else f"{place.tensor}[{'qkv'[place.part]}]"

    def named(self, name: str) -> list[str]:
        """The names of a tensor's trained weights: its own, or those of its three parts; empty if it is not trained."""
        known = self.names()
        return [one for one in (name, *(f"{name}[{part}]" for part in "qkv")) if one in known]

    def decaying(self) -> list[str]:
        """The weights that decay by default: matrices of the blocks and an untied head, or all of an adapter."""
        if self.adapted:
            return self.names()
        matrices = [leaf for leaf, w in self.leaves.items() if w.ndim == 2 and leaf.startswith("blocks.")]
        heads = ["w_head"] if "w_head" in self.leaves and not self._tied else []
        return [self.name(leaf) for leaf in [*matrices, *heads]]

    def as_in_files(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Convert arrays to those of files: three parts become one tensor, transposed if files store it so."""
        places = [self._places.place(leaf) for leaf in self.leaves]
        if self.adapted or not any(place.turned or place.part is not None for place in places):
            return found
        tree = self._model.engine.kept().map(lambda leaf, _: found[self.name(leaf)])
        tensors = named_tensors(tree, self._places, self._model.engine.config)
        dtype = next(iter(found.values())).dtype
        return {name: np.array(widen(tensor, dtype)) for name, tensor in tensors.items()}

    def split(self, leaf: str, gradient: Gradient) -> Iterator[tuple[str, Gradient]]:
        """Turn the gradient of a leaf into those of its trained weights, by their names in files."""
        if not self.adapted:
            yield self.name(leaf), gradient
            return
        adapted = self.adapted[leaf]
        if isinstance(gradient, MatrixGradient):
            of_a, of_b = gradient.of_adapter(adapted.a, adapted.b, adapted.scale)
            yield self._key(leaf, "A"), of_a  # [rank, n_in]
            yield self._key(leaf, "B"), of_b  # [n_out, rank]
            return
        assert isinstance(gradient, np.ndarray)
        dtype = gradient.dtype
        scaled = gradient * dtype.type(adapted.scale)  # [n_out, n_in]
        yield self._key(leaf, "A"), self._product(adapted.b.astype(dtype).T, scaled.T)  # [rank, n_in]
        yield self._key(leaf, "B"), self._product(scaled, adapted.a.astype(dtype))  # [n_out, rank]

    def _key(self, leaf: str, side: str) -> str:
        """PEFT's name of a leaf's matrix A or B, followed by [q], [k] or [v] if three leaves share a module."""
        place = self._places.place(leaf)
        key = peft_key(place.tensor.removesuffix(".weight"), side)
        return key if place.part is None else f"{key}[{'qkv'[place.part]}]"

    def frozen(self) -> str | None:
        """A fingerprint of the weights that are not trained; None if all are."""
        if not self.adapted:
            return None
        engine = self._model.engine
        base = engine.kept().map(lambda _, leaf: leaf.base if isinstance(leaf, Adapted) else leaf)
        return fingerprint(base, getattr(engine, "digests", checksums.digests))

    def adapter_arrays(self) -> dict[str, np.ndarray]:
        """The adapters' own matrices, by their names in files."""
        return {self._key(leaf, side): x for leaf, w in self.adapted.items() for side, x in (("A", w.a), ("B", w.b))}

    def names(self) -> list[str]:
        """All names, in the order of the leaves."""
        if self.adapted:
            return list(self.adapter_arrays())
        return list(dict.fromkeys(map(self.name, self.leaves)))
