"""Looking inside a model, through any engine: record, patch, read the residual stream, compare with the spec."""

from refgpt.tracing.compare import Report, TapResult, compare
from refgpt.tracing.record import logit_lens, patch, record

__all__ = ["Report", "TapResult", "compare", "logit_lens", "patch", "record"]
