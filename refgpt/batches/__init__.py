"""Files of prompts: every request is answered once, many of them together, and a run that was cut off goes on."""

from refgpt.batches.batch import BatchSummary, run_batch

__all__ = ["BatchSummary", "run_batch"]
