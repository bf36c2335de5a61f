"""Causal tracing: finds the layers and positions that hold the information which decides a model's answer.

Two prompts of the same length differ in a few tokens, and so in their answers. The corrupt prompt is run with one state
replaced by that of the clean run. If this restores the clean answer, the state carries the difference between the
prompts. After Meng et al. 2022, "Locating and editing factual associations in GPT" (https://arxiv.org/abs/2202.05262),
who corrupt embeddings with noise; a second prompt instead keeps the inputs realistic (Zhang and
Nanda 2023, https://arxiv.org/abs/2309.16042).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import flag, one_of, whole_number
from refgpt._common.errors import GenerationError
from refgpt._common.progress import counted
from refgpt.spec.families import taps_of
from refgpt.tracing.patches import patch_from
from refgpt.tracing.places import Indices, find_indices
from refgpt.tracing.recording import record
from refgpt.tracing.subjects import Subject, Text, engine_of, ids_of


@dataclass(frozen=True, eq=False)
class CausalTrace:
    """How much each state of the clean run restores its answer.

    Attributes
    ----------
    answer, other : int
        The tokens whose logits are compared at the last position: the clean prompt's answer and the corrupt one's.
    positions : ndarray of int [n]
        Positions of the states.
    clean, corrupt : float
        Logit of ``answer`` less that of ``other``, after each unchanged prompt.
    restored : ndarray [n_layer, n], float64
        The same after the corrupt prompt with the clean run's state of this layer at this position.
    """

    answer: int
    other: int
    positions: np.ndarray
    clean: float
    corrupt: float
    restored: np.ndarray

    @property
    def recovered(self) -> np.ndarray:
        """``restored`` as a fraction: 0 is the corrupt run, 1 the clean run. [n_layer, n]"""
        return (self.restored - self.corrupt) / (self.clean - self.corrupt)


def causal_trace(
    model: Subject,
    clean: Text,
    corrupt: Text,
    answer: int | None = None,
    other: int | None = None,
    *,
    part: str = "resid_post",
    window: int = 1,
    positions: Indices = None,
    prefix_len: int = 0,
    progress: bool = False,
) -> CausalTrace:
    """Trace the states that decide between two answers: see the module's docstring.

    This takes one forward pass for each layer and position.

    Parameters
    ----------
    model : Model or Engine
    clean, corrupt : str or sequence of int
        Two prompts with the same number of tokens.
    answer, other : int, optional
        The ids between which the prompts decide; by default the most likely next token of each.
    part : str
        The activation of a block to restore, given by the last part of its name: "resid_post", "attn_out", "mlp_out"
        or another with a row for each position.
    window : int
        Number of neighbouring blocks, centred on the layer, in which it is restored together (Meng et al. use 10 for
        "attn_out" and "mlp_out", since one alone has little effect).
    positions : int, slice or sequence of int, optional
        Positions to restore, by default all. Positions before the first difference of the prompts have no effect.
    prefix_len : int
        Number of leading positions that see one another.
    progress : bool
        Show a bar on standard error.

    Raises
    ------
    RefgptError
        If an argument cannot be used, the prompts are of different lengths, or they do not differ in their answers.
    """
    engine, tokens, others = engine_of(model), ids_of(model, clean, prefix_len), ids_of(model, corrupt, prefix_len)
    n_layer, n_vocab = engine.config.n_layer, engine.config.n_vocab
    parts = [name for name in taps_of(engine.config).block if name != "pattern"]  # has no row for a position
    one_of("part", part, parts, GenerationError)
    window = whole_number("window", window, 1, None, GenerationError)
    progress = flag("progress", progress, GenerationError)
    answer, other = (
        None if one is None else whole_number(name, one, 0, n_vocab - 1, GenerationError)
        for name, one in (("answer", answer), ("other", other))
    )
    if len(tokens) != len(others):
        raise GenerationError(
            "the prompts must have as many tokens",
            where="corrupt",
            got=f"{len(others)} tokens",
            wanted=f"the {len(tokens)} of the clean prompt",
        )
    places = find_indices(positions, len(tokens), "positions")
    places = np.arange(len(tokens)) if places is None else places

    states = record(engine, tokens, prefix_len, [f"blocks.*.{part}", "logits"])
    clean_row, corrupt_row = states.pop("logits")[-1], record(engine, others, prefix_len, "logits", -1)["logits"][0]
    answer = int(clean_row.argmax()) if answer is None else answer
    other = int(corrupt_row.argmax()) if other is None else other
    if answer == other:
        raise GenerationError(
            "both prompts have the same answer",
            where="other",
            got=f"token {answer} of both",
            fix="name the two tokens between which the prompts decide",
        )

    def measure(row: np.ndarray) -> float:
        return float(row[answer]) - float(row[other])

    if measure(clean_row) == measure(corrupt_row):
        got = f"a difference of {measure(clean_row):g} between the two logits after both"
        raise GenerationError("the prompts do not differ in their answers", where="corrupt", got=got)
    restored = np.empty((n_layer, len(places)))
    with counted(progress, restored.size, "pass", "causal tracing") as done:
        for i in range(n_layer):
            first = max(0, i - window // 2)
            names = [f"blocks.{j}.{part}" for j in range(first, min(i - window // 2 + window, n_layer))]
            for column, position in enumerate(places.tolist()):
                patches = patch_from(states, names, positions=position)
                restored[i, column] = measure(record(engine, others, prefix_len, "logits", -1, patches)["logits"][0])
                done(1)
    return CausalTrace(answer, other, places, measure(clean_row), measure(corrupt_row), restored)
