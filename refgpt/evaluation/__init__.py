"""Evaluation: classification by label likelihood, GPT-JT's demonstrations, the RAFT benchmark."""

from refgpt.evaluation.classification import (
    DEFAULT_TEMPLATE,
    NORMALISATIONS,
    Classification,
    Classifier,
    classify_column,
)
from refgpt.evaluation.demos import DEMO_SETTINGS, DEMOS, Demo
from refgpt.evaluation.metrics import Estimate, accuracy, codes, estimate, macro_f1, mean_over_trials
from refgpt.evaluation.raft import METHODS, RaftResult, RaftSettings, mean_results, run_raft
from refgpt.evaluation.raft_tasks import RaftTask, read_raft
from refgpt.evaluation.tables import Table, read_csv
from refgpt.evaluation.templates import Template, check_labels

__all__ = [
    "DEFAULT_TEMPLATE",
    "DEMOS",
    "DEMO_SETTINGS",
    "METHODS",
    "NORMALISATIONS",
    "Classification",
    "Classifier",
    "Demo",
    "Estimate",
    "RaftResult",
    "RaftSettings",
    "RaftTask",
    "Table",
    "Template",
    "accuracy",
    "check_labels",
    "classify_column",
    "codes",
    "estimate",
    "macro_f1",
    "mean_over_trials",
    "mean_results",
    "read_csv",
    "read_raft",
    "run_raft",
]
