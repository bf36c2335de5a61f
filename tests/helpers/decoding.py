"""The model and the filters that ways of decoding are tested with, here and by transformers."""

from __future__ import annotations

from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=3)
PARAMS = random_params(CONFIG, seed=5)

FILTERS: list[dict[str, float]] = [
    {"min_p": 0.05},
    {"min_p": 0.5},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"typical_p": 0.99, "temperature": 2.0},
    {"epsilon_cutoff": 0.01},
    {"epsilon_cutoff": 0.3},
    {"epsilon_cutoff": 0.99},
    {"eta_cutoff": 0.02},
    {"eta_cutoff": 0.3, "temperature": 3.0},
    {"eta_cutoff": 0.9},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"top_p": 0.8, "typical_p": 0.7},
    {"top_k": 30, "typical_p": 0.6, "epsilon_cutoff": 0.02},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.97, "min_p": 0.03, "typical_p": 0.9, "eta_cutoff": 0.05},
    {"temperature": 0.5, "min_p": 0.1, "typical_p": 0.95, "epsilon_cutoff": 0.05, "eta_cutoff": 0.06},
]
