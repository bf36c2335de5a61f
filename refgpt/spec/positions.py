"""GPT-J's rotary position embedding: it rotates neighbouring pairs, and only the first dimensions of a head."""

from __future__ import annotations

import numpy as np


def rotary_angles(positions: np.ndarray, d_rotary: int) -> np.ndarray:
    """Rotation angle of each pair at each position, in radians. positions [t] -> [t, d_rotary / 2], float64.

    Pair ``i`` turns by ``10000 ** (-2 i / d_rotary)`` per position: the first is the fastest, the last hardly turns.
    """
    per_position = 10000.0 ** (-np.arange(0, d_rotary, 2) / d_rotary)  # [r/2]
    return positions[:, None] * per_position  # [t, r/2]


def rotate_pairs(x: np.ndarray, positions: np.ndarray, d_rotary: int) -> np.ndarray:
    """Turn the pairs (0, 1), (2, 3), ... of the first ``d_rotary`` dimensions of each head by its position's angles.

    After the rotation, the product of a query and a key depends only on the distance of their positions.

    Parameters
    ----------
    x : ndarray [t, h, d]
        Queries or keys.
    positions : ndarray [t]
        Position of each row in the text, from 0.
    d_rotary : int
        Number of rotated dimensions, even; the others are unchanged.

    Returns
    -------
    ndarray [t, h, d]

    Notes
    -----
    Angles, sines and cosines are float64 whatever ``x`` is, and rounded once: an angle of 2000 radians kept in 16 bits
    would be wrong by a whole turn. GPT-J pairs neighbours; GPT-NeoX pairs the halves of a head, and is another model.
    """
    angles = rotary_angles(positions, d_rotary)  # [t, r/2]
    cos = np.cos(angles).astype(x.dtype)[:, None, :]  # [t, 1, r/2]
    sin = np.sin(angles).astype(x.dtype)[:, None, :]  # [t, 1, r/2]
    even, odd = x[..., 0:d_rotary:2], x[..., 1:d_rotary:2]  # [t, h, r/2] each
    turned = x.copy()  # [t, h, d]
    turned[..., 0:d_rotary:2] = even * cos - odd * sin
    turned[..., 1:d_rotary:2] = odd * cos + even * sin
    return turned
