"""GPT-NeoX (and Pythia), top to bottom: the specification that every kernel and engine is held to.

A text of ``t`` tokens is a matrix of ``t`` rows, the residual stream. Each block lets rows exchange information
(attention) and works on each row by itself (MLP); each of the two reads the stream through a LayerNorm of its own: both
the stream that enters the block, side by side, or the MLP the one to which attention has added. A last LayerNorm and a
matrix turn row ``t`` into scores for the token at position ``t + 1``.

Shapes: t query position, s key position, h head, d head width, c d_model, f d_ff, v vocabulary. No batch, no cache.
After Black et al. 2022, "GPT-NeoX-20B" (https://github.com/EleutherAI/gpt-neox).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from refgpt._common.arguments import flag, keep_whole, one_of
from refgpt._common.errors import ConfigError
from refgpt._common.wording import shown
from refgpt.numbers.dtypes import DTypeLike
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import ConfigBase, check_config
from refgpt.spec.ids import check_run
from refgpt.spec.masks import prefix_mask
from refgpt.spec.ops import ACTIVATIONS, embedding, layer_norm, linear, softmax
from refgpt.spec.positions import rotate_halves
from refgpt.spec.taps import Tap, TapNames, checked, no_tap, prefixed

#: Far above any that is used.
MOST_ROTARY_BASE = 1e12


@dataclass(frozen=True)
class Config(ConfigBase):
    """Shape of a GPT-NeoX model. Building one validates it.

    Attributes
    ----------
    n_layer, n_head, n_vocab, n_ctx : int
        Blocks, attention heads, rows of the embedding table, positions.
    d_model, d_ff : int
        Width of the residual stream and of the MLP's hidden layer.
    activation : str
        The MLP's, a name of ``refgpt.spec.ops.ACTIVATIONS``.
    d_rotary : int
        How many leading dimensions of each head are rotated; even, at most ``d_head``.
    rotary_base : float
        Dimensions turn by powers of it.
    use_parallel_residual : bool
        Whether attention and MLP of a block both read the stream that enters it.
    attention_bias : bool
        Whether attention has biases.
    ln_eps : float
        Added to the variance in LayerNorm.
    bos_id, eos_id : int or None
        Ids that begin and end a text; GPT-NeoX has one for both (0).
    further_eos_ids : tuple of int
        Ids that end a text too, where a model has several.

    Raises
    ------
    ConfigError
        Whose ``where`` is the first field that makes no sense.

    Notes
    -----
    The defaults are GPT-NeoX-20B's: https://huggingface.co/EleutherAI/gpt-neox-20b, config.json.
    """

    model_type: ClassVar[str] = "gpt_neox"

    n_layer: int = 44
    n_head: int = 64
    d_model: int = 6144
    d_ff: int = 24576
    d_rotary: int = 24
    n_vocab: int = 50432
    n_ctx: int = 2048
    activation: str = "gelu_fast"
    rotary_base: float = 10000.0
    use_parallel_residual: bool = True
    attention_bias: bool = True
    ln_eps: float = 1e-5
    bos_id: int | None = 0
    eos_id: int | None = 0
    further_eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_config(self)
        one_of("activation", self.activation, tuple(ACTIVATIONS), ConfigError)
        flag("use_parallel_residual", self.use_parallel_residual, ConfigError)
        flag("attention_bias", self.attention_bias, ConfigError)
        keep_whole(self, "d_rotary", 2, self.d_head, ConfigError)
        if self.d_rotary % 2:
            raise ConfigError("is odd, but dimensions are rotated in pairs", where="d_rotary", got=self.d_rotary)
        base = self.rotary_base
        if isinstance(base, bool) or not isinstance(base, (int, float)) or not 1 <= base <= MOST_ROTARY_BASE:
            wanted = f"a number from 1 to {MOST_ROTARY_BASE:.0e}"
            raise ConfigError("cannot be used", where="rotary_base", got=shown(base), wanted=wanted)
        object.__setattr__(self, "rotary_base", float(base))  # many a config.json has a whole number

    @property
    def n_params(self) -> int:
        """Number of weights and biases (20,554,567,680 for GPT-NeoX-20B)."""
        return sum(map(math.prod, leaf_shapes(self).values()))


@dataclass(frozen=True)
class Block:
    """One transformer block: LayerNorm and attention, LayerNorm and MLP. Attention may lack biases."""

    ln1_w: np.ndarray  # [c]
    ln1_b: np.ndarray  # [c]
    wq: Leaf  # [c, c]   rows are heads x d_head
    wk: Leaf  # [c, c]
    wv: Leaf  # [c, c]
    bq: np.ndarray | None = field(default=None, kw_only=True)  # [c]
    bk: np.ndarray | None = field(default=None, kw_only=True)  # [c]
    bv: np.ndarray | None = field(default=None, kw_only=True)  # [c]
    wo: Leaf  # [c, c]
    bo: np.ndarray | None = field(default=None, kw_only=True)  # [c]
    ln2_w: np.ndarray  # [c]
    ln2_b: np.ndarray  # [c]
    w_in: Leaf  # [f, c]
    b_in: np.ndarray  # [f]
    w_out: Leaf  # [c, f]
    b_out: np.ndarray  # [c]


@dataclass(frozen=True)
class Params(ParamTree):
    """All parameters of a GPT-NeoX; matrices are ``[out, in]`` like the checkpoints."""

    block_type: ClassVar = Block
    b_head: ClassVar = None

    wte: Leaf  # [v, c]   token embeddings
    blocks: tuple[Block, ...]
    ln_w: np.ndarray  # [c]      final LayerNorm
    ln_b: np.ndarray  # [c]
    w_head: Leaf  # [v, c]   output head, not tied to wte


def leaf_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every leaf's name and shape, in the order of ``Params.items``."""
    c, f = config.d_model, config.d_ff
    block: dict[str, tuple[int, ...]] = {"ln1_w": (c,), "ln1_b": (c,)}
    block |= {"wq": (c, c), "wk": (c, c), "wv": (c, c), "bq": (c,), "bk": (c,), "bv": (c,), "wo": (c, c), "bo": (c,)}
    if not config.attention_bias:
        block = {name: shape for name, shape in block.items() if name not in ("bq", "bk", "bv", "bo")}
    block |= {"ln2_w": (c,), "ln2_b": (c,), "w_in": (f, c), "b_in": (f,), "w_out": (c, f), "b_out": (c,)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (config.n_vocab, c)}
    for i in range(config.n_layer):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_w": (c,), "ln_b": (c,), "w_head": (config.n_vocab, c)}


def taps(config: Config) -> TapNames:
    """The names of the activations; there is a stream between attention and MLP only where they are not parallel."""
    return TapNames(
        first=("embed",),
        block=(
            *("ln1", "q", "k", "v", "q_rot", "k_rot", "pattern", "z", "attn_out"),
            *(() if config.use_parallel_residual else ("resid_mid",)),
            *("ln2", "mlp_pre", "mlp_post", "mlp_out", "resid_post"),
        ),
        last=("ln_final", "logits"),
    )


def attention(
    x: np.ndarray, p: Block, cfg: Config, mask: np.ndarray, positions: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """Multi-head self-attention with rotary positions, in halves. x [t, c], mask [t, s] -> [t, c]."""
    heads = (-1, cfg.n_head, cfg.d_head)
    q = tap("q", linear(x, p.wq, p.bq).reshape(heads))  # [t, h, d]
    k = tap("k", linear(x, p.wk, p.bk).reshape(heads))  # [s, h, d]
    v = tap("v", linear(x, p.wv, p.bv).reshape(heads))  # [s, h, d]
    q = tap("q_rot", rotate_halves(q, positions, cfg.d_rotary, cfg.rotary_base))  # [t, h, d]
    k = tap("k_rot", rotate_halves(k, positions, cfg.d_rotary, cfg.rotary_base))  # [s, h, d]
    scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(cfg.d_head)  # [h, t, s]
    scores = np.where(mask, scores, -np.inf)  # [h, t, s], mask True = may look
    pattern = tap("pattern", softmax(scores))  # [h, t, s], rows sum to 1
    z = tap("z", np.einsum("hts,shd->thd", pattern, v))  # [t, h, d]
    return tap("attn_out", linear(z.reshape(len(x), -1), p.wo, p.bo))  # [t, c]


def mlp(x: np.ndarray, p: Block, cfg: Config, tap: Tap = no_tap) -> np.ndarray:
    """Two linear layers with an activation between them, on each row by itself. x [t, c] -> [t, c]."""
    hidden = tap("mlp_pre", linear(x, p.w_in, p.b_in))  # [t, f]
    hidden = tap("mlp_post", ACTIVATIONS[cfg.activation](hidden))  # [t, f]
    return tap("mlp_out", linear(hidden, p.w_out, p.b_out))  # [t, c]


def block(
    x: np.ndarray, p: Block, cfg: Config, mask: np.ndarray, positions: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """Attention and MLP side by side, or one after the other. x [t, c] -> [t, c]."""
    normed = tap("ln1", layer_norm(x, p.ln1_w, p.ln1_b, cfg.ln_eps))  # [t, c]
    attn_out = attention(normed, p, cfg, mask, positions, tap)  # [t, c]
    if cfg.use_parallel_residual:
        normed = tap("ln2", layer_norm(x, p.ln2_w, p.ln2_b, cfg.ln_eps))  # [t, c]
        return tap("resid_post", x + attn_out + mlp(normed, p, cfg, tap))  # [t, c]
    x = tap("resid_mid", x + attn_out)  # [t, c]
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
    positions = np.arange(len(ids))  # [t]
    mask = prefix_mask(len(ids), prefix_len)  # [t, s]
    x = tap("embed", embedding(ids, params.wte, dtype))  # [t, c]
    for i, p in enumerate(params.blocks):
        x = block(x, p, config, mask, positions, prefixed(tap, f"blocks.{i}."))  # [t, c]
    x = tap("ln_final", layer_norm(x, params.ln_w, params.ln_b, config.ln_eps))  # [t, c]
    return tap("logits", linear(x, params.w_head))  # [t, v]
