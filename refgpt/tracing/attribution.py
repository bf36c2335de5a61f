"""Direct logit attribution: splits a logit into terms of the embedding, the heads and the MLPs.

The residual stream is a sum of the embedding and the outputs of each head and each MLP (its *writers*). Logits are
linear in the output of the final LayerNorm. This LayerNorm is also linear once its scale is known: it subtracts the
mean, divides by one number per row and applies its learnt weights. So with the scale **frozen** at its value in this
run, a logit is exactly the sum of one term per writer and one constant for the biases of LayerNorm and head. An output
bias of attention is a writer of its own: it belongs to no head.

After Elhage et al. 2021, "A mathematical framework for transformer circuits"
(https://transformer-circuits.pub/2021/framework/index.html). Direct means that a writer's effect on later blocks counts
as theirs. Since the scale depends on all writers, a term is not the change of the logit without its writer;
``zero_heads`` measures that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import GenerationError
from refgpt.numbers.leaves import Leaf, row_slices, widen
from refgpt.numbers.tree import ParamTree
from refgpt.spec.families import taps_of
from refgpt.tracing.recording import record
from refgpt.tracing.subjects import Subject, Text, engine_of, ids_of


@dataclass(frozen=True, eq=False)
class Attribution:
    """The terms of a logit, or of the difference of two logits. All are float64.

    Attributes
    ----------
    token, against : int, int or None
        The token of the logit, and the token whose logit was subtracted.
    embed : float
        Term of the embedding: the token's, and the position's in models that have learned ones.
    heads : ndarray [n_layer, n_head]
        Terms of the heads' outputs through their columns of the output matrix.
    mlps : ndarray [n_layer]
        Terms of the MLPs, their output biases included.
    attn_biases : ndarray [n_layer]
        Terms of the biases of attention's output matrices; zeros in models that have none.
    bias : float
        Term of the final LayerNorm's and the output head's biases.
    logit : float
        The logit that the engine computed. ``total`` equals it except for rounding by the engine (with quantised
        weights, also the rounding of activations).
    """

    token: int
    against: int | None
    embed: float
    heads: np.ndarray
    mlps: np.ndarray
    attn_biases: np.ndarray
    bias: float
    logit: float

    @property
    def layers(self) -> np.ndarray:
        """Terms of whole blocks: their heads, attention's bias and their MLP. [n_layer]"""
        return self.heads.sum(axis=1) + self.attn_biases + self.mlps

    @property
    def total(self) -> float:
        """The sum of all terms."""
        return float(self.embed + self.layers.sum() + self.bias)


def logit_attribution(
    model: Subject,
    ids: Text,
    token: int | None = None,
    against: int | None = None,
    position: int = -1,
    prefix_len: int = 0,
) -> Attribution:
    """Split one logit into terms: see the module's docstring.

    Parameters
    ----------
    model : Model or Engine
    ids : str or sequence of int [t]
    token : int, optional
        The id of the logit; by default the most likely id.
    against : int, optional
        An id whose logit is subtracted, to explain the preference for one token over the other.
    position : int
        The row of the logits; negative ones count from the end.
    prefix_len : int
        Number of leading positions that see one another.

    Raises
    ------
    RefgptError
        If the ids, tokens or position cannot be used.
    """
    engine, tokens = engine_of(model), ids_of(model, ids, prefix_len)
    config, params = engine.config, engine.kept()
    token, against = (
        None if one is None else whole_number(name, one, 0, config.n_vocab - 1, GenerationError)
        for name, one in (("token", token), ("against", against))
    )
    position = whole_number("position", position, -len(tokens), len(tokens) - 1, GenerationError)
    blocks = [f"blocks.{i}" for i in range(config.n_layer)]
    stream = taps_of(config).stream
    first, last = stream(0), stream(config.n_layer)
    names = [first, *(f"{block}.{part}" for block in blocks for part in ("z", "mlp_out")), last, "logits"]
    row = {name: x[0].astype(np.float64) for name, x in record(engine, tokens, prefix_len, names, position).items()}

    token = int(row["logits"].argmax()) if token is None else token
    unembed, bias = _unembedding(params, token)  # [c]
    if against is not None:
        unembed_against, bias_against = _unembedding(params, against)
        unembed, bias = unembed - unembed_against, bias - bias_against
    scale = np.sqrt(row[last].var() + config.ln_eps)
    direction = unembed * widen(params.ln_w, np.float64) / scale  # [c]
    direction -= direction.mean()  # subtracts the mean of the writers, as the LayerNorm does
    heads = [
        _through(p.wo, direction) * row[f"{block}.z"].reshape(-1)
        for block, p in zip(blocks, params.blocks, strict=True)
    ]
    return Attribution(
        token=token,
        against=against,
        embed=float(direction @ row[first]),
        heads=np.stack(heads).reshape(config.n_layer, config.n_head, config.d_head).sum(axis=-1),
        attn_biases=np.array([_bias_term(direction, getattr(p, "bo", None)) for p in params.blocks]),
        mlps=np.array([direction @ row[f"{block}.mlp_out"] for block in blocks]),
        bias=float(unembed @ widen(params.ln_b, np.float64) + bias),
        logit=float(row["logits"][token] - (0 if against is None else row["logits"][against])),
    )


def _unembedding(params: ParamTree, token: int) -> tuple[np.ndarray, float]:
    """What makes a token's logit of a row: its row of the head, [c], and its bias."""
    bias = 0.0 if params.b_head is None else float(widen(params.b_head[token : token + 1], np.float64)[0])
    return widen(params.w_head[np.array([token])], np.float64)[0], bias


def _bias_term(direction: np.ndarray, bias: np.ndarray | None) -> float:
    return 0.0 if bias is None else float(direction @ widen(bias, np.float64))


def _through(w: Leaf, direction: np.ndarray) -> np.ndarray:
    """Map a direction in a matrix's output space back to its input space, some rows at a time. [n_out] -> [n_in]."""
    total, start = np.zeros(w.shape[1]), 0
    for rows in row_slices(w):
        total += direction[start : start + len(rows)] @ widen(rows, np.float64)
        start += len(rows)
    return total
