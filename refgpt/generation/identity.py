"""What the results of a model depend on: a run that resumes compares it with that of the earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from refgpt.generation.sequence import Generates
from refgpt.tokenizers import Tokenizer


def model_identity(model: Generates) -> dict[str, Any]:
    """What texts and scores of a model depend on, as JSON: weights, dtypes, tokenizer, mask and adapters.

    The first call takes the time of reading all weights once.
    """
    identity: dict[str, Any] = {
        "model": model.engine.identity(),
        "tokenizer": tokenizer_digest(model.tokenizer),
        "mask": model.mask,
    }
    if adapters := getattr(model, "adapters", {}):
        identity["adapters"] = {name: [one.engine.identity()["weights"], one.mask] for name, one in adapters.items()}
    return identity


def identity_digest(identity: Mapping[str, Any]) -> str:
    """A digest of ``model_identity`` that is short enough to stand in each record: 16 hexadecimal digits."""
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_digest(tokenizer: Tokenizer | None) -> str | None:
    """A digest of what a tokenizer does with a text; None if there is none."""
    if tokenizer is None:
        return None
    told = tokenizer.kind, tokenizer.n_vocab, sorted(tokenizer.files().items())
    return sha256(repr(told).encode()).hexdigest()
