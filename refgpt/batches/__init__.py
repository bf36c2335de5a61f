"""Files of prompts: requests are answered in batches, each exactly once, and an interrupted run resumes."""

from refgpt.batches.batch import BatchSummary, run_batch

__all__ = ["BatchSummary", "run_batch"]
