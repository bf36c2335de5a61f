"""Evaluation: zero-shot tasks, perplexity, summaries and RAFT, with intervals and comparisons; classification by label
likelihood; GPT-JT's demonstrations.

``evaluate`` runs a measurement, ``PairedRuns`` sets two runs side by side, and ``open_record_file`` keeps records as
they are made. ``refgpt.evaluation.lm_eval`` is a model for lm-evaluation-harness.
"""

from refgpt._common.record_file import RecordFile, open_record_file
from refgpt.evaluation.classification import (
    DEFAULT_TEMPLATE,
    NORMALISATIONS,
    Classification,
    Classifier,
    classify_column,
)
from refgpt.evaluation.demos import DEMO_SETTINGS, DEMOS, Demo
from refgpt.evaluation.measures import Measure, Metric
from refgpt.evaluation.metrics import (
    Estimate,
    accuracy,
    codes,
    difference_of,
    estimate,
    macro_f1,
    mean_over_trials,
)
from refgpt.evaluation.perplexity import Perplexity
from refgpt.evaluation.published import PUBLISHED
from refgpt.evaluation.raft import METHODS, Raft, RaftResult, RaftSettings, mean_results, run_raft
from refgpt.evaluation.raft_tasks import RaftTask, read_raft
from refgpt.evaluation.reports import comparison_table, table
from refgpt.evaluation.requests import FRAMINGS, Framing
from refgpt.evaluation.rows import Rows, read_rows
from refgpt.evaluation.runner import PairedRuns, Run, evaluate
from refgpt.evaluation.summaries import Summaries
from refgpt.evaluation.tables import Table, read_csv
from refgpt.evaluation.templates import Template, check_labels
from refgpt.evaluation.zero_shot import TASKS, Task, ZeroShot

__all__ = [
    "DEFAULT_TEMPLATE",
    "DEMOS",
    "DEMO_SETTINGS",
    "FRAMINGS",
    "METHODS",
    "NORMALISATIONS",
    "PUBLISHED",
    "TASKS",
    "Classification",
    "Classifier",
    "Demo",
    "Estimate",
    "Framing",
    "Measure",
    "Metric",
    "PairedRuns",
    "Perplexity",
    "Raft",
    "RaftResult",
    "RaftSettings",
    "RaftTask",
    "RecordFile",
    "Rows",
    "Run",
    "Summaries",
    "Table",
    "Task",
    "Template",
    "ZeroShot",
    "accuracy",
    "check_labels",
    "classify_column",
    "codes",
    "comparison_table",
    "difference_of",
    "estimate",
    "evaluate",
    "macro_f1",
    "mean_over_trials",
    "mean_results",
    "open_record_file",
    "read_csv",
    "read_raft",
    "read_rows",
    "run_raft",
    "table",
]
