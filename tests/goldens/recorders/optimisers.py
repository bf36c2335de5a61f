"""Record steps of PyTorch's AdamW, in float64, on gradients that are drawn at random."""

from __future__ import annotations

import numpy as np
import torch

from tests.goldens import HERE

SETTINGS = [
    {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
]
N_STEPS = 5


def gradients(seed: int, sizes: tuple[int, int] = (-6, 2)) -> tuple[np.ndarray, np.ndarray]:
    """Weights [6, 4], and a gradient for each step, of many sizes. -> [6, 4], [n_steps, 6, 4]"""
    stream = np.random.RandomState(seed)
    sizes = 10.0 ** stream.randint(*sizes, (N_STEPS, 6, 4))
    return stream.random_sample((6, 4)) - 0.5, (stream.random_sample((N_STEPS, 6, 4)) - 0.5) * sizes


def main() -> None:
    found = {}
    for i, settings in enumerate(SETTINGS):
        start, steps = gradients(i)
        w = torch.nn.Parameter(torch.from_numpy(start.copy()))
        optimiser = torch.optim.AdamW([w], foreach=False, **settings)
        after = []
        for gradient in steps:
            w.grad = torch.from_numpy(gradient.copy())
            optimiser.step()
            after.append(w.detach().numpy().copy())
        found[f"adamw_{i}"] = np.stack(after)
    start, steps = gradients(9, (0, 1))
    w = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = torch.optim.Muon([w], lr=1e-2, weight_decay=0.1, momentum=0.9)
    after = []
    for gradient in steps:
        w.grad = torch.from_numpy(gradient.copy())
        optimiser.step()
        after.append(w.detach().numpy().copy())
    found["muon"] = np.stack(after)
    path = HERE / "optimisers.npz"
    np.savez_compressed(path, torch=torch.__version__, **found)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, torch {torch.__version__}")
