"""Training: texts, batches, gradients, optimisers, adapters, steps, and whole runs."""

from refgpt.training.batch import Batch
from refgpt.training.data import Texts, find_splits, read_texts
from refgpt.training.evaluating import mean_loss
from refgpt.training.examples import Encoder, Example, batch_of
from refgpt.training.gradients import gradients
from refgpt.training.lora import new_adapter
from refgpt.training.optimiser import AdamW, Muon
from refgpt.training.run import Run, RunEvent, RunSettings
from refgpt.training.schedule import schedule
from refgpt.training.trainer import Step, Trainer

__all__ = [
    "AdamW",
    "Batch",
    "Encoder",
    "Example",
    "Muon",
    "Run",
    "RunEvent",
    "RunSettings",
    "Step",
    "Texts",
    "Trainer",
    "batch_of",
    "find_splits",
    "gradients",
    "mean_loss",
    "new_adapter",
    "read_texts",
    "schedule",
]
