"""Record what transformers' generate() writes with a small model, and what its filters keep of random logits.

Recorded with transformers 5.18 and torch 2.13. decoding.json has each case's prompt, parameters, texts and the
scores of beams; filters.npz has logits and what is left of them (-inf = removed), for the cases that FILTERS names.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.goldens import HERE
from tests.goldens.recorders.activations import torch_model
from tests.helpers.decoding import CONFIG, FILTERS, PARAMS

ENDS = [3, 9, 20, 33, 41]

ONE_TEXT: list[dict[str, Any]] = [
    {},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    {"bad_words_ids": [[5], [17, 8], [3], [44, 45, 46]]},
    {"sequence_bias": {(7,): 1.5, (9,): -4.0, (7, 7): -3.0, (30, 12): 2.0, (2, 7, 12): 1.0}},
    {"suppress_tokens": [1, 5, 7, 12], "begin_suppress_tokens": [8, 30, 2]},
    {"min_new_tokens": 9},
    {"min_new_tokens": 3, "forced_eos_token_id": [20, 41]},
    {"forced_eos_token_id": 5},
    {"exponential_decay_length_penalty": (3, 1.4)},
    {"exponential_decay_length_penalty": (4, 1.1), "min_new_tokens": 4},  # sooner, transformers makes NaN of -inf
    {"repetition_penalty": 1.5, "renormalize_logits": True},
    {"eos_token_id": 12},
    {"eos_token_id": [12, 7, 30, 2]},
]
BEAMS: list[dict[str, Any]] = [
    {"num_beams": beams, "early_stopping": early, "length_penalty": penalty, "num_return_sequences": returned}
    for beams, returned in ((2, 2), (3, 1), (4, 4), (8, 3))
    for early in (True, False, "never")
    for penalty in (1.0, 0.0, 2.0, -1.0)
] + [{"num_beams": 4, "num_return_sequences": 4, **filters} for filters in ONE_TEXT]


def texts(model: Any, prompt: list[int], asked: dict[str, Any]) -> tuple[list[list[int]], list[float] | None]:
    """What transformers writes after a prompt, without padding, and the scores of beams."""
    asked = {"eos_token_id": ENDS, "max_new_tokens": 14} | asked
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        pad_token_id=CONFIG.n_vocab - 1,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **asked,
    )
    ends, written = asked["eos_token_id"], []
    ends = {*(ends if isinstance(ends, list) else [ends])}
    for row in out.sequences[:, len(prompt) :].tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        written.append(row[:stop])
    return written, out.sequences_scores.tolist() if asked.get("num_beams", 1) > 1 else None


def main() -> None:
    model = torch_model(CONFIG, PARAMS)
    rng, cases = np.random.default_rng(0), []
    for asked in ONE_TEXT + BEAMS:
        for n in (1, 5, 20):
            prompt = rng.integers(0, CONFIG.n_vocab, n).tolist()
            written, scores = texts(model, prompt, asked)
            biases = asked.get("sequence_bias")
            said = asked | ({"sequence_bias": [[list(ids), b] for ids, b in biases.items()]} if biases else {})
            said = {"eos_token_id": ENDS, "max_new_tokens": 14} | said
            cases.append({"prompt": prompt, "params": said, "texts": written, "scores": scores})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "decoding.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")

    makers = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
        "typical_p": TypicalLogitsWarper,
        "epsilon_cutoff": EpsilonLogitsWarper,
        "eta_cutoff": EtaLogitsWarper,
    }
    logits = (3 * rng.standard_normal((len(FILTERS), 61))).astype(np.float32)
    want = []
    for row, given in zip(logits, FILTERS, strict=True):
        steps = LogitsProcessorList([makers[name](given[name]) for name in makers if name in given])
        want.append(
            steps(torch.zeros(1, 1, dtype=torch.int64), torch.from_numpy(row[None].astype(np.float64)))[0].numpy()
        )
    np.savez(HERE / "filters.npz", logits=logits, want=want)
