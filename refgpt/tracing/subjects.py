"""The common arguments of tracing: a model or its engine, and a text or its ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.wording import shown
from refgpt.runtime.engine import Engine
from refgpt.spec.ids import check_ids
from refgpt.tokenizers import Tokenizer


class HasEngine(Protocol):
    """The part of a loaded model that tracing needs."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...


Subject = HasEngine | Engine
Text = str | Sequence[int] | np.ndarray


def engine_of(model: Subject) -> Engine:
    """The engine of a model; an engine is returned unchanged."""
    engine: Engine | None = getattr(model, "engine", None)
    if engine is None:
        engine = cast(Engine, model)
    if not callable(getattr(engine, "logits", None)) or not hasattr(getattr(engine, "config", None), "model_type"):
        raise RefgptError("cannot be used", where="model", got=shown(model), wanted="a Model, or its engine")
    return engine


def ids_of(model: Subject, text: Text, prefix_len: int = 0) -> np.ndarray:
    """Encode a text, or take ids, and check that the model accepts them. -> int64 [t]

    Raises
    ------
    RefgptError
        If the text cannot be encoded or there is no tokenizer, the ids do not exist or are none or too many, or
        ``prefix_len`` does not fit.
    """
    ids, config = text, engine_of(model).config
    if isinstance(ids, str):
        tokenizer: Tokenizer | None = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise GenerationError(
                "is a text, and there is no tokenizer to make ids of it",
                where="ids",
                wanted="a list of ids",
                fix="or give a model that has a tokenizer",
            )
        ids = tokenizer.encode(ids)
    return check_ids(ids, config, prefix_len)
