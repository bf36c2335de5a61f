"""What a model is good for, measured: classification by label likelihood, ready prompts, the RAFT benchmark."""

from refgpt.evaluation.classification import DEFAULT_TEMPLATE, NORMALISATIONS, Classification, Classifier
from refgpt.evaluation.metrics import Estimate, accuracy, codes, estimate, macro_f1
from refgpt.evaluation.tables import Table, read_csv
from refgpt.evaluation.templates import Template

__all__ = [
    "DEFAULT_TEMPLATE",
    "NORMALISATIONS",
    "Classification",
    "Classifier",
    "Estimate",
    "Table",
    "Template",
    "accuracy",
    "codes",
    "estimate",
    "macro_f1",
    "read_csv",
]
