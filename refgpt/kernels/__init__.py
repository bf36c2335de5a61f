"""The C kernels: which there are, which run here (``registry``), and calling them on arrays (``ops``)."""

from refgpt.kernels.native import CHUNK, FEW_ROWS
from refgpt.kernels.ops import (
    attention,
    embedding,
    gelu,
    kv_append,
    kv_shapes,
    layer_norm,
    linear,
    linear_scratch,
    pack,
    query_tiles,
    rotary,
    row_sum,
    softmax,
)
from refgpt.kernels.registry import Kernel, active, force_isa, list_kernels
from refgpt.kernels.threads import check_threads

__all__ = [
    "CHUNK",
    "FEW_ROWS",
    "Kernel",
    "active",
    "attention",
    "check_threads",
    "embedding",
    "force_isa",
    "gelu",
    "kv_append",
    "kv_shapes",
    "layer_norm",
    "linear",
    "linear_scratch",
    "list_kernels",
    "pack",
    "query_tiles",
    "rotary",
    "row_sum",
    "softmax",
]
