"""Checksums that take no longer than reading the bytes. (SHA-256 of a whole model would take longer.)

Bytes are read as little-endian words in pieces of 64 KiB. Each piece has a digest of 64 bits, which changes with
certainty if any one word changes; the checksum is the SHA-256 of all digests, concatenated. It detects damage. It is
not a signature: anyone who can write a file can write its checksum too.
"""

from __future__ import annotations

import hashlib

import numpy as np

from refgpt.numbers.finite import all_finite

PIECE_WORDS = 1 << 14
LANES = 64


def digests(words: np.ndarray, piece_words: int = PIECE_WORDS) -> np.ndarray:
    """Digests of the pieces of an array of words; the kernel ``digests`` returns the same.

    Word i of a piece goes into lane i % 64: ``lane = (rotl(lane, 15) ^ word) * 0x01000193``, starting from 0, with
    zeros for missing words in the last step. A digest starts at the number of words in its piece and takes the lanes in
    order: ``digest = (digest ^ lane) * 0x100000001b3``. Every step is invertible, so a change of a single word always
    changes the digest.

    Parameters
    ----------
    words : ndarray [n], uint32
    piece_words : int

    Returns
    -------
    ndarray [n_pieces], uint64
    """
    n_pieces = -(-len(words) // piece_words)
    n_words = np.full(n_pieces, piece_words, np.uint64)
    if len(words) % piece_words:
        n_words[-1] = len(words) % piece_words
    whole = len(words) // piece_words * piece_words
    digest = n_words
    for lane in np.concatenate((_lanes(words[:whole], piece_words), _lanes(words[whole:], piece_words))).T:
        digest = (digest ^ lane) * np.uint64(0x100000001B3)
    return digest


def digests_and_finite(words: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, bool]:
    """The digests of some words, and whether the floats in them are finite.

    The kernel ``digests_and_finite`` returns the same, and reads the words once for both.

    Parameters
    ----------
    words : ndarray [n], uint32
    numbers : ndarray
        Floats in these words: a view of them.

    Returns
    -------
    digests : ndarray [n_pieces], uint64
    finite : bool
    """
    return digests(words), all_finite(numbers)


def _lanes(words: np.ndarray, piece_words: int) -> np.ndarray:
    """The lanes after the last word of each piece: [n_pieces, 64]. All pieces have the same length."""
    n = min(piece_words, len(words))
    pieces = np.empty((0, 0), np.uint32) if n == 0 else words.reshape(-1, n)
    lanes = np.zeros((len(pieces), LANES), np.uint32)
    for start in range(0, n, LANES):
        some = pieces[:, start : start + LANES]
        lanes = lanes << np.uint32(15) | lanes >> np.uint32(17)
        lanes[:, : some.shape[1]] ^= some
        lanes *= np.uint32(0x01000193)
    return lanes


def checksum(piece_digests: np.ndarray) -> str:
    """The checksum of bytes whose pieces have these digests: 64 hexadecimal digits."""
    return hashlib.sha256(piece_digests.astype("<u8").tobytes()).hexdigest()
