"""Each operation of the spec against numbers worked out by hand or properties that define it."""

import math

import numpy as np
import pytest

from refgpt.numbers.dtypes import BFLOAT16
from refgpt.spec import causal_mask, embedding, gelu, layer_norm, linear, prefix_mask, rotate_pairs, softmax

RNG = np.random.default_rng(7)


def test_linear_multiplies_rows_and_adds_the_bias():
    x = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]])
    w = np.array([[1.0, 0.0, 2.0], [-1.0, 4.0, 0.0]])
    assert linear(x, w).tolist() == [[7.0, 7.0], [1.0, -4.0]]
    assert linear(x, w, np.array([10.0, 20.0])).tolist() == [[17.0, 27.0], [11.0, 16.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_stored_weights_are_widened_to_the_rows_they_meet(dtype):
    half = np.array([[1.5, -0.25]], dtype=np.float16)
    brain = np.array([[0x3FC0, 0xBE80]], dtype=np.uint16).view(BFLOAT16)  # 1.5, -0.25
    x = np.array([[2.0, 4.0]], dtype=dtype)
    for w in (half, brain):
        assert linear(x, w).dtype == dtype
        assert linear(x, w).tolist() == [[2.0]]
        assert embedding(np.array([0, 0]), w, dtype).tolist() == [[1.5, -0.25]] * 2


def test_embedding_picks_rows():
    table = RNG.standard_normal((5, 3))
    assert np.array_equal(embedding(np.array([4, 0, 4]), table, np.float64), table[[4, 0, 4]])


def test_layer_norm_gives_mean_zero_and_variance_one():
    x = 5 + 3 * RNG.standard_normal((4, 200))
    y = layer_norm(x, np.ones(200), np.zeros(200), eps=1e-12)
    assert np.allclose(y.mean(axis=1), 0, atol=1e-12)
    assert np.allclose((y * y).mean(axis=1), 1, atol=1e-10)


def test_layer_norm_by_hand():
    x = np.array([[1.0, 3.0]])  # mean 2, variance 1; with eps 3 the root is 2
    assert layer_norm(x, np.array([2.0, 4.0]), np.array([10.0, 20.0]), eps=3.0).tolist() == [[9.0, 22.0]]


def test_softmax_is_exp_over_its_sum():
    scores = np.log(np.array([[1.0, 2.0, 5.0]]))
    assert np.allclose(softmax(scores), [[0.125, 0.25, 0.625]], atol=1e-15)
    assert softmax(np.array([0.0, -np.inf])).tolist() == [1.0, 0.0]
    assert softmax(np.array([1000.0, 1000.0])).tolist() == [0.5, 0.5]


def test_gelu_is_the_tanh_form():
    x = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    by_hand = [v / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    assert np.allclose(gelu(x), by_hand, rtol=1e-13, atol=0)
    erf_form = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    assert 1e-4 < np.abs(gelu(x) - erf_form).max() < 1e-3


def test_rotation_turns_neighbouring_pairs_by_the_positions_angles():
    x = np.zeros((1, 1, 6))
    x[0, 0] = [1, 0, 0, 1, 5, 6]
    turned = rotate_pairs(x, np.array([3]), d_rotary=4)[0, 0]
    fast, slow = 3.0, 3.0 / 100  # 10000^0 and 10000^(-2/4)
    wanted = [math.cos(fast), math.sin(fast), -math.sin(slow), math.cos(slow), 5, 6]
    assert np.allclose(turned, wanted, atol=1e-15)


def test_rotation_leaves_its_input_and_position_zero_alone():
    x = RNG.standard_normal((3, 2, 8))
    before = x.copy()
    assert np.array_equal(rotate_pairs(x, np.zeros(3), 8), x)
    rotate_pairs(x, np.arange(3), 8)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("d_rotary", [2, 6, 12])
def test_scores_of_rotated_rows_depend_on_distance_alone(d_rotary):
    q, k = RNG.standard_normal((2, 1, 1, 12))
    place = np.array([0, 1, 17, 900, 2040])

    def scores(distance):
        return np.sum(
            rotate_pairs(np.repeat(q, 5, 0), place + distance, d_rotary)
            * rotate_pairs(np.repeat(k, 5, 0), place, d_rotary),
            axis=(1, 2),
        )

    for distance in (0, 1, 7):
        assert np.allclose(scores(distance), scores(distance)[0], atol=1e-11)
    assert abs(scores(0)[0] - scores(7)[0]) > 1e-2


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_angles_are_exact_far_out_whatever_the_dtype(dtype):
    """At position 2047 float16 knows an angle to within half a radian, and the rotation must not."""
    x = RNG.standard_normal((1, 1, 4)).astype(dtype)
    narrow = rotate_pairs(x, np.array([2047]), 4)
    wide = rotate_pairs(x.astype(np.float64), np.array([2047]), 4)
    assert narrow.dtype == dtype
    assert np.abs(narrow - wide).max() <= 4 * np.finfo(dtype).eps


def test_causal_mask():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_prefix_mask_opens_the_prefix_to_all_and_leaves_the_rest_causal():
    wanted = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert prefix_mask(4, 2).astype(int).tolist() == wanted
    assert np.array_equal(prefix_mask(4, 0), causal_mask(4))
    assert np.array_equal(prefix_mask(4, 1), causal_mask(4))
    assert prefix_mask(4, 4).all()
