"""Rotary position embedding of the first dimensions of a head: in neighbouring pairs (GPT-J) or halves (GPT-NeoX)."""

from __future__ import annotations

import numpy as np


def rotary_angles(positions: np.ndarray, d_rotary: int, base: float = 10000.0) -> np.ndarray:
    """How far each pair is turned at each position, in radians. positions [t] -> [t, d_rotary / 2], float64.

    Pair ``i`` turns by ``base ** (-2 i / d_rotary)`` a position: the first fastest, the last hardly at all.
    """
    per_position = base ** (-np.arange(0, d_rotary, 2) / d_rotary)  # [r/2]
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
    would be wrong by a whole turn. GPT-J pairs neighbours, GPT-NeoX halves: see ``rotate_halves``.
    """
    angles = rotary_angles(positions, d_rotary)  # [t, r/2]
    cos = np.cos(angles).astype(x.dtype)[:, None, :]  # [t, 1, r/2]
    sin = np.sin(angles).astype(x.dtype)[:, None, :]  # [t, 1, r/2]
    even, odd = x[..., 0:d_rotary:2], x[..., 1:d_rotary:2]  # [t, h, r/2] each
    turned = x.copy()  # [t, h, d]
    turned[..., 0:d_rotary:2] = even * cos - odd * sin
    turned[..., 1:d_rotary:2] = odd * cos + even * sin
    return turned


def rotate_halves(x: np.ndarray, positions: np.ndarray, d_rotary: int, base: float = 10000.0) -> np.ndarray:
    """Turn the pairs (0, r/2), (1, r/2 + 1), ... of the first r = ``d_rotary`` dimensions of each head.

    Like ``rotate_pairs``, but for which dimensions make a pair, and with any ``base``. x [t, h, d] -> [t, h, d].
    """
    angles = rotary_angles(positions, d_rotary, base)  # [t, r/2]
    cos = np.cos(angles).astype(x.dtype)[:, None, :]  # [t, 1, r/2]
    sin = np.sin(angles).astype(x.dtype)[:, None, :]  # [t, 1, r/2]
    half = d_rotary // 2
    first, second = x[..., :half], x[..., half:d_rotary]  # [t, h, r/2] each
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, x[..., d_rotary:]), axis=-1)
