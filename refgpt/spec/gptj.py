"""GPT-J, top to bottom. This file is the specification: every kernel and engine is tested against it.

A text of ``t`` tokens is a matrix of ``t`` rows, the residual stream. Each block reads it through a LayerNorm, lets
rows exchange information (attention) and works on each row by itself (MLP), both from the same normalised rows, and
adds both results. A last LayerNorm and a matrix turn row ``t`` into scores for the token at position ``t + 1``.

Shapes: t query position, s key position, h head, d head width, c d_model, f d_ff, v vocabulary. No batch, no cache.
Structure and names follow EleutherAI's model (https://github.com/kingoflolz/mesh-transformer-jax).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refgpt._common.arguments import keep_whole
from refgpt._common.errors import ConfigError
from refgpt.numbers.dtypes import DTypeLike
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import ConfigBase, check_config
from refgpt.spec.ids import check_run
from refgpt.spec.masks import prefix_mask
from refgpt.spec.ops import embedding, gelu, layer_norm, linear, softmax
from refgpt.spec.positions import rotate_pairs
from refgpt.spec.taps import Tap, TapNames, checked, no_tap, prefixed


@dataclass(frozen=True)
class Config(ConfigBase):
    """Shape of a GPT-J model. Building one validates it.

    Attributes
    ----------
    n_layer, n_head, n_vocab, n_ctx : int
        Blocks, attention heads, rows of the embedding table, positions.
    d_model, d_ff : int
        Width of the residual stream and of the MLP's hidden layer.
    d_rotary : int
        How many leading dimensions of each head are rotated; even, at most ``d_head``.
    ln_eps : float
        Added to the variance in LayerNorm.
    bos_id, eos_id : int or None
        Ids that begin and end a text; GPT-J has one for both (50256).
    further_eos_ids : tuple of int
        Further ids that end a text, if a model has several.

    Raises
    ------
    ConfigError
        Whose ``where`` is the first field that makes no sense.

    Notes
    -----
    The defaults are GPT-J-6B's: https://huggingface.co/EleutherAI/gpt-j-6b, config.json.
    """

    model_type: ClassVar[str] = "gptj"

    n_layer: int = 28
    n_head: int = 16
    d_model: int = 4096
    d_ff: int = 16384
    d_rotary: int = 64
    n_vocab: int = 50400
    n_ctx: int = 2048
    ln_eps: float = 1e-5
    bos_id: int | None = 50256
    eos_id: int | None = 50256
    further_eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_config(self)
        keep_whole(self, "d_rotary", 2, self.d_head, ConfigError)
        if self.d_rotary % 2:
            raise ConfigError("is odd, but dimensions are rotated in pairs", where="d_rotary", got=self.d_rotary)

    @property
    def n_params(self) -> int:
        """Number of weights and biases (6,050,882,784 for GPT-J-6B)."""
        return sum(map(math.prod, leaf_shapes(self).values()))


@dataclass(frozen=True)
class Block:
    """One transformer block: the LayerNorm that both branches share, attention (no biases), MLP."""

    ln_w: np.ndarray  # [c]
    ln_b: np.ndarray  # [c]
    wq: Leaf  # [c, c]   rows are heads x d_head
    wk: Leaf  # [c, c]
    wv: Leaf  # [c, c]
    wo: Leaf  # [c, c]
    w_in: Leaf  # [f, c]
    b_in: np.ndarray  # [f]
    w_out: Leaf  # [c, f]
    b_out: np.ndarray  # [c]


@dataclass(frozen=True)
class Params(ParamTree):
    """All parameters of a GPT-J; matrices are ``[out, in]`` like the checkpoints."""

    block_type: ClassVar = Block

    wte: Leaf  # [v, c]   token embeddings
    blocks: tuple[Block, ...]
    ln_w: np.ndarray  # [c]      final LayerNorm
    ln_b: np.ndarray  # [c]
    w_head: Leaf  # [v, c]   output head, not tied to wte
    b_head: np.ndarray  # [v]


def leaf_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every leaf's name and shape, in the order of ``Params.items``."""
    c, f, v = config.d_model, config.d_ff, config.n_vocab
    block: dict[str, tuple[int, ...]] = {"ln_w": (c,), "ln_b": (c,)}
    block |= {"wq": (c, c), "wk": (c, c), "wv": (c, c), "wo": (c, c)}
    block |= {"w_in": (f, c), "b_in": (f,), "w_out": (c, f), "b_out": (c,)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (v, c)}
    for i in range(config.n_layer):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_w": (c,), "ln_b": (c,), "w_head": (v, c), "b_head": (v,)}


def taps(config: Config) -> TapNames:
    """The names of the activations."""
    return TapNames(
        first=("embed",),
        block=(
            *("ln", "q", "k", "v", "q_rot", "k_rot", "pattern", "z", "attn_out"),
            *("mlp_pre", "mlp_post", "mlp_out", "resid_post"),
        ),
        last=("ln_final", "logits"),
    )


def attention(
    x: np.ndarray, p: Block, cfg: Config, mask: np.ndarray, positions: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """Multi-head self-attention with rotary positions (GPT-J: no biases). x [t, c], mask [t, s] -> [t, c]."""
    heads = (-1, cfg.n_head, cfg.d_head)
    q = tap("q", linear(x, p.wq).reshape(heads))  # [t, h, d]
    k = tap("k", linear(x, p.wk).reshape(heads))  # [s, h, d]
    v = tap("v", linear(x, p.wv).reshape(heads))  # [s, h, d]
    q = tap("q_rot", rotate_pairs(q, positions, cfg.d_rotary))  # [t, h, d]
    k = tap("k_rot", rotate_pairs(k, positions, cfg.d_rotary))  # [s, h, d]
    scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(cfg.d_head)  # [h, t, s]
    scores = np.where(mask, scores, -np.inf)  # [h, t, s], mask True = may look
    pattern = tap("pattern", softmax(scores))  # [h, t, s], rows sum to 1
    z = tap("z", np.einsum("hts,shd->thd", pattern, v))  # [t, h, d]
    return tap("attn_out", linear(z.reshape(len(x), -1), p.wo))  # [t, c]


def mlp(x: np.ndarray, p: Block, tap: Tap = no_tap) -> np.ndarray:
    """Two linear layers with a GELU between them, on each row by itself. x [t, c] -> [t, c]."""
    hidden = tap("mlp_pre", linear(x, p.w_in, p.b_in))  # [t, f]
    hidden = tap("mlp_post", gelu(hidden))  # [t, f]
    return tap("mlp_out", linear(hidden, p.w_out, p.b_out))  # [t, c]


def block(
    x: np.ndarray, p: Block, cfg: Config, mask: np.ndarray, positions: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """Attention and MLP in parallel: both read the same LayerNorm, neither reads the other's output. x [t, c] -> [t,
    c]."""
    normed = tap("ln", layer_norm(x, p.ln_w, p.ln_b, cfg.ln_eps))  # [t, c]
    attn_out = attention(normed, p, cfg, mask, positions, tap)  # [t, c]
    mlp_out = mlp(normed, p, tap)  # [t, c]
    return tap("resid_post", x + attn_out + mlp_out)  # [t, c]


def forward(
    params: Params,
    config: Config,
    ids: Sequence[int] | np.ndarray,
    prefix_len: int = 0,
    dtype: DTypeLike = np.float64,
    tap: Tap = no_tap,
) -> np.ndarray:
    """Scores for the next token at every position of a text.

    Parameters
    ----------
    params : Params
        Leaves as stored; each is widened to ``dtype`` where it is used.
    config : Config
    ids : sequence of int [t]
        The text as token ids.
    prefix_len : int
        Number of leading positions that see one another (GPT-JT's prompt); 0 is GPT-J's causal mask.
    dtype : floating dtype
        The dtype of all computations; with float64 this is the oracle.
    tap : callable
        ``tap(name, value) -> value``, called for every activation of ``tap_names(config)`` in that order.

    Returns
    -------
    ndarray [t, v]
        Logits: row ``t`` scores every id as the token at position ``t + 1``.

    Raises
    ------
    GenerationError
        If ``ids`` or ``prefix_len`` cannot be used.
    RefgptError
        If ``dtype`` is not a floating dtype, or a tap returns something of another shape.
    """
    ids, prefix_len = check_run(ids, config, prefix_len, dtype)
    tap = checked(tap, dtype)
    positions = np.arange(len(ids))  # [t]
    mask = prefix_mask(len(ids), prefix_len)  # [t, s]
    x = tap("embed", embedding(ids, params.wte, dtype))  # [t, c]
    for i, p in enumerate(params.blocks):
        x = block(x, p, config, mask, positions, prefixed(tap, f"blocks.{i}."))  # [t, c]
    x = tap("ln_final", layer_norm(x, params.ln_w, params.ln_b, config.ln_eps))  # [t, c]
    return tap("logits", linear(x, params.w_head, params.b_head))  # [t, v]
