import fractions
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

from keras_lowbit.numerics import selection
from tests.support import oracle

PROBABILITIES = ("constant", "linear", "softmax", "sigmoid")
RNG = np.random.default_rng(3)


def count(ratio, units):
    return float(selection.quantized_count(np.float32(ratio), units))


def test_the_count_of_the_specification():
    assert count(0.875, 64) == 56


@pytest.mark.parametrize("units", [1, 2, 3, 5, 7, 10, 16, 24, 33, 64, 96, 100, 512, 1280, 4096])
@pytest.mark.parametrize("ratio", ["0", "1/2", "3/4", "7/8", "15/16", "1/5", "2/5", "3/5", "4/5", "1/3", "1"])
def test_count_is_the_ceiling_in_exact_arithmetic(ratio, units):
    exact = fractions.Fraction(ratio)
    assert count(float(exact), units) == math.ceil(exact * units)


@pytest.mark.parametrize("units", [5_000_001, 10_000_000, 16_777_216])
def test_ratios_0_and_1_are_exact_for_any_number_of_units(units):
    assert count(1.0, units) == units
    assert count(0.0, units) == 0


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 1), ()])
def test_relative_error_is_the_oracles(axes):
    real, on_grid = RNG.normal(size=(2, 3, 3, 4, 5)).astype("float32")
    got = selection.relative_error(real, on_grid, axes)
    kept = tuple(axis for axis in range(4) if axis not in axes)
    want = oracle.relative_error(oracle.rows(real, kept), oracle.rows(on_grid, kept))
    # Two sums of at most 36 float32 terms and one division.
    np.testing.assert_allclose(np.ravel(got), want, rtol=1e-5)


def test_relative_error_of_zeros_is_zero():
    zeros = np.zeros((4, 2), "float32")
    np.testing.assert_array_equal(selection.relative_error(zeros, zeros, (0,)), [[0, 0]])


@given(arrays(np.float32, (6, 3), elements=st.floats(-2, 2, width=32)), st.integers(-10, 10))
def test_relative_error_does_not_depend_on_the_unit(real, exponent):
    real = np.where(np.abs(real) < 1e-3, 0, real).astype(np.float32)
    unit, on_grid = np.float32(2.0**exponent), np.sign(real)
    before = selection.relative_error(real, on_grid, (0,))
    np.testing.assert_array_equal(selection.relative_error(real * unit, on_grid * unit, (0,)), before)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_log_weights_are_the_oracles_probabilities(probability):
    errors = np.float32([0.1, 0.2, 0.4, 0.8])
    log_weight = selection.log_weights(1.0 / (errors + selection.EPSILON), probability)
    weight = np.exp(np.asarray(log_weight, np.float64))
    want = oracle.probabilities(errors, probability, "quantize_inv_error")
    np.testing.assert_allclose(weight / weight.sum(), want, rtol=1e-5)


@pytest.mark.parametrize("probability", PROBABILITIES)
@pytest.mark.parametrize("score", [[1e7] * 4, [0.0] * 4, [1e7, 1.0, 0.0, 1e-30], [0.0], [3e38, 0.0]])
def test_extreme_scores_give_no_nan_and_every_rank_once(probability, score):
    log_weight = selection.log_weights(np.float32(score), probability)
    assert not np.isnan(np.asarray(log_weight)).any()
    for uniform in (0.0, 0.5, 1.0 - 2.0**-24):
        ranks = selection.draw_ranks(log_weight, np.full(len(score), uniform, "float32"))
        np.testing.assert_array_equal(np.sort(ranks), np.arange(len(score)))


def test_gumbel_noise_is_finite_at_both_ends():
    assert np.isfinite(np.asarray(selection.gumbel(np.float32([0.0, 1e-45, 0.5, 1.0 - 2.0**-24, 1.0])))).all()


@given(arrays(np.float32, 9, elements=st.floats(-5, 5, width=32, allow_subnormal=False)))
def test_ranks_count_the_larger_keys(keys):
    ranks = ops.convert_to_numpy(selection.ranks_descending(keys))
    assert sorted(ranks) == list(range(9))
    for key, rank in zip(keys, ranks, strict=True):
        assert np.sum(keys > key) <= rank < np.sum(keys >= key)
