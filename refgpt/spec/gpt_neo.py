"""GPT-Neo, top to bottom. This file is the specification: every kernel and engine is held to what it computes.

A text of ``t`` tokens is a matrix of ``t`` rows, the residual stream: each token's row of one table plus its position's
row of another. Each block first lets rows exchange information (attention), then works on each row by itself (MLP);
each of the two reads the stream through a LayerNorm of its own and adds to it. In local blocks a row sees only the rows
shortly before it. A last LayerNorm, and the table of tokens a second time, turn row ``t`` into scores for the token
at position ``t + 1``.

Shapes: t query position, s key position, h head, d head width, c d_model, f d_ff, v vocabulary. No batch, no cache.
Structure follows EleutherAI's model (https://github.com/EleutherAI/gpt-neo).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refgpt._common.arguments import collected, keep_whole, one_of
from refgpt._common.errors import ConfigError
from refgpt.numbers.dtypes import DTypeLike
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import ConfigBase, check_config
from refgpt.spec.ids import check_run
from refgpt.spec.masks import local_mask, prefix_mask
from refgpt.spec.ops import ACTIVATIONS, embedding, layer_norm, linear, softmax
from refgpt.spec.taps import Tap, TapNames, checked, no_tap, prefixed

#: Far above any context, and small enough to compute with and to be written in every format.
MOST_WINDOW = (1 << 31) - 1


@dataclass(frozen=True)
class Config(ConfigBase):
    """Shape of a GPT-Neo model. Building one validates it.

    Attributes
    ----------
    n_layer, n_head, n_vocab, n_ctx : int
        Blocks, attention heads, rows of the embedding table, positions.
    d_model, d_ff : int
        Width of the residual stream and of the MLP's hidden layer.
    activation : str
        The MLP's, a name of ``refgpt.spec.ops.ACTIVATIONS``.
    attention_layers : tuple of "global" or "local"
        For each block, whether a query sees all keys before it or the nearest.
    window_size : int
        How many keys a query sees in a local block, its own included.
    ln_eps : float
        Added to the variance in LayerNorm.
    bos_id, eos_id : int or None
        Ids that begin and end a text; GPT-Neo has one for both (50256).
    further_eos_ids : tuple of int
        Ids that end a text too, where a model has several.

    Raises
    ------
    ConfigError
        Whose ``where`` is the first field that makes no sense.

    Notes
    -----
    The defaults are those of https://huggingface.co/EleutherAI/gpt-neo-125m, config.json.
    """

    model_type: ClassVar[str] = "gpt_neo"

    n_layer: int = 12
    n_head: int = 12
    d_model: int = 768
    d_ff: int = 3072
    n_vocab: int = 50257
    n_ctx: int = 2048
    activation: str = "gelu_new"
    attention_layers: tuple[str, ...] = ("global", "local") * 6
    window_size: int = 256
    ln_eps: float = 1e-5
    bos_id: int | None = 50256
    eos_id: int | None = 50256
    further_eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_config(self)
        one_of("activation", self.activation, tuple(ACTIVATIONS), ConfigError)
        keep_whole(self, "window_size", 1, MOST_WINDOW, ConfigError)
        layers = tuple(collected("attention_layers", self.attention_layers, "global or local", ConfigError))
        if len(layers) != self.n_layer:
            wanted = f"n_layer, {self.n_layer}"
            raise ConfigError("not one for each block", where="attention_layers", got=len(layers), wanted=wanted)
        for kind in layers:
            one_of("attention_layers", kind, ("global", "local"), ConfigError)
        object.__setattr__(self, "attention_layers", layers)

    @property
    def window(self) -> int | None:
        """How many keys a query sees in local blocks, if there are any."""
        return self.window_size if "local" in self.attention_layers else None

    @property
    def n_params(self) -> int:
        """Number of weights and biases (125,198,592 for the smallest GPT-Neo); the tied head counts once."""
        return sum(map(math.prod, leaf_shapes(self).values()))


@dataclass(frozen=True)
class Block:
    """One transformer block: LayerNorm and attention, LayerNorm and MLP; no biases on q, k and v."""

    ln1_w: np.ndarray  # [c]
    ln1_b: np.ndarray  # [c]
    wq: Leaf  # [c, c]   rows are heads x d_head
    wk: Leaf  # [c, c]
    wv: Leaf  # [c, c]
    wo: Leaf  # [c, c]
    bo: np.ndarray  # [c]
    ln2_w: np.ndarray  # [c]
    ln2_b: np.ndarray  # [c]
    w_in: Leaf  # [f, c]
    b_in: np.ndarray  # [f]
    w_out: Leaf  # [c, f]
    b_out: np.ndarray  # [c]


@dataclass(frozen=True)
class Params(ParamTree):
    """All parameters of a GPT-Neo; matrices are ``[out, in]`` like the checkpoints."""

    block_type: ClassVar = Block
    looked_up: ClassVar = frozenset({"wpe"})
    b_head: ClassVar = None

    wte: Leaf  # [v, c]   token embeddings, and the head
    wpe: Leaf  # [n_ctx, c]   embeddings of positions
    blocks: tuple[Block, ...]
    ln_w: np.ndarray  # [c]      final LayerNorm
    ln_b: np.ndarray  # [c]

    @property
    def w_head(self) -> Leaf:
        """The output head [v, c]: tied to the embeddings."""
        return self.wte


def leaf_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every leaf's name and shape, in the order of ``Params.items``."""
    c, f = config.d_model, config.d_ff
    block: dict[str, tuple[int, ...]] = {"ln1_w": (c,), "ln1_b": (c,)}
    block |= {"wq": (c, c), "wk": (c, c), "wv": (c, c), "wo": (c, c), "bo": (c,)}
    block |= {"ln2_w": (c,), "ln2_b": (c,), "w_in": (f, c), "b_in": (f,), "w_out": (c, f), "b_out": (c,)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (config.n_vocab, c), "wpe": (config.n_ctx, c)}
    for i in range(config.n_layer):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_w": (c,), "ln_b": (c,)}


def taps(config: Config) -> TapNames:
    """The names of the activations."""
    return TapNames(
        first=("embed", "pos_embed", "resid_pre"),
        block=(
            *("ln1", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid"),
            *("ln2", "mlp_pre", "mlp_post", "mlp_out", "resid_post"),
        ),
        last=("ln_final", "logits"),
    )


def attention(x: np.ndarray, p: Block, cfg: Config, mask: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """Multi-head self-attention whose scores are not divided by anything. x [t, c], mask [t, s] -> [t, c]."""
    heads = (-1, cfg.n_head, cfg.d_head)
    q = tap("q", linear(x, p.wq).reshape(heads))  # [t, h, d]
    k = tap("k", linear(x, p.wk).reshape(heads))  # [s, h, d]
    v = tap("v", linear(x, p.wv).reshape(heads))  # [s, h, d]
    scores = np.where(mask, np.einsum("thd,shd->hts", q, k), -np.inf)  # [h, t, s], mask True = may look
    pattern = tap("pattern", softmax(scores))  # [h, t, s], rows sum to 1
    z = tap("z", np.einsum("hts,shd->thd", pattern, v))  # [t, h, d]
    return tap("attn_out", linear(z.reshape(len(x), -1), p.wo, p.bo))  # [t, c]


def mlp(x: np.ndarray, p: Block, cfg: Config, tap: Tap = no_tap) -> np.ndarray:
    """Two linear layers with an activation between them, on each row by itself. x [t, c] -> [t, c]."""
    hidden = tap("mlp_pre", linear(x, p.w_in, p.b_in))  # [t, f]
    hidden = tap("mlp_post", ACTIVATIONS[cfg.activation](hidden))  # [t, f]
    return tap("mlp_out", linear(hidden, p.w_out, p.b_out))  # [t, c]


def block(x: np.ndarray, p: Block, cfg: Config, mask: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """Attention, then MLP, which sees what attention added. x [t, c] -> [t, c]."""
    normed = tap("ln1", layer_norm(x, p.ln1_w, p.ln1_b, cfg.ln_eps))  # [t, c]
    x = tap("resid_mid", x + attention(normed, p, cfg, mask, tap))  # [t, c]
    normed = tap("ln2", layer_norm(x, p.ln2_w, p.ln2_b, cfg.ln_eps))  # [t, c]
    return tap("resid_post", x + mlp(normed, p, cfg, tap))  # [t, c]


def forward(
    params: Params,
    config: Config,
    ids: Sequence[int] | np.ndarray,
    prefix_len: int = 0,
    dtype: DTypeLike = np.float64,
    tap: Tap = no_tap,
) -> np.ndarray:
    """Scores for the next token at every position of a text: [t, v]. Parameters and errors: ``refgpt.spec.forward``."""
    ids, prefix_len = check_run(ids, config, prefix_len, dtype)
    tap = checked(tap, dtype)
    masks = {
        "global": prefix_mask(len(ids), prefix_len),
        "local": local_mask(len(ids), config.window_size),
    }  # [t, s] each
    tokens = tap("embed", embedding(ids, params.wte, dtype))  # [t, c]
    places = tap("pos_embed", embedding(np.arange(len(ids)), params.wpe, dtype))  # [t, c]
    x = tap("resid_pre", tokens + places)  # [t, c]
    for i, p in enumerate(params.blocks):
        x = block(x, p, config, masks[config.attention_layers[i]], prefixed(tap, f"blocks.{i}."))  # [t, c]
    x = tap("ln_final", layer_norm(x, params.ln_w, params.ln_b, config.ln_eps))  # [t, c]
    return tap("logits", linear(x, params.wte))  # [t, v]
