import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

from keras_lowbit.numerics import thresholds
from tests.support import oracle

RNG = np.random.default_rng(2)
KERNEL = RNG.normal(size=(3, 3, 4, 5)).astype("float32")


@pytest.mark.parametrize(
    ("rank", "kept", "reduced"),
    [(4, (-1,), (0, 1, 2)), (4, (2, 3), (0, 1)), (4, (2,), (0, 1, 3)), (2, (-1,), (0,)), (1, (), (0,)), (0, (), ())],
)
def test_reduced_axes_are_those_not_kept(rank, kept, reduced):
    assert thresholds.reduced_axes(rank, kept) == reduced


def test_mean_magnitude_keeps_the_reduced_axes():
    got = thresholds.mean_magnitude(KERNEL, (0, 1, 2))
    assert got.shape == (1, 1, 1, 5)
    # Sum of 36 float32 terms of about 1: relative error below 36 * 2^-24.
    np.testing.assert_allclose(np.ravel(got), oracle.binary(oracle.rows(KERNEL, (-1,)))[1], rtol=3e-6)


@pytest.mark.parametrize("centered", [False, True])
def test_twn_threshold_of_every_filter(centered):
    got = thresholds.twn_threshold(KERNEL, (0, 1, 2), 0.7, centered)
    want = oracle.ternary(oracle.rows(KERNEL, (-1,)), centered=centered)[2]
    np.testing.assert_allclose(np.ravel(got), want, rtol=3e-6)


def test_alpha_of_an_empty_support_is_zero_and_of_a_nan_is_nan():
    weights = np.float32([[1, np.nan], [2, 1]])
    nothing = np.zeros((2, 2), bool)
    got = np.ravel(thresholds.masked_mean_magnitude(weights, nothing, (0,)))
    assert got[0] == 0
    assert np.isnan(got[1])


def squared_error_of_optimum(row):
    support = ops.convert_to_numpy(thresholds.optimal_ternary_support(row[:, None], (0,)))[:, 0]
    alpha = np.abs(row[support].astype(float)).mean() if support.any() else 0.0
    return float(np.sum((row.astype(float) - alpha * np.sign(row) * support) ** 2))


@given(st.integers(1, 8).flatmap(lambda d: arrays(np.float32, d, elements=st.floats(-4, 4, width=32))))
def test_optimal_support_is_as_good_as_the_best_of_all_patterns(row):
    row = np.where(np.abs(row) < 1e-6, 0, row).astype(np.float32)
    best = oracle.best_ternary_error(row.astype(float))
    # Two supports may tie within float32; their errors then differ by rounding of the energy of the row.
    assert squared_error_of_optimum(row) <= best + 1e-5 * float(np.sum(row.astype(float) ** 2))


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 1), (0, 1, 3), (0, 1, 2, 3)])
def test_optimal_support_of_a_kernel_is_that_of_each_group(axes):
    support = ops.convert_to_numpy(thresholds.optimal_ternary_support(KERNEL, axes))
    kept = tuple(axis for axis in range(4) if axis not in axes)
    for row, mask in zip(oracle.rows(KERNEL, kept), oracle.rows(support, kept), strict=True):
        descending = np.sort(np.abs(row))[::-1]
        count = np.argmax(np.cumsum(descending) ** 2 / np.arange(1, row.size + 1)) + 1
        np.testing.assert_array_equal(mask, np.abs(row) >= descending[count - 1])


@pytest.mark.parametrize("bits", range(2, 9))
def test_max_and_percentile_scales(bits):
    limit = 2 ** (bits - 1) - 1
    filters = np.abs(oracle.rows(KERNEL, (-1,)))
    got = np.ravel(thresholds.max_scale(KERNEL, (0, 1, 2), bits))
    # Two roundings: the reciprocal of the limit and the product.
    np.testing.assert_allclose(got, filters.max(1) / limit, rtol=2.0**-23)
    got = np.ravel(thresholds.percentile_scale(KERNEL, (0, 1, 2), bits, 90.0))
    np.testing.assert_allclose(got, np.percentile(filters, 90.0, axis=1) / limit, rtol=1e-6)


def test_percentile_100_is_the_maximum():
    got = thresholds.percentile_scale(KERNEL, (0, 1, 2), 8, 100.0)
    np.testing.assert_array_equal(got, thresholds.max_scale(KERNEL, (0, 1, 2), 8))


@pytest.mark.parametrize("bits", range(2, 9))
def test_mse_scale_is_the_best_of_its_71_candidates(bits):
    scales = np.ravel(thresholds.mse_scale(KERNEL, (0, 1, 2), bits)).astype(float)
    for row, scale in zip(oracle.rows(KERNEL, (-1,)), scales, strict=True):
        largest = np.abs(row).max() / (2 ** (bits - 1) - 1)
        candidates = [largest * (1 - 0.01 * step) for step in range(71)]
        best = min(oracle.symmetric_error(row, candidate, bits) for candidate in candidates)
        assert np.min(np.abs(np.array(candidates) / scale - 1)) < 1e-6
        # Two neighbours may tie within float32: 36 squares, relative error below 36 * 2^-23.
        assert oracle.symmetric_error(row, scale, bits) <= best * (1 + 5e-6)


def test_mse_scale_of_zeros_is_zero():
    np.testing.assert_array_equal(thresholds.mse_scale(np.zeros((4, 2), "float32"), (0,), 4), [[0, 0]])
