"""What engines are asked and when, and what their answers mean in tokens a second."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

N_SEQS = 8
QUIET = 0.05  # share of the processors that strangers may take
N_REFERENCE = 32  # tokens of the prompt after which all engines' logits are compared
#: A prompt and what follows it; the prompt of 128 tokens alone; several texts together.
DECODE: tuple[dict[str, Any], ...] = (
    {"do": "text", "n_prompt": 32, "n_new": 16},
    {"do": "text", "n_prompt": 512, "n_new": 16},
)
EVERYTHING: tuple[dict[str, Any], ...] = (
    DECODE[0],
    {"do": "text", "n_prompt": 128, "n_new": 0},
    DECODE[1],
    {"do": "texts", "n_seqs": N_SEQS, "n_prompt": 32, "n_new": 8},
)

PREFILLS, DECODES, TOGETHER = (32, 128, 512), (32, 512), f"{N_SEQS} sequences"
FIGURES = (*(f"prefill {n}" for n in PREFILLS), *(f"decode after {n}" for n in DECODES), TOGETHER)


def figures(question: dict[str, Any], answer: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Names of figures and tokens a second."""
    n_prompt, n_new = question["n_prompt"], question["n_new"]
    if question["do"] == "texts":
        if answer["decode"] is not None:
            yield TOGETHER, question["n_seqs"] * n_new / answer["decode"]
        return
    yield f"prefill {n_prompt}", n_prompt / answer["prefill"]
    if n_new:
        yield f"decode after {n_prompt}", n_new / answer["decode"]


def prompt(n: int, seq: int = 0) -> list[int]:
    """The same ids for every engine; none of GPT-J's special tokens."""
    draw = random.Random(seq)
    return [draw.randrange(50000) for _ in range(n)]
