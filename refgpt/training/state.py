"""A training on disk: one file of safetensors, whose metadata holds the settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.arguments import directory_of, one_of, path_of, whole_number
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt._common.small_files import parse_json
from refgpt._common.wording import FRESH_COPY, shown
from refgpt.checkpoints.files.safetensors_file import read_mapped
from refgpt.conversion.tensor_files import write_tensors
from refgpt.numbers.dtypes import COMPUTES
from refgpt.numbers.finite import check_finite
from refgpt.numbers.mapped import map_file
from refgpt.training.optimiser import AdamW, Muon

STATE = "trainer.safetensors"
VERSION = 1
#: What stands between what an array is and the name of the weights that it belongs to.
SEPARATOR = ":"
#: What optimisers keep beside the weights.
MOMENTS = ("mean", "square", "momentum")


@dataclass(frozen=True, eq=False)
class State:
    """What ``Trainer.save`` keeps. Arrays are by the weights' names in files, moments also by what they are."""

    n_steps: int
    optimiser: AdamW
    clip: float | None
    muon: Muon | None
    dropout: float
    seed: int
    compute: str
    weights: dict[str, np.ndarray]
    moments: dict[str, dict[str, np.ndarray]]


def write_state(directory: str | Path, state: State) -> None:
    """Write it to a directory, which is made if it is not there; an earlier one is replaced when this one is whole.

    Raises
    ------
    CheckpointError
        If it cannot be written.
    """
    place = directory_of("directory", directory, CheckpointError)
    muon = state.muon
    told: dict[str, Any] = {
        "version": VERSION,
        "n_steps": state.n_steps,
        "clip": state.clip,
        "adamw": {
            "betas": list(state.optimiser.betas),
            "eps": state.optimiser.eps,
            "weight_decay": state.optimiser.weight_decay,
            "decay": None if state.optimiser.decay is None else list(state.optimiser.decay),
            **({} if state.optimiser.averaged_over == 1 else {"averaged_over": state.optimiser.averaged_over}),
        },
        "muon": None
        if muon is None
        else {"names": list(muon.names), "momentum": muon.momentum, "lr_scale": muon.lr_scale},
        "dropout": state.dropout,
        "seed": state.seed,
        "compute": state.compute,
    }
    arrays = {f"weights{SEPARATOR}{name}": w for name, w in state.weights.items()}
    for name, moments in state.moments.items():
        arrays |= {f"{kind}{SEPARATOR}{name}": moment for kind, moment in moments.items()}
    write_tensors(place / STATE, arrays, {"refgpt_trainer": json.dumps(told)})


def read_state(directory: str | Path) -> State:
    """What ``write_state`` wrote.

    Raises
    ------
    CheckpointError
        If it is not there, or damaged.
    """
    path = path_of("directory", directory, CheckpointError) / STATE
    tensors, metadata = read_mapped(map_file(path))
    text = metadata.get("refgpt_trainer") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError("is no state of a training", where=path, wanted="what Trainer.save writes")
    told = parse_json(text.encode(), path, CheckpointError)
    if told.get("version") != VERSION:
        got = shown(told.get("version"))
        raise CheckpointError("is of another version", where=path, got=got, wanted=VERSION, fix="update refgpt")
    weights: dict[str, np.ndarray] = {}
    moments: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        kind, _, of = name.partition(SEPARATOR)
        check_finite(f"{path}, {shown(name)}", tensor)
        if kind == "weights":
            weights[of] = tensor
        elif kind in MOMENTS:
            moments.setdefault(of, {})[kind] = tensor
        else:
            raise CheckpointError("holds what is no part of a training", where=path, got=shown(name), fix=FRESH_COPY)
    try:
        muon = None if told["muon"] is None else Muon(**told["muon"])
        n_steps = whole_number("n_steps", told["n_steps"], 0, None, CheckpointError)
        compute = told.get("compute", "f32")
        one_of("compute", compute, COMPUTES, CheckpointError)
        settings = (AdamW(**told["adamw"]), told["clip"], muon, told.get("dropout", 0.0), told.get("seed", 0), compute)
        return State(n_steps, *settings, weights, moments)
    except (KeyError, TypeError) as fault:
        raise CheckpointError("its settings make no sense", where=path, got=shown(fault), fix=FRESH_COPY) from None
    except RefgptError as fault:
        raise CheckpointError("its settings make no sense", where=path, got=str(fault), fix=FRESH_COPY) from None
