"""Looking inside a model, through either engine: record, patch, analyse, and hold an engine to the spec."""

from refgpt.tracing.lens import logit_lens, residual_norms
from refgpt.tracing.memory import trace_bytes
from refgpt.tracing.patches import (
    Patches,
    Replacement,
    mean_ablation,
    patch_from,
    zero_ablation,
    zero_heads,
    zero_neurons,
)
from refgpt.tracing.places import Indices, Names
from refgpt.tracing.recording import patch, record
from refgpt.tracing.verifying import Report, TapResult, verify

__all__ = [
    "Indices",
    "Names",
    "Patches",
    "Replacement",
    "Report",
    "TapResult",
    "logit_lens",
    "mean_ablation",
    "patch",
    "patch_from",
    "record",
    "residual_norms",
    "trace_bytes",
    "verify",
    "zero_ablation",
    "zero_heads",
    "zero_neurons",
]
