"""Training: batches, gradients, optimisers, adapters, and the steps that they are parts of."""

from refgpt.training.batch import Batch
from refgpt.training.gradients import gradients
from refgpt.training.lora import new_adapter
from refgpt.training.optimiser import AdamW, Muon
from refgpt.training.schedule import schedule
from refgpt.training.trainer import Step, Trainer

__all__ = ["AdamW", "Batch", "Muon", "Step", "Trainer", "gradients", "new_adapter", "schedule"]
