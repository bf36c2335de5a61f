"""Compression of differences: what comes back, how many bytes it takes, and what a receiver refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgpt._common.errors import RefgptError
from refgpt.cluster.compression import DamagedMessage, _largest, parse_compression
from refgpt.cluster.feedback import ErrorFeedback

METHODS = ["none", "f16", "int2", "int4", "int8", "topk:0.03,bits:2", "topk:0.2,bits:1", "topk:1,bits:8", "cocktail"]
LENGTHS = [0, 1, 5, 127, 128, 129, 4096, 4097, 20000]


def vector_of(n, seed=0, scale=1e-3):
    stream = np.random.RandomState(seed)
    return (stream.standard_normal(n) * np.exp(stream.standard_normal(n)) * scale).astype(np.float32)


@pytest.mark.parametrize("name", METHODS)
def test_names_are_read_and_written(name):
    method = parse_compression(name)
    assert parse_compression(str(method)) == method


@pytest.mark.parametrize("name", ["", "int3", "topk", "topk:0", "topk:1.5", "topk:nan", "topk:0.1,bits:9", None, 4])
def test_unknown_names_are_refused(name):
    with pytest.raises(RefgptError, match="there is no such method"):
        parse_compression(name)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", METHODS)
def test_what_comes_back_is_as_near_as_the_method_says(name, n):
    method, vector = parse_compression(name), vector_of(n)
    data = method.encode(vector, seed=3)
    got = method.decode(data, n, seed=3)
    assert got.dtype == np.float32 and got.shape == (n,)
    assert method.encode(vector, seed=3) == data
    if method.kind == "none":
        assert (got == vector).all()
    elif method.kind == "f16":
        assert (got == vector.astype(np.float16)).all()
    elif method.kind == "int":
        most = (1 << (method.bits - 1)) - 1
        for start in range(0, n, 128):
            block, back = vector[start : start + 128], got[start : start + 128]
            # Half a step, and what rounding the scale to float16 (11 bits, or a subnormal's 2**-25) adds at each level.
            scale = np.abs(block).max() / most
            assert np.abs(block - back).max() <= scale / 2 + most * max(scale * 2**-11, 2**-25) + 1e-12
    else:
        sent = np.flatnonzero(got)
        assert (np.sign(got[sent]) == np.sign(vector[sent])).all()
        if method.random == 1:
            for start in range(0, n, 4096):
                chunk, back = np.abs(vector[start : start + 4096]), got[start : start + 4096]
                k = max(1, math.ceil(len(chunk) * method.top))
                kept = np.argsort(-chunk, kind="stable")[:k]
                low, high = chunk[kept].min(), chunk[kept].max()
                step = (high - low) / max(1, (1 << (method.bits - 1)) - 1)
                assert set(np.flatnonzero(back)) <= set(kept.tolist())
                if method.bits > 1:
                    room = step / 2 + max(high * 2**-10, 2**-24)
                    assert np.abs(np.abs(back[kept]) - chunk[kept]).max() <= room
                else:
                    assert np.abs(back[kept]).max() == pytest.approx(chunk[kept].mean(), rel=2**-10, abs=2**-24)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("f16", 16),
        ("int4", 4.13),
        ("int2", 2.13),
        ("topk:0.03,bits:2", 0.28),
        ("topk:0.01,bits:1", 0.11),
        ("cocktail", 0.17),
    ],
)
def test_bits_of_a_value(name, most):
    assert len(parse_compression(name).encode(vector_of(100_000), 1)) * 8 / 100_000 <= most


def test_a_share_below_one_value_of_a_chunk_sends_one():
    method, vector = parse_compression("topk:1e-300,bits:2"), vector_of(3 * 4096)
    data = method.encode(vector)
    assert len(data) < 3 * 10 and len(np.flatnonzero(method.decode(data, len(vector)))) == 3


def test_a_random_part_is_drawn_anew_with_each_seed():
    method, vector = parse_compression("cocktail"), vector_of(5000)
    one, other = (np.flatnonzero(method.decode(method.encode(vector, seed), 5000, seed)) for seed in (1, 2))
    assert len(one) > 50 and len(np.intersect1d(one, other)) < len(one) / 2


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_method_sends_what_is_not_finite(name, bad):
    vector = vector_of(300)
    vector[7] = bad
    with pytest.raises(RefgptError, match="NaN or infinity"):
        parse_compression(name).encode(vector)


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_damaged_bytes_are_refused_or_give_finite_numbers(name, data):
    method, n = parse_compression(name), 5000
    sent = bytearray(method.encode(vector_of(n), 1))
    for _ in range(data.draw(st.integers(1, 4))):
        what = data.draw(st.sampled_from(["flip", "cut", "more"]))
        at = data.draw(st.integers(0, max(0, len(sent) - 1)))
        if what == "flip" and sent:
            sent[at] ^= data.draw(st.integers(1, 255))
        elif what == "cut":
            del sent[at:]
        else:
            sent += data.draw(st.binary(min_size=1, max_size=9))
    try:
        vector = method.decode(bytes(sent), n, 1)
    except DamagedMessage:
        return
    assert vector.shape == (n,) and np.isfinite(vector).all()


@pytest.mark.parametrize("name", METHODS)
def test_error_feedback_loses_nothing_for_good(name):
    """What was received so far and what is still remembered are together what was to be sent."""
    sender, n = ErrorFeedback(parse_compression(name), 3000), 3000
    wanted, received = np.zeros(n), np.zeros(n)
    for round_ in range(20):
        vector = vector_of(n, seed=round_)
        wanted += vector
        received += sender.send(vector, round_)[1]
    assert np.abs(received + sender.lost - wanted).max() <= 1e-6 * np.abs(wanted).max() + 20 * 2**-24 * 0.1
    sender.forget()
    assert not sender.lost.any()


def test_a_constant_vector_is_received_on_average():
    vector = vector_of(2000)
    sender = ErrorFeedback(parse_compression("topk:0.05,bits:2"), 2000)
    total = sum(sender.send(vector, i)[1].astype(np.float64) for i in range(400))
    assert np.abs(total / 400 - vector).max() <= 0.05 * np.abs(vector).max()


@pytest.mark.parametrize("n", [1, 700, 4096, 4096 * 257 + 9])
def test_the_largest_are_those_of_a_stable_sort(n):
    """This holds among equal values too, of which the first are kept."""
    magnitudes = np.random.RandomState(2).randint(0, 40, n).astype(np.float32)
    wanted = []
    for start in range(0, n, 4096):
        order = np.argsort(-magnitudes[start : start + 4096], kind="stable")
        wanted += sorted((start + order[: max(1, math.ceil(len(order) * 0.03))]).tolist())
    assert _largest(magnitudes, 0.03).tolist() == wanted
