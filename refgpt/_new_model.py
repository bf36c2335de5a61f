"""Models that have learned nothing yet."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from refgpt._common.arguments import one_of, whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.float_state import default_float_state
from refgpt._load import check_options, start
from refgpt._model import Model
from refgpt.checkpoints import Checkpoint
from refgpt.numbers.dtypes import DTypeLike, known_dtype
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import family_of, leaf_shapes
from refgpt.tokenizers import Tokenizer, load_tokenizer


@default_float_state()
def new_model(
    config: AnyConfig,
    seed: int = 0,
    backend: str = "c",
    mask: str = "causal",
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    threads: int | None = None,
    compute: DTypeLike | None = None,
) -> Model:
    """A model that has learned nothing yet: random weights, in float32, to be trained.

    As GPT-2 begins: matrices and embeddings are drawn from a normal distribution of deviation 0.02, less by the root of
    twice the number of blocks where they write to the stream; biases are 0, the scales of LayerNorm 1.

    Parameters
    ----------
    config : Config
        Of any family.
    seed : int
        Of the weights.
    backend, threads, compute
        See ``load``.
    mask : "causal" or "prefix"
    tokenizer : path-like, Tokenizer or None
        The tokenizer of the texts that it reads and writes; None for ids only.

    Returns
    -------
    Model

    Raises
    ------
    RefgptError
        If an argument cannot be used.
    """
    family = family_of(config)
    one_of("mask", mask, ("causal", "prefix"), RefgptError)
    stream = np.random.RandomState(whole_number("seed", seed, 0, 2**32 - 1, RefgptError))
    computed_in = known_dtype(compute)
    check_options(backend, None, threads, None, computed_in)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = name.rpartition(".")[2]
        if len(shape) == 1:
            return np.full(shape, 1 if kind.startswith("ln") and kind.endswith("_w") else 0, np.float32)
        deviation = 0.02 / (math.sqrt(2 * config.n_layer) if kind in ("wo", "w_out") else 1)
        return (deviation * stream.standard_normal(shape)).astype(np.float32)

    params = family.Params.from_leaves({n: drawn(n, s) for n, s in leaf_shapes(config).items()}, config.n_layer)
    given = tokenizer if tokenizer is None or isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
    if given is not None:
        given.fit(config.n_vocab)
    checkpoint = Checkpoint(
        path=Path("new"),
        format="random weights",
        family=config.model_type,
        config=config,
        params=params,
        mask=mask,
        mask_source="asked for",
        tensors=(),
        own_tokenizer=False,
    )
    return start(checkpoint, given, backend, threads=threads, asked_mask=mask, verify=False, compute=computed_in)
