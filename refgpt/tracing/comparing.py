"""Compares the activations and predictions of two models on one text.

It is meant for one model in two dtypes, and shows the effect of float16 or 4 bits on each activation, including errors
that propagate. To find faults of an engine, use ``verify``, which checks each activation against its own inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt.generation.sampling import log_softmax
from refgpt.spec import tap_names, tap_shapes
from refgpt.tracing.places import Names, find_names
from refgpt.tracing.recording import record, visit
from refgpt.tracing.subjects import Subject, Text, engine_of, ids_of

#: Rows of probabilities that are in memory as float64 at a time.
ROWS_TOGETHER = 64


@dataclass(frozen=True)
class Difference:
    """One activation of two models.

    Attributes
    ----------
    name : str
    max_abs : float
        Largest difference.
    rms : float
        Root of the mean square of the differences.
    relative : float
        ``rms`` divided by the root of the mean square of the first model's activation.
    cosine : float
        Cosine of the angle between the two, as vectors.
    """

    name: str
    max_abs: float
    rms: float
    relative: float
    cosine: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of ``compare``.

    Attributes
    ----------
    taps : tuple of Difference
        In the order of the forward pass.
    kl : ndarray [t], float64
        Kullback-Leibler divergence of the second model's next-token distribution from the first's, in nats, at each
        position.
    same_argmax : float
        Share of the positions at which both have the same most likely token.
    """

    taps: tuple[Difference, ...]
    kl: np.ndarray
    same_argmax: float

    def lines(self) -> Iterator[str]:
        """The comparison as a table, one line per activation."""
        yield f"{'activation':<22} {'max abs':>10} {'rms':>10} {'relative':>10} {'cosine':>14}"
        for tap in self.taps:
            yield f"{tap.name:<22} {tap.max_abs:10.2e} {tap.rms:10.2e} {tap.relative:10.2e} {tap.cosine:14.11f}"
        yield (
            f"next token: KL {self.kl.mean():.3g} nats in the mean, {self.kl.max():.3g} at most; "
            f"same likeliest token at {self.same_argmax:.0%} of the positions"
        )


def compare(
    model_a: Subject, model_b: Subject, ids: Text, prefix_len: int = 0, names: Names | None = None
) -> Comparison:
    """Run two models on one text.

    Parameters
    ----------
    model_a, model_b : Model or Engine
        Two models of the same shape. The first is the reference.
    ids : str or sequence of int [t]
        A text is encoded by the first model's tokenizer.
    prefix_len : int
        Number of leading positions that see one another.
    names : str or collection of str, optional
        Activations to compare; by default all. Those of the first model are kept in memory, those of the second are
        not.

    Raises
    ------
    RefgptError
        If the models differ in shape, and as ``record`` does.
    """
    a, b = engine_of(model_a), engine_of(model_b)
    tokens = ids_of(model_a, ids, prefix_len)
    shapes_a, shapes_b = (tap_shapes(engine.config, len(tokens)) for engine in (a, b))
    if shapes_a != shapes_b:
        raise RefgptError(
            "the models have different shapes and cannot be compared",
            where="compare",
            got=b.config,
            wanted=a.config,
        )
    wanted = find_names(names, tap_names(a.config))
    firsts = record(a, tokens, prefix_len, {*wanted, "logits"})

    def look(name: str, second: np.ndarray) -> Difference | tuple[Difference, np.ndarray, float]:
        first = firsts.pop(name)
        difference = _difference(name, first, second)
        if name != "logits":
            return difference
        return difference, _divergence(first, second), float((first.argmax(-1) == second.argmax(-1)).mean())

    found = visit(b, tokens, {*wanted, "logits"}, look, prefix_len)
    last, kl, same = found.pop("logits")
    taps = [*found.values(), *([last] if "logits" in wanted else [])]
    return Comparison(tuple(taps), kl, same)


def _difference(name: str, first: np.ndarray, second: np.ndarray) -> Difference:
    a, b = first.astype(np.float64).reshape(-1), second.astype(np.float64).reshape(-1)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    rms, size = (float(np.sqrt(np.mean(x * x))) for x in (a - b, a))
    relative = rms / size if size else (np.inf if rms else 0.0)
    cosine = float(a @ b) / lengths if lengths else (0.0 if rms else 1.0)
    return Difference(name, float(np.abs(a - b).max()), rms, relative, cosine)


def _divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL of each row of logits. [t, v] -> [t]."""
    cuts = [slice(start, start + ROWS_TOGETHER) for start in range(0, len(first), ROWS_TOGETHER)]
    return np.concatenate([_row_divergence(log_softmax(first[cut]), log_softmax(second[cut])) for cut in cuts])


def _row_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(axis=-1)
