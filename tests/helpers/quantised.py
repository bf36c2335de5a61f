"""Quantised panels and rows written down from what they hold, apart from the code that makes them."""

from __future__ import annotations

import numpy as np

from refgpt.numbers.panels import Panels


def quantised_panels(kind: str, integers: np.ndarray, scales: np.ndarray) -> Panels:
    """Panels as ``refgpt.numbers.panels`` describes them. integers [n_out, n_in], scales float16 [n_out, n_blocks]."""
    panels = Panels.zeros(kind, *integers.shape)
    n_panels, n_blocks, _ = panels.data.shape
    bits = {"q8": 8, "q4": 4, "q3": 3}[kind]
    zero = 0 if kind == "q8" else 2 ** (bits - 1)
    whole = np.full((n_panels * 16, n_blocks * 32), zero, np.uint8)
    whole[: integers.shape[0], : integers.shape[1]] = (integers + zero) % 256
    quads = whole.reshape(n_panels, 16, n_blocks, 8, 4).transpose(0, 2, 3, 1, 4)  # [panel, block, quad, lane, 4]
    if kind != "q8":
        quads = quads[:, :, 0::2] + quads[:, :, 1::2] * 2**bits
    if kind == "q3":
        quads = quads[:, :, :3] + quads[:, :, 3:] // np.uint8([1, 4, 16])[:, None, None] % 4 * 64
    rows = np.zeros((n_panels * 16, n_blocks), np.float16)
    rows[: len(scales)] = scales
    panels.data[..., :-32] = quads.reshape(n_panels, n_blocks, panels.data.shape[2] - 32)
    by_lane = np.ascontiguousarray(rows.reshape(n_panels, 16, n_blocks).transpose(0, 2, 1))
    panels.data[..., -32:] = by_lane.view(np.uint8).reshape(n_panels, n_blocks, 32)
    return panels


def decoded_rows(records: np.ndarray, n_rows: int, n_in: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Records as ``csrc/refgpt_kernels.h`` describes them -> integers [t, blocks x 32], scales and sums [t, blocks]."""
    n_blocks = -(-n_in // 32)
    integers, scales, sums = [], [], []
    for first in range(0, n_rows, 24):
        h = min(24, n_rows - first)
        group = records[first * n_blocks * 40 :][: h * n_blocks * 40].reshape(n_blocks, 40 * h)
        quads = group[:, : 32 * h].view(np.int8).reshape(n_blocks, 8, h, 4)
        integers.append(quads.transpose(2, 0, 1, 3).reshape(h, -1))
        scales.append(np.ascontiguousarray(group[:, 32 * h : 36 * h]).view(np.float32).T)
        sums.append(np.ascontiguousarray(group[:, 36 * h :]).view(np.int32).T)
    return np.concatenate(integers), np.concatenate(scales), np.concatenate(sums)
