"""Causal tracing: where, in layers and positions, a model keeps what decides its answer.

Two prompts of as many tokens differ in a few of them, and so in their answers. The corrupt prompt is run with one state
of the clean run put in its place; where that brings the clean answer back, that state carries what the prompts differ
in. After Meng et al. 2022, "Locating and editing factual associations in GPT" (https://arxiv.org/abs/2202.05262), who
corrupt embeddings with noise; with a second prompt instead nothing is out of the model's experience (Zhang and Nanda
2023, https://arxiv.org/abs/2309.16042).
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
    """How much each state of the clean run brings back of its answer.

    Attributes
    ----------
    answer, other : int
        The tokens whose logits are compared at the last position: the clean prompt's answer and the corrupt one's.
    positions : ndarray of int [n]
        Of the states.
    clean, corrupt : float
        Logit of ``answer`` less that of ``other``, after each prompt as it is.
    restored : ndarray [n_layer, n], float64
        The same after the corrupt prompt with a state of the clean run: of this layer, at this position.
    """

    answer: int
    other: int
    positions: np.ndarray
    clean: float
    corrupt: float
    restored: np.ndarray

    @property
    def recovered(self) -> np.ndarray:
        """``restored`` as a share of the way back: 0 is the corrupt run, 1 the clean one. [n_layer, n]"""
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
    """Trace what decides between two answers: see the head of this module.

    Takes a forward pass for each layer and position.

    Parameters
    ----------
    model : Model or Engine
    clean, corrupt : str or sequence of int
        Two prompts of as many tokens.
    answer, other : int, optional
        The ids between which the prompts decide; by default what each holds for the likeliest next token.
    part : str
        Which activation of a block is restored, by the last part of its name: "resid_post", "attn_out", "mlp_out"
        or another with a row for each position.
    window : int
        In so many neighbouring blocks it is restored together, with the layer in their midst (Meng et al. take 10 for
        "attn_out" and "mlp_out", of which one alone does little).
    positions : int, slice or sequence of int, optional
        Where to restore; by default everywhere. Where the prompts do not differ yet, nothing can change.
    prefix_len : int
        So many leading positions see one another.
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
