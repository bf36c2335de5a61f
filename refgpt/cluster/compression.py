"""Lossy compression of the vectors that workers exchange: fewer bits per value, or only some of the values.

The sender knows the compression error and adds it to the next vector ("error feedback", Seide et al. 2014,
Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847), so that nothing is lost permanently.

=============  ================================================================================================
method         what is sent of a vector of ``n`` float32 numbers
=============  ================================================================================================
none           all of it: 32 bits a value
f16            float16: 16 bits a value
intB           integers of B = 2, 4 or 8 bits, and a float16 scale for every 128 values
topk:F,bits:B  the largest F of the values of every 4,096: positions as gaps (about 6.5 bits each at F = 0.03), a
               sign and B - 1 bits of magnitude each, and the smallest and largest magnitude of every 4,096
cocktail       the largest fifth of a random tenth, in 4 bits, as in CocktailSGD (Wang et al. 2023,
               https://proceedings.mlr.press/v202/wang23t.html); sender and receiver draw the same tenth from a seed
=============  ================================================================================================

Every method is deterministic: equal vectors and seeds give equal bytes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown

#: Values that share a scale, and values among which the largest are chosen.
BLOCK, CHUNK = 128, 4096
#: Chunks whose largest values are found together.
GROUP = 256
COCKTAIL_RANDOM, COCKTAIL_TOP, COCKTAIL_BITS = 0.1, 0.2, 4
_F32, _F16 = np.dtype("<f4"), np.dtype("<f2")


class DamagedMessage(RefgptError):
    """The bytes are not the output of an encoder."""


@dataclass(frozen=True)
class Compression:
    """A method of compression; ``parse_compression`` makes one from its name.

    Attributes
    ----------
    kind : "none", "f16", "int" or "topk"
    bits : int
        Bits for each value that is sent, without its position.
    top : float
        Share of the values that are sent, of those that ``random`` leaves.
    random : float
        Share of the values that are considered at all, drawn anew for each vector.
    """

    kind: str = "none"
    bits: int = 32
    top: float = 1.0
    random: float = 1.0

    def encode(self, vector: np.ndarray, seed: int = 0) -> bytes:
        """Compress a vector.

        Parameters
        ----------
        vector : ndarray [n], float32
            Finite numbers.
        seed : int
            For methods that send a random part. The receiver must use the same.

        Raises
        ------
        RefgptError
            If a number is NaN or infinite.
        """
        vector = np.ascontiguousarray(vector, _F32)
        if not np.isfinite(vector).all():
            raise RefgptError("holds NaN or infinity, which cannot be sent", where="vector")
        if self.kind == "none":
            return vector.tobytes()
        if self.kind == "f16":
            return np.clip(vector, -65504, 65504).astype(_F16).tobytes()
        if self.kind == "int":
            return _encode_blocks(vector, self.bits)
        chosen = _drawn(len(vector), self.random, seed)
        return _encode_top(vector if chosen is None else vector[chosen], self.top, self.bits)

    def decode(self, data: bytes, n: int, seed: int = 0) -> np.ndarray:
        """The vector that the receiver sees: float32 [n].

        Raises
        ------
        DamagedMessage
            If the bytes are not what ``encode`` makes of a vector of this length.
        """
        if self.kind in ("none", "f16"):
            dtype = _F32 if self.kind == "none" else _F16
            if len(data) != n * dtype.itemsize:
                raise _damaged(len(data), n * dtype.itemsize)
            vector = np.frombuffer(data, dtype).astype(np.float32)
        elif self.kind == "int":
            vector = _decode_blocks(data, n, self.bits)
        else:
            chosen = _drawn(n, self.random, seed)
            if chosen is None:
                vector = _decode_top(data, n, self.top, self.bits)
            else:
                vector = np.zeros(n, np.float32)
                vector[chosen] = _decode_top(data, len(chosen), self.top, self.bits)
        if not np.isfinite(vector).all():
            raise DamagedMessage("holds NaN or infinity")
        return vector

    def __str__(self) -> str:
        if self.kind == "topk":
            return "cocktail" if self.random < 1 else f"topk:{self.top:g},bits:{self.bits}"
        return f"int{self.bits}" if self.kind == "int" else self.kind


def parse_compression(name: str) -> Compression:
    """A method from its name: "none", "f16", "int4", "topk:0.03,bits:2" or "cocktail".

    Raises
    ------
    RefgptError
        If there is no such method.
    """
    text = name.strip() if isinstance(name, str) else ""
    if text in ("none", "f16"):
        return Compression(text, 32 if text == "none" else 16)
    if text == "cocktail":
        return Compression("topk", COCKTAIL_BITS, COCKTAIL_TOP, COCKTAIL_RANDOM)
    if match := re.fullmatch(r"int([248])", text):
        return Compression("int", int(match[1]))
    if match := re.fullmatch(r"topk:([0-9.e-]+)(?:,bits:([1-8]))?", text):
        try:
            top = float(match[1])
        except ValueError:
            top = math.nan
        if 0 < top <= 1:
            return Compression("topk", int(match[2] or 2), top)
    wanted = "none, f16, int2, int4, int8, topk:0.03,bits:2 (a share above 0 up to 1, 1 to 8 bits) or cocktail"
    raise RefgptError("there is no such method", where="compress", got=shown(name), wanted=wanted)


# ---- all values in few bits -----------------------------------------------------------------------------------


def _encode_blocks(vector: np.ndarray, bits: int) -> bytes:
    """Scales [ceil(n / 128)] float16, then the integers, ``8 / bits`` in a byte."""
    most = (1 << (bits - 1)) - 1
    blocks = np.zeros((-(-len(vector) // BLOCK), BLOCK), np.float32)
    blocks.reshape(-1)[: len(vector)] = vector
    scales = np.minimum(np.abs(blocks).max(1, initial=0) / np.float32(most), 65504).astype(_F16)
    wide = scales.astype(np.float32)[:, None]
    integers = np.rint(np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide > 0))
    codes = (np.clip(integers, -most, most).astype(np.int64) + most).astype(np.uint8).reshape(-1)
    return scales.tobytes() + _pack(codes, bits)


def _decode_blocks(data: bytes, n: int, bits: int) -> np.ndarray:
    n_blocks = -(-n // BLOCK)
    wanted = 2 * n_blocks + n_blocks * BLOCK * bits // 8
    if len(data) != wanted:
        raise _damaged(len(data), wanted)
    most = (1 << (bits - 1)) - 1
    scales = np.frombuffer(data, _F16, n_blocks).astype(np.float32)
    integers = _unpack(data[2 * n_blocks :], n_blocks * BLOCK, bits).astype(np.float32) - np.float32(most)
    vector: np.ndarray = (integers.reshape(n_blocks, BLOCK) * scales[:, None]).reshape(-1)[:n]
    return vector


# ---- the largest values ---------------------------------------------------------------------------------------


def _encode_top(vector: np.ndarray, top: float, bits: int) -> bytes:
    """Magnitudes' ends [chunks, 2] float16, low bits of the gaps, the gaps' high parts in unary, signs, magnitudes."""
    n, n_chunks = len(vector), -(-len(vector) // CHUNK)
    sizes = _sizes(n, top)
    positions = _largest(np.abs(vector), top)
    values = vector[positions]
    magnitudes, of_chunk = np.abs(values), np.repeat(np.arange(n_chunks), sizes)
    ends = np.zeros((n_chunks, 2), np.float32)
    if n_chunks:
        starts = np.cumsum([0, *sizes[:-1]])
        if bits == 1:  # one bit holds only the sign; the magnitude is the mean
            ends[:] = (np.add.reduceat(magnitudes.astype(np.float64), starts) / sizes)[:, None]
        else:
            ends[:, 0], ends[:, 1] = np.minimum.reduceat(magnitudes, starts), np.maximum.reduceat(magnitudes, starts)
    stored = np.minimum(ends, 65504).astype(_F16)
    codes = _levels(magnitudes, stored.astype(np.float32)[of_chunk], bits)
    shift = _gap_shift(top)
    gaps = np.diff(positions, prepend=-1) - 1
    unary = np.zeros(int((gaps >> shift).sum()) + len(gaps), np.uint8)
    unary[np.cumsum((gaps >> shift) + 1) - 1] = 1
    low = (gaps[:, None] >> np.arange(shift)) & 1
    parts = [np.packbits(low.astype(np.uint8).reshape(-1)), np.packbits(unary), np.packbits(values < 0)]
    parts.append(np.packbits(((codes[:, None] >> np.arange(bits - 1)) & 1).astype(np.uint8).reshape(-1)))
    return stored.tobytes() + b"".join(part.tobytes() for part in parts)


def _largest(magnitudes: np.ndarray, top: float) -> np.ndarray:
    """Positions of the largest values of each chunk, in ascending order; among equals the first are kept."""
    n_whole = len(magnitudes) // CHUNK * CHUNK
    starts = [*range(0, n_whole, GROUP * CHUNK), n_whole]
    kept = [np.empty(0, np.int64)]
    for start, stop in zip(starts, [*starts[1:], len(magnitudes)], strict=True):
        if start == stop:
            continue
        chunks = magnitudes[start:stop].reshape(-1, min(CHUNK, stop - start))
        (k,) = _sizes(chunks.shape[1], top)
        least = np.partition(chunks, -k, axis=1)[:, -k, None]
        above, ties = chunks > least, chunks == least
        ties &= np.cumsum(ties, axis=1, dtype=np.int32) <= k - above.sum(axis=1, keepdims=True)
        kept.append(start + np.flatnonzero(above | ties))
    return np.concatenate(kept)


def _decode_top(data: bytes, n: int, top: float, bits: int) -> np.ndarray:
    n_chunks, shift, sizes = -(-n // CHUNK), _gap_shift(top), _sizes(n, top)
    k = sum(sizes)
    fixed = 4 * n_chunks, -(-k * shift // 8), -(-k // 8), -(-k * (bits - 1) // 8)
    n_unary = len(data) - sum(fixed)
    if n_unary < -(-k // 8) or n_unary > (k + (n >> shift)) // 8 + 1:
        raise DamagedMessage("its length fits no vector of this size", got=f"{len(data)} bytes", wanted=f"{n} values")
    cuts = np.cumsum([fixed[0], fixed[1], n_unary, fixed[2]]).tolist()
    raw = [np.frombuffer(part, np.uint8) for part in _cut(data, cuts)]
    ends = raw[0].view(_F16).astype(np.float32).reshape(n_chunks, 2)
    low = np.unpackbits(raw[1], count=k * shift).reshape(k, shift).astype(np.int64) @ (1 << np.arange(shift))
    ones = np.flatnonzero(np.unpackbits(raw[2]))
    if len(ones) != k:
        raise DamagedMessage("its positions are damaged", got=len(ones), wanted=k)
    positions = np.cumsum((np.diff(ones, prepend=-1) - 1 << shift) + low + 1) - 1
    of_chunk = np.repeat(np.arange(n_chunks), sizes)
    if (positions // CHUNK != of_chunk).any() or (k and positions[-1] >= n):
        raise DamagedMessage("its positions are outside the vector")
    codes = np.unpackbits(raw[4], count=k * (bits - 1)).reshape(k, bits - 1).astype(np.int64) @ (
        1 << np.arange(bits - 1)
    )
    magnitudes = _magnitudes(codes, ends[of_chunk], bits)
    vector = np.zeros(n, np.float32)
    vector[positions] = np.where(np.unpackbits(raw[3], count=k), -magnitudes, magnitudes)
    return vector


def _levels(magnitudes: np.ndarray, ends: np.ndarray, bits: int) -> np.ndarray:
    """Each magnitude [k] as the number of the nearest of evenly spaced levels between its ends [k, 2]."""
    most = (1 << (bits - 1)) - 1
    low, width = ends[:, 0], ends[:, 1] - ends[:, 0]
    share = np.divide(magnitudes - low, width, out=np.zeros_like(magnitudes), where=width > 0)
    return np.rint(np.clip(share, 0, 1) * np.float32(most)).astype(np.int64)


def _magnitudes(codes: np.ndarray, ends: np.ndarray, bits: int) -> np.ndarray:
    share = codes.astype(np.float32) / np.float32(max(1, (1 << (bits - 1)) - 1))
    magnitudes: np.ndarray = ends[:, 0] + share * (ends[:, 1] - ends[:, 0])
    return magnitudes


def _sizes(n: int, top: float) -> list[int]:
    """How many values are kept of each chunk: at least one."""
    chunks = (min(CHUNK, n - start) for start in range(0, n, CHUNK))
    return [min(size, max(1, math.ceil(size * top))) for size in chunks]


def _gap_shift(top: float) -> int:
    """Bits of a gap that are sent as they are (Rice coding): gaps have a mean of ``1 / top``, of a chunk at most."""
    return max(0, round(math.log2(max(1.0, math.log(2) / max(top, 1 / CHUNK)))))


def _drawn(n: int, share: float, seed: int) -> np.ndarray | None:
    """The positions that are considered, in ascending order; None for all."""
    if share >= 1:
        return None
    seed = whole_number("seed", seed, 0, (1 << 64) - 1, RefgptError)
    raw = np.random.Philox(key=seed).random_raw(n)  # raw numbers stay the same in every version of NumPy
    return np.flatnonzero(raw < np.uint64(int(share * 2.0**64)))


# ---- bits -----------------------------------------------------------------------------------------------------


def _pack(codes: np.ndarray, bits: int) -> bytes:
    each = 8 // bits
    shifted = codes.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * np.uint8(bits))
    return np.bitwise_or.reduce(shifted, 1).astype(np.uint8).tobytes()


def _unpack(data: bytes, n: int, bits: int) -> np.ndarray:
    each = 8 // bits
    raw = np.frombuffer(data, np.uint8)[:, None] >> (np.arange(each, dtype=np.uint8) * np.uint8(bits))
    codes: np.ndarray = (raw & np.uint8((1 << bits) - 1)).reshape(-1)[:n]
    return codes


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _damaged(got: int, wanted: int) -> DamagedMessage:
    return DamagedMessage("is of another length", got=f"{got} bytes", wanted=wanted)
