"""Looking inside a model with either engine: record, patch, analyse, and compare an engine with the spec."""

from refgpt.tracing.attention_scores import (
    HeadScores,
    attention_entropy,
    duplicate_token_score,
    head_scores,
    induction_score,
    previous_token_score,
    repeated_ids,
)
from refgpt.tracing.attribution import Attribution, logit_attribution
from refgpt.tracing.causal_tracing import CausalTrace, causal_trace
from refgpt.tracing.comparing import Comparison, Difference, compare
from refgpt.tracing.embedding import embed
from refgpt.tracing.gradients import record_gradients
from refgpt.tracing.lens import logit_lens, residual_norms
from refgpt.tracing.memory import trace_bytes
from refgpt.tracing.neurons import TopActivations, top_activations
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
from refgpt.tracing.recording import patch, record, visit
from refgpt.tracing.verifying import Report, TapResult, verify, verify_bytes

__all__ = [
    "Attribution",
    "CausalTrace",
    "Comparison",
    "Difference",
    "HeadScores",
    "Indices",
    "Names",
    "Patches",
    "Replacement",
    "Report",
    "TapResult",
    "TopActivations",
    "attention_entropy",
    "causal_trace",
    "compare",
    "duplicate_token_score",
    "embed",
    "head_scores",
    "induction_score",
    "logit_attribution",
    "logit_lens",
    "mean_ablation",
    "patch",
    "patch_from",
    "previous_token_score",
    "record",
    "record_gradients",
    "repeated_ids",
    "residual_norms",
    "top_activations",
    "trace_bytes",
    "verify",
    "verify_bytes",
    "visit",
    "zero_ablation",
    "zero_heads",
    "zero_neurons",
]
