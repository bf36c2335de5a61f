"""Round a model to 4 or 3 bits so that its outputs on given texts change little: see ``refgpt.numbers.compensated``.

The texts go through the model block by block, in the kernels. Before a matrix is rounded, the second moments of its
inputs are summed over all texts. These inputs are computed with earlier blocks, and earlier matrices of the same block,
already rounded, as they are when the rounded model runs. Only one block's weights are in memory. An output head that is
a matrix of its own is rounded like the matrices of the blocks. Embeddings, and a head that is tied to them, keep 8 bits
and are rounded as in any conversion; vectors stay float32.

Every sum is taken in the kernels' order: the result has the same bits on every machine, for any number of threads, and
whether or not the run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.memory import check_obtainable
from refgpt.checkpoints import Checkpoint, check_unchanged, verify_checksums
from refgpt.conversion.calibration_state import CalibrationState, open_state
from refgpt.kernels import check_threads, digests, digests_and_finite, linear, pack, store
from refgpt.numbers.compensated import DAMPING, Feedback, Moments, quantise_compensated
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.fingerprints import fingerprint
from refgpt.numbers.finite import check_finite
from refgpt.numbers.leaves import Leaf, row_slices, widen
from refgpt.numbers.mapped import place_of, release
from refgpt.numbers.packing import EMBEDDINGS, Kept, pack_leaf, plan
from refgpt.numbers.panels import BITS, Panels
from refgpt.numbers.quantisation import CANDIDATES, check_range
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.blockwise import Blockwise

#: The dtypes that can be calibrated.
KINDS = ("q4", "q3")
#: Raised with each change of what is written, so that no run resumes one of another version.
VERSION = 1
#: Rows of a matrix that are rounded together.
ROWS = 4096

#: Called after each matrix with its name, the number of weights rounded so far, and the number of all.
Calibrating = Callable[[str, int, int], None]


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """``x w^T`` in the kernels' order of sums. x [t, n], w [m, n] -> [t, m]"""
    return linear(np.ascontiguousarray(x), pack(np.ascontiguousarray(w)))


@contextmanager
def calibrated(
    source: Checkpoint, kind: str, ids: np.ndarray, destination: Path, progress: Calibrating | None = None
) -> Iterator[Checkpoint]:
    """Yield the same checkpoint with its matrices in few bits, rounded for their inputs on some texts.

    Inside the ``with`` block the matrices lie in files beside the destination. They are removed when the block ends
    without an error; otherwise the next call with the same arguments resumes with them.

    Parameters
    ----------
    source : Checkpoint
    kind : "q4" or "q3"
    ids : ndarray [n_texts, t]
        Texts of one length.
    destination : Path
    progress : callable, optional

    Raises
    ------
    CheckpointError
        If the matrices have so few bits already, a weight is not finite or too large, memory or disk do not suffice, or
        another run's files are there.
    """
    check_source(source, kind)
    config, n_states = source.config, 4 * ids.size * source.config.d_model
    widest = max(config.d_model, config.d_ff)
    needed = n_states + 4 * (4 * widest**2 + 3 * ROWS * widest)  # the moments, their factor, and copies of its parts
    check_obtainable(needed, "the texts and their moments", "calibrate with fewer tokens", CheckpointError)
    verify_checksums(source, digests_and_finite)
    names = {name: leaf for name, leaf in source.params.items() if _kept(source, name, leaf, kind).kind == kind}
    on_disk = sum(_kept(source, name, leaf, kind).n_bytes(leaf.shape) for name, leaf in names.items()) + 2 * n_states
    with open_state(destination, on_disk, _about(source, kind, ids)) as state:
        leaves = _Run(source, kind, names, ids, state, progress).matrices()
        yield replace(source, params=source.params.map(lambda name, leaf: leaves.get(name, leaf)))


def check_source(source: Checkpoint, kind: str) -> None:
    """Refuse a model whose matrices have as few bits as ``kind`` already, or fewer."""
    for name, leaf in source.params.items():
        if isinstance(leaf, Panels) and BITS.get(leaf.kind, 32) <= BITS[kind]:
            raise CheckpointError(
                f"has {BITS[leaf.kind]} bits already, which calibrating cannot improve",
                where=place_of(leaf, name),
                fix="convert the original model",
            )


def _kept(source: Checkpoint, name: str, leaf: Leaf, kind: str) -> Kept:
    return plan(name, leaf, kind, source.params.looked_up)


def _about(source: Checkpoint, kind: str, ids: np.ndarray) -> dict[str, Any]:
    """What a run depends on. Reads all weights, and checks that they can be rounded."""

    def check(name: str, leaf: Leaf) -> None:
        check_unchanged(leaf)
        for rows in row_slices(leaf):
            check_finite(place_of(leaf, name), rows)
            if leaf.ndim == 2:
                check_range(place_of(leaf, name), rows, kind)
        release(leaf)

    texts = hashlib.sha256(str(ids.shape).encode() + ids.astype("<i4").tobytes()).hexdigest()
    return {
        "model": fingerprint(source.params, digests, check),
        "configuration": str(source.config),
        "mask": source.mask,
        "text": texts,
        "rounding": [VERSION, kind, DAMPING, CANDIDATES[kind]],
    }


class _Run:
    """One calibration.

    Attributes
    ----------
    names : dict
        The matrices to round, as stored.
    done : dict
        Those that are rounded, mapped from their files.
    """

    def __init__(
        self,
        source: Checkpoint,
        kind: str,
        names: dict[str, Leaf],
        ids: np.ndarray,
        state: CalibrationState,
        progress: Calibrating | None,
    ) -> None:
        self.source, self.kind, self.names = source, kind, names
        self.state, self.progress = state, progress
        prefix_len = ids.shape[1] // 2 if source.mask == "prefix" and source.config.window is None else 0
        self.texts = Blockwise(source.config, ids, prefix_len)
        self.done: dict[str, Panels] = {}
        for name, leaf in names.items():
            if (panels := state.matrix(name, leaf.shape, kind)) is not None:
                self.done[name] = panels

    def matrices(self) -> dict[str, Panels]:
        """Round all matrices that are not done."""
        n_layer, texts = self.source.config.n_layer, self.texts
        n_whole = next((i for i in range(n_layer) if not self._of_block(i) <= self.done.keys()), n_layer)
        n_through, states = self.state.states(n_whole, texts.states.shape)
        if states is None:
            texts.embed(self._params(EMBEDDINGS))
        else:
            texts.states[...] = states
        for i in range(n_through, n_layer):
            leaves = [name for name, _ in self.source.params.items() if name.startswith(f"blocks.{i}.")]
            for tap, matrices in texts.inputs.items():
                params = self._params(leaves)
                self._round([f"blocks.{i}.{name}" for name in matrices], texts.activations(i, params, tap))
            texts.advance(i, self._params(leaves))
            self.state.keep_states(i + 1, texts.states)
        if "w_head" in self.names:
            self._round(["w_head"], texts.last_inputs(self._params(("ln_w", "ln_b"))))
        return self.done

    def _of_block(self, i: int) -> set[str]:
        return {name for name in self.names if name.startswith(f"blocks.{i}.")}

    def _params(self, names: Collection[str]) -> ParamTree:
        """The model with all matrices that are rounded; the other leaves of these names as the kernels read them."""

        def kept(name: str, leaf: Leaf) -> Leaf:
            if name in self.done or name in self.names or name not in names:
                return self.done.get(name, leaf)
            return pack_leaf(name, leaf, _kept(self.source, name, leaf, self.kind), store)

        return self.source.params.map(kept)

    def _round(self, names: Sequence[str], inputs: Iterator[np.ndarray]) -> None:
        """Round matrices that have the same inputs, if they are not done."""
        missing = [name for name in names if name not in self.done]
        if missing:
            moments = Moments(self.names[missing[0]].shape[1], product)
            for rows in inputs:
                moments.add(rows)
            if not moments.are_usable:
                raise CheckpointError(
                    "the model's activations on these texts are infinite, or nearly so",
                    where=place_of(self.names[missing[0]], names[0]),
                )
            feedback = Feedback(moments, product)
        for name in names:
            leaf = self.names[name]
            if name in missing:
                self.state.keep_matrix(name, _rounded(name, leaf, self.kind, feedback))
                found = self.state.matrix(name, leaf.shape, self.kind)
                assert found is not None
                self.done[name] = found
            if self.progress is not None:
                n_done = sum(self.names[name].size for name in self.done)
                self.progress(name, n_done, sum(leaf.size for leaf in self.names.values()))


def _rounded(name: str, leaf: Leaf, kind: str, feedback: Feedback) -> Panels:
    """A matrix in few bits; some rows at a time, since they are rounded independently of one another."""
    check_unchanged(leaf)
    n_out, n_in = leaf.shape
    panels = Panels.zeros(kind, n_out, n_in, name)
    for start in range(0, n_out, ROWS):
        stop = min(start + ROWS, n_out)
        rows = widen(leaf.rows(start, stop) if isinstance(leaf, Encoded) else leaf[start:stop])
        quantise_compensated(rows, feedback, kind, product, panels.part(start, stop), check_threads(None))
    release(leaf)
    return panels
