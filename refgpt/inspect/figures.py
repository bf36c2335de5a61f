"""The figures of a page for programs, as plain numbers and texts."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import numpy as np

from refgpt._model import Model
from refgpt.inspect.data import PAGE_PARTS, STEPS, gather
from refgpt.spec import prefix_mask
from refgpt.tokenizers import Tokenizer


def figures(model: Model, ids: np.ndarray, prefix_len: int) -> dict[str, Any]:
    """The content of ``build_report`` without the comparison with the spec, as a dict for JSON.

    Parameters
    ----------
    model : Model
    ids : ndarray [t]
        As ``prompt_of`` gives them.
    prefix_len : int
        Number of leading positions that see one another.

    Returns
    -------
    dict
        "predictions" is a list of t entries, "lens" one of n_layer + 1 lists of t, "pattern" is
        [n_layer][n_head][t][t]; ``docs/reference/command-line.md`` describes every key.
    """
    data = gather(model, ids, prefix_len, verify=False, parts=PAGE_PARTS)
    predictions = {name: unpacked(values) for name, values in data["predictions"].items()}
    lens = {name: unpacked(values) for name, values in data["lens"].items()}
    n, tokenizer = len(ids), model.tokenizer
    seen = prefix_mask(n, prefix_len)
    packed_pattern = unpacked(data["pattern"])
    pattern = np.zeros((*packed_pattern.shape[:2], n, n))
    pattern[:, :, seen] = packed_pattern / STEPS
    return {
        "model": data["model"],
        "facts": dict(data["facts"]),
        "n_layer": data["n_layer"],
        "n_head": data["n_head"],
        "n_vocab": data["n_vocab"],
        "prefix_len": prefix_len,
        "ids": ids.tolist(),
        "tokens": [_text(i, tokenizer) for i in ids.tolist()],
        "continuation": [{"id": i, "text": _text(i, tokenizer)} for i in data["continuation"]],
        "predictions": [
            {
                "likeliest": _likeliest(predictions["ids"][t], predictions["p"][t], tokenizer),
                "next_p": float(predictions["given"][t]) if t < n - 1 else None,
                "next_rank": int(predictions["rank"][t]) if t < n - 1 else None,
            }
            for t in range(n)
        ],
        "lens": [
            [_likeliest(ids_at, p_at, tokenizer) for ids_at, p_at in zip(ids_of, p_of, strict=True)]
            for ids_of, p_of in zip(lens["ids"], lens["p"], strict=True)
        ],
        "attribution": data["attribution"],
        "heads": data["heads"]["titles"],
        "pattern": pattern.round(6).tolist(),
    }


def unpacked(stored: Mapping[str, Any]) -> np.ndarray:
    """Decode an array from ``refgpt.inspect.data.packed``."""
    return np.frombuffer(b64decode(stored["base64"]), f"<{stored['dtype']}").reshape(stored["shape"])


def _likeliest(ids: np.ndarray, probabilities: np.ndarray, tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    return [
        {"id": i, "text": _text(i, tokenizer), "p": p}
        for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]


def _text(token_id: int, tokenizer: Tokenizer | None) -> str | None:
    """A token as text, with U+FFFD for invalid bytes; None if the tokenizer does not know it."""
    if tokenizer is None or not tokenizer.has(token_id):
        return None
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")
