"""What other implementations compute and write, recorded by ``python -m tests.goldens.record``.

Here: activations of PyTorch's GPT-J, ``load(name)`` for each of ``NAMES``, and of its kin, ``load_family(variant)`` for
each of ``tests.helpers.families.VARIANTS`` but GPT-J.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refgpt import ModelConfig
from refgpt.spec.gptj import Params
from tests.helpers.tiny import random_params, tiny_config

HERE = Path(__file__).parent
ACTIVATIONS = HERE / "activations"
FAMILIES = HERE / "families"
GRADIENTS = HERE / "gradients"
FAMILY_GRADIENTS = HERE / "family_gradients"
ADAPTERS = HERE / "adapters"
NAMES = sorted(path.stem for path in ACTIVATIONS.glob("*.npz"))


@dataclass(frozen=True)
class Golden:
    """One recorded run. Weights are not stored: ``params()`` makes them again."""

    config: ModelConfig
    seed: int
    dtype: str  # the weights': "f32", "f16" or "bf16"
    ids: np.ndarray  # [t]
    prefix_len: int
    rows: np.ndarray  # the positions whose logits were kept
    logits: np.ndarray  # [rows, v]     float32 run
    logits_float64: np.ndarray  # [rows, v]     float64 run of the same weights, everything in float64
    torch_float32_error: float  # max |float32 - float64| / std of the logits, all positions, same rotary table
    hidden: np.ndarray | None  # [n_layer + 2, t, c]: embed, resid_post of each block, ln_final; float32 run
    patterns: np.ndarray | None  # [n_layer, h, t, s]; float32 run

    def params(self) -> Params:
        """The weights of the run, widened nowhere."""
        return random_params(self.config, self.seed, self.dtype)


def load(name: str) -> Golden:
    """The recorded run of that name; the medium ones keep some rows of logits and no hidden states."""
    with np.load(ACTIVATIONS / f"{name}.npz") as file:
        held = dict(file)
    about = json.loads(str(held.pop("about")))
    about["config"] = tiny_config(**about["config"])
    return Golden(
        **about, **{key: held.get(key) for key in ("ids", "rows", "logits", "logits_float64", "hidden", "patterns")}
    )


@dataclass(frozen=True)
class FamilyGolden:
    """One recorded run of a variant, all in float64. Weights are not stored: ``random_params(config, seed)``."""

    seed: int
    ids: np.ndarray  # [t]
    logits: np.ndarray  # [t, v]
    hidden: np.ndarray  # [n_layer + 1, t, c]: the stream before each block, then ln_final
    patterns: np.ndarray  # [n_layer, h, t, s]


def family_file(variant: str) -> Path:
    """Where the run of a variant is kept."""
    return FAMILIES / f"{variant.replace(', ', '_').replace(' ', '_')}.npz"


def load_family(variant: str) -> FamilyGolden:
    """The recorded run of a variant."""
    with np.load(family_file(variant)) as file:
        held = dict(file)
    return FamilyGolden(seed=json.loads(str(held.pop("about")))["seed"], **held)
