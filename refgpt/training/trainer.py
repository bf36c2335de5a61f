"""Training: steps of an optimiser, kept whole on disk, resumed to the bit, and written as a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.arguments import ABOVE_ZERO, BELOW_ONE, collected, instance_of, number, whole_number
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt._common.float_state import default_float_state
from refgpt._common.memory import check_obtainable
from refgpt._common.wording import listed
from refgpt.conversion import convert
from refgpt.numbers.finite import all_finite
from refgpt.numbers.leaves import widen
from refgpt.numbers.panels import BLOCK_BYTES, Panels
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.gradients import StepMemory
from refgpt.tracing.memory import dtype_of
from refgpt.training.batch import Batch
from refgpt.training.dropout import Dropout
from refgpt.training.gradients import clip_gradients, no_step, summed_gradients
from refgpt.training.lora import write_adapter
from refgpt.training.optimiser import AdamW, Muon
from refgpt.training.parameters import Parameters, TrainedModel, check_model
from refgpt.training.state import State, read_state, write_state


@dataclass(frozen=True)
class Step:
    """The measurements of a step.

    Attributes
    ----------
    loss : float
        The mean over all targets before the step.
    norm : float
        The length of the gradient, all of it as one vector, before it was clipped.
    """

    loss: float
    norm: float


class Trainer:
    """Trains a loaded model in place: all its weights, or its adapters if it has any.

    Parameters
    ----------
    model : Model
        A model of ``refgpt.load``. Its weights are copied to float32 (or float64, if it computes in that). After a step
        the model uses the new weights. Its files stay as they are. With ``compute="bf16"`` products are computed in
        bfloat16, forward and backward; weights, optimiser, LayerNorm, attention and loss stay in float32.
    optimiser : AdamW
    clip : float, optional
        Gradients longer than this are shortened to it; None: they are not.
    muon : Muon, optional
        Trains the matrices that it names; AdamW's ``weight_decay`` and ``decay`` apply to them too.
    dropout : float
        The share of each adapter's inputs that is left out, drawn anew for each text; only for a model with adapters.
        See ``refgpt.training.dropout``.
    seed : int
        The seed of dropout.
    recompute : bool
        See ``gradients``: less memory, more time, the same bits.

    Raises
    ------
    RefgptError
        If the model's family has no gradients, its weights are kept in 8, 4 or 3 bits and have no adapter, or an
        argument cannot be used.
    """

    @default_float_state()
    def __init__(
        self,
        model: Any,
        optimiser: AdamW | None = None,
        clip: float | None = 1.0,
        muon: Muon | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        recompute: bool = False,
    ) -> None:
        self._model: TrainedModel = check_model(model)
        self.optimiser = AdamW() if optimiser is None else optimiser
        instance_of("optimiser", self.optimiser, AdamW, RefgptError)
        self.clip = None if clip is None else number("clip", clip, ABOVE_ZERO, None, RefgptError)
        self.muon, self.recompute = muon, recompute
        self.dropout = number("dropout", dropout, 0, BELOW_ONE, RefgptError)
        self.seed = whole_number("seed", seed, 0, 2**32 - 1, RefgptError)
        self.n_steps = 0
        self._threads: int | None = getattr(self._model.engine, "threads", None)  # of kernels
        self._parameters, self._memory = Parameters(self._model), StepMemory()
        if self.dropout and not self._parameters.adapted:
            what = "only the inputs of adapters can be left out, and the model has none"
            raise RefgptError(what, where="dropout", got=self.dropout, wanted=0)
        self._weights = self._own_weights()
        decay = self.optimiser.decay
        self._decays = frozenset(self._parameters.decaying()) if decay is None else self._found("decay", decay)
        self._orthogonal: frozenset[str] = frozenset()  # what Muon trains
        self._state: dict[str, dict[str, np.ndarray]] = {name: {} for name in self._weights}
        if muon is not None:
            instance_of("muon", muon, Muon, RefgptError)
            self._orthogonal = self._found("muon", muon.names)
            vectors = sorted(name for name in self._orthogonal if self._weights[name].ndim != 2)
            if vectors:
                raise RefgptError("is no matrix", where="muon", got=listed(vectors), wanted="names of matrices")

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """What is trained, by its names in files. A step changes these arrays; ``assign`` is for everybody else."""
        return dict(self._weights)

    @default_float_state()
    def assign(self, weights: Mapping[str, np.ndarray]) -> None:
        """Continue from other weights. The optimiser keeps its averages of earlier gradients.

        Parameters
        ----------
        weights : mapping of str to ndarray
            All that is trained, in the shapes of ``weights``.

        Raises
        ------
        RefgptError
            If one is missing, unknown, of another shape, or not finite: then nothing has changed.
        """
        self._check_arrays("weights", weights)
        infinite = sorted(name for name, w in weights.items() if not np.isfinite(w).all())
        if infinite:
            raise RefgptError("are not finite", where="weights", got=listed(infinite))
        for name, w in self._weights.items():
            w[...] = weights[name]
        self._adopt()

    @default_float_state()
    def step(self, batches: Sequence[Batch] | Batch, lr: float) -> Step:
        """One step of the optimiser.

        Parameters
        ----------
        batches : sequence of Batch
            Micro-batches: the step is that of all of them as one batch, to the bit.
        lr : float
            The learning rate.

        Returns
        -------
        Step

        Raises
        ------
        RefgptError
            If a batch cannot be used, or the loss or a gradient is infinite or NaN: then nothing has changed. If the
            step itself makes a weight infinite or NaN: then go on from an earlier state.
        """
        lr = number("lr", lr, 0, None, RefgptError)
        given: Iterable[Any] = (
            [batches] if isinstance(batches, Batch) else collected("batches", batches, "a list of Batch", RefgptError)
        )
        for batch in given:
            instance_of("batches", batch, Batch, RefgptError)
        dropout = Dropout(self._model, self.dropout, self.seed, self.n_steps) if self.dropout else None
        loss, gradients = summed_gradients(self._model, self._parameters, given, dropout, self.recompute, self._memory)
        if not math.isfinite(loss):
            raise no_step("loss", loss)
        return Step(loss, self.update(gradients, lr))

    @default_float_state()
    def update(self, gradients: dict[str, np.ndarray], lr: float) -> float:
        """The second half of ``step``: clip the gradients, in place, and change the weights by them.

        For gradients that come from elsewhere, such as the mean over several machines.

        Parameters
        ----------
        gradients : dict of str to ndarray
            Of all that is trained, float32, in the shapes of ``weights``.
        lr : float
            The learning rate.

        Returns
        -------
        float
            The gradients' norm before clipping.

        Raises
        ------
        RefgptError
            If one is missing or of another shape, or one is infinite or NaN: then nothing has changed. If a weight
            becomes infinite or NaN: then go on from an earlier state.
        """
        lr = number("lr", lr, 0, None, RefgptError)
        self._check_arrays("gradients", gradients)
        norm = clip_gradients(gradients, self.clip)
        self.n_steps += 1
        with np.errstate(all="ignore"):
            for name, w in self._weights.items():
                self._update(name, w, gradients[name], lr)
                if not all_finite(w):
                    raise RefgptError(
                        "the step made weights infinite or NaN",
                        where=name,
                        got=f"step {self.n_steps} with a learning rate of {lr:g}",
                        fix="take a smaller learning rate or a larger eps, from an earlier state",
                    )
        self._adopt()
        return norm

    def _update(self, name: str, w: np.ndarray, g: np.ndarray, lr: float) -> None:
        """One optimiser's step for one array, in place."""
        state, decays = self._state[name], name in self._decays
        if self.muon is not None and name in self._orthogonal:
            self.muon.update(w, g, state, lr, self.optimiser.weight_decay if decays else 0.0, self._threads)
        else:
            self.optimiser.update(w, g, state, self.n_steps, lr, decays, self._threads)

    def save(self, directory: str | Path) -> None:
        """Keep everything that ``resume`` needs in a directory, which is made if it is not there.

        It holds one file, which replaces an earlier one when it is whole.

        Raises
        ------
        CheckpointError
            If it cannot be written.
        """
        settings = (self.n_steps, self.optimiser, self.clip, self.muon, self.dropout, self.seed)
        write_state(directory, State(*settings, self._model.engine.compute, self._weights, self._state))

    @classmethod
    @default_float_state()
    def resume(cls, directory: str | Path, model: Any, recompute: bool = False) -> Trainer:
        """Continue from what ``save`` has written, with the same bits as without the pause.

        Parameters
        ----------
        directory : str or Path
        model : Model
            The model that was trained, loaded from the files it was loaded from then; with an adapter of the same
            matrices and rank if it had one. The weights that were trained are replaced.
        recompute : bool
            See ``Trainer``. It changes no bit, so it may differ from before.

        Raises
        ------
        RefgptError
            If the file is damaged, or is that of another model.
        """
        state = read_state(directory)
        if state.compute != check_model(model).engine.compute:
            raise CheckpointError(
                "was trained with another compute",
                where=directory,
                got=model.engine.compute,
                wanted=state.compute,
                fix=f"load the model with compute='{state.compute}' (--compute {state.compute})",
            )
        trainer = cls(model, state.optimiser, state.clip, state.muon, state.dropout, state.seed, recompute)
        trainer._take(state, directory)
        return trainer

    def write(self, directory: str | Path) -> None:
        """Write what was trained: a whole model for Hugging Face in float32, or the adapter in PEFT's format.

        Parameters
        ----------
        directory : str or Path
            Not there yet, or empty. It appears when it is whole.

        Raises
        ------
        CheckpointError
            If it is taken, or cannot be written.
        """
        if self._parameters.adapted:
            write_adapter(self._model, directory)
            return
        trained = replace(self._model.checkpoint, params=self._tree(), checked=())
        convert(trained, self._model.tokenizer, directory, "hf", "f32")

    def _own_weights(self) -> dict[str, np.ndarray]:
        """Arrays that may be changed in place, by their names in files."""
        parameters = self._parameters
        if parameters.adapted:
            return parameters.adapter_arrays()
        quantised = [n for n, x in parameters.leaves.items() if isinstance(x, Panels) and x.kind in BLOCK_BYTES]
        if quantised:
            raise RefgptError(
                "weights of 8, 4 or 3 bits cannot be trained: a step is smaller than what they are rounded to",
                where="model",
                got=listed(quantised),
                fix="load it with dtype='f32' (--dtype f32), or give it an adapter (refgpt.training.new_adapter)",
            )
        dtype = dtype_of(self._model.engine)
        sizes = {parameters.name(leaf): math.prod(w.shape) for leaf, w in parameters.leaves.items()}
        check_obtainable(
            4 * dtype.itemsize * sum(sizes.values()),
            "the trained weights, their gradients and the optimiser's averages",
            "train an adapter instead (refgpt.training.new_adapter, or finetune without --full)",
            RefgptError,
        )
        own: dict[str, np.ndarray] = {}
        for leaf, stored in self._model.engine.masters().items():
            if (name := parameters.name(leaf)) not in own:
                own[name] = np.array(widen(stored, dtype), order="C")
        self._weights = own
        self._adopt()
        return own

    def _tree(self) -> ParamTree:
        """The model's weights as they are by now."""
        own, name = self._weights, self._parameters.name
        return self._model.engine.kept().map(lambda leaf, _: own[name(leaf)])

    def _check_arrays(self, where: str, given: Mapping[str, np.ndarray]) -> None:
        """Refuse arrays that are not, one for one, those of ``weights``."""
        shapes = {name: w.shape for name, w in self._weights.items()}
        wrong = sorted(
            name
            for name in shapes.keys() | given.keys()
            if name not in given or np.shape(given[name]) != shapes.get(name)
        )
        if wrong:
            raise RefgptError("are missing, unknown or of another shape", where=where, got=listed(wrong))

    def _adopt(self) -> None:
        engine = self._model.engine
        engine.adopt(engine.kept() if self._parameters.adapted else self._tree())

    def _found(self, where: str, names: Iterable[str]) -> frozenset[str]:
        """The weights of these names, of a tensor with several parts all of them."""
        parts = {name: self._parameters.named(name) for name in names}
        if unknown := [name for name, found in parts.items() if not found]:
            raise RefgptError(
                "there are no such weights to train",
                where=where,
                got=listed(unknown),
                wanted=f"names as {next(iter(self._weights))}",
            )
        return frozenset(name for found in parts.values() for name in found)

    def _take(self, state: State, directory: object) -> None:
        """Weights and moments of a state, once it is known that they are this model's."""
        shapes = {name: w.shape for name, w in self._weights.items()}
        found = {name: w.shape for name, w in state.weights.items()}
        wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        if wrong:
            raise CheckpointError("is of another model, or another adapter", where=directory, got=listed(wrong))
        for name, w in self._weights.items():
            if state.weights[name].dtype != w.dtype:
                got = state.weights[name].dtype
                raise CheckpointError("was trained in another precision", where=directory, got=got, wanted=w.dtype)
            moments = state.moments.get(name, {})
            wanted = ["momentum"] if name in self._orthogonal else ["mean", "square"]
            if sorted(moments) != (wanted if state.n_steps else []):
                there = f"{listed(sorted(moments)) or 'no averages'} of {name}"
                raise CheckpointError("is damaged", where=directory, got=there, wanted=listed(wanted))
            for kind, moment in moments.items():
                if moment.shape != w.shape or moment.dtype != w.dtype:
                    raise CheckpointError("is damaged", where=directory, got=f"{kind} of {name}: {moment.shape}")
        for name, w in self._weights.items():
            w[...] = state.weights[name]
            self._state[name] = {kind: np.array(moment) for kind, moment in state.moments.get(name, {}).items()}
        self.n_steps = state.n_steps
        self._adopt()
