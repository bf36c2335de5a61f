"""The numbers that make a GPT-J: counts are ``n_*``, widths are ``d_*``."""

from __future__ import annotations

from dataclasses import dataclass, fields

from refgpt.arguments import whole_number
from refgpt.errors import ConfigError

# Far above any model of the family; they exist so that a corrupt file cannot ask for the machine.
LARGEST = {"n_layer": 1024, "n_head": 1024, "d_model": 1 << 17, "d_ff": 1 << 20, "n_vocab": 1 << 24, "n_ctx": 1 << 20}


@dataclass(frozen=True)
class ModelConfig:
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

    Raises
    ------
    ConfigError
        Whose ``where`` is the first field that makes no sense.

    Notes
    -----
    The defaults are GPT-J-6B's: https://huggingface.co/EleutherAI/gpt-j-6b, config.json.
    """

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

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            whole_number(name, getattr(self, name), 1, most, ConfigError)
        if self.d_model % self.n_head:
            raise ConfigError("does not divide d_model", where="n_head", got=f"{self.n_head} and {self.d_model}")
        whole_number("d_rotary", self.d_rotary, 2, self.d_head, ConfigError)
        if self.d_rotary % 2:
            raise ConfigError("is odd, but dimensions are rotated in pairs", where="d_rotary", got=self.d_rotary)
        eps = self.ln_eps
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
            raise ConfigError("cannot be used", where="ln_eps", got=repr(eps), wanted="a number between 0 and 1")
        for name in ("bos_id", "eos_id"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 0, self.n_vocab - 1, ConfigError)

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_head

    @property
    def n_params(self) -> int:
        """Number of weights and biases (6,050,882,784 for GPT-J-6B)."""
        c, f, v = self.d_model, self.d_ff, self.n_vocab
        block = 4 * c * c + 2 * c * f + f + c + 2 * c
        return v * c + self.n_layer * block + 2 * c + v * c + v

    def __str__(self) -> str:
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
