"""The C kernels: listing and choosing them (``registry``), and calling them, now or in a ``Program``."""

from refgpt.kernels.attention import attention, kv_append, query_tiles
from refgpt.kernels.calling import Program
from refgpt.kernels.gradients import (
    attention_backward,
    attention_backward_scratch,
    column_sum,
    cross_entropy_backward,
    embedding_backward,
    layer_norm_backward,
    layer_norm_weight_backward,
    linear_backward,
    linear_weight_backward,
)
from refgpt.kernels.linear import LinearInput, linear, pack, quantise_rows, round_rows, scratch_bytes
from refgpt.kernels.native import CHUNK, FEW_ROWS
from refgpt.kernels.ops import (
    add,
    embedding,
    gelu,
    gelu_backward,
    gelu_erf,
    gelu_erf_backward,
    layer_norm,
    residual,
    rotary,
    rotary_halves,
    row_sum,
    softmax,
)
from refgpt.kernels.optimisers import adamw, adamw_averaged
from refgpt.kernels.orthogonal import gram, newton_schulz, orthogonalised
from refgpt.kernels.quantising import digests, digests_and_finite, quantise, store
from refgpt.kernels.registry import Kernel, active, force_isa, forced_isa, list_kernels
from refgpt.kernels.selfcheck import check_bits, wrong_kernels
from refgpt.kernels.threads import check_threads
from refgpt.numbers.cached import kv_shapes

Activations = LinearInput  # its former name

__all__ = [
    "CHUNK",
    "FEW_ROWS",
    "Activations",
    "Kernel",
    "LinearInput",
    "Program",
    "active",
    "adamw",
    "adamw_averaged",
    "add",
    "attention",
    "attention_backward",
    "attention_backward_scratch",
    "check_bits",
    "check_threads",
    "column_sum",
    "cross_entropy_backward",
    "digests",
    "digests_and_finite",
    "embedding",
    "embedding_backward",
    "force_isa",
    "forced_isa",
    "gelu",
    "gelu_backward",
    "gelu_erf",
    "gelu_erf_backward",
    "gram",
    "kv_append",
    "kv_shapes",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_weight_backward",
    "linear",
    "linear_backward",
    "linear_weight_backward",
    "list_kernels",
    "newton_schulz",
    "orthogonalised",
    "pack",
    "quantise",
    "quantise_rows",
    "query_tiles",
    "residual",
    "rotary",
    "rotary_halves",
    "round_rows",
    "row_sum",
    "scratch_bytes",
    "softmax",
    "store",
    "wrong_kernels",
]
