"""Gradients of learned grids in float64, against finite differences of the surrogate with frozen residuals."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_lowbit.numerics import learned
from tests.support import threshold_oracle as oracle

RNG = np.random.default_rng(11)
BITS = range(2, 9)


def clear_of_ties(steps):
    """Not within 1e-4 of a rounding tie; where clipping begins is one too."""
    return np.abs(steps % 1 - 0.5) > 1e-4


def values_and_gradients(make, real, variables, upstream):
    """Forward values and gradients of ``make(real, *variables)``, all float64."""
    tensors = [tf.Variable(np.float64(value)) for value in (real, *variables)]
    with tf.GradientTape() as tape:
        on_grid = make(*map(tf.convert_to_tensor, tensors))
    return on_grid.numpy(), [g.numpy() for g in tape.gradient(on_grid, tensors, tf.constant(np.float64(upstream)))]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_symmetric_gradients_are_those_of_the_surrogate(bits, signed, seed):
    rng = np.random.default_rng(seed)
    threshold, real, upstream = rng.uniform(0.3, 3), rng.normal(size=400) * 2, rng.normal(size=400)
    q = 2 ** (bits - 1) - 1 if signed else 2**bits - 1

    def make(real, threshold):
        return learned.symmetric_grid(threshold * (1.0 / q), bits, signed, full=False)(real)

    keep = clear_of_ties(real * q / threshold)
    got, (d_real, d_threshold) = values_and_gradients(make, real, [threshold], upstream * keep)
    np.testing.assert_allclose(got[keep], oracle.symmetric(real, threshold, bits, signed)[keep], rtol=1e-12, atol=1e-15)
    smooth = oracle.symmetric_surrogate(real, threshold, bits, signed)
    np.testing.assert_allclose(
        d_real[keep], (upstream * oracle.derivative(smooth, (real, threshold), 0))[keep], atol=1e-6
    )
    want = np.sum((upstream * oracle.derivative(smooth, (real, threshold), 1))[keep])
    assert d_threshold == pytest.approx(want, abs=1e-5)  # the sum of 400 differences, each good to 1e-8


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(3))
def test_asymmetric_gradients_are_those_of_the_surrogate(bits, seed):
    rng = np.random.default_rng(seed)
    left, width = -rng.uniform(0.2, 1), rng.uniform(1.1, 3)
    real, upstream, k = rng.normal(size=400) * 2, rng.normal(size=400), 2**bits - 1
    keep = clear_of_ties(real * k / width)

    def make(real, left, width):
        return learned.affine_grid(left, width, bits)(real)

    got, (d_real, d_left, d_width) = values_and_gradients(make, real, [left, width], upstream * keep)
    np.testing.assert_allclose(got[keep], oracle.asymmetric(real, left, width, bits)[0][keep], rtol=1e-9, atol=1e-12)
    smooth = oracle.asymmetric_surrogate(real, left, width, bits)
    slopes = [upstream * oracle.derivative(smooth, (real, left, width), index) for index in range(3)]
    np.testing.assert_allclose(d_real[keep], slopes[0][keep], atol=1e-6)
    assert d_left == pytest.approx(slopes[1][keep].sum(), abs=1e-5)
    assert d_width == pytest.approx(slopes[2][keep].sum(), abs=1e-5)


def test_gradients_of_filters_are_the_gradients_of_each_filter_alone():
    real, upstream, steps = RNG.normal(size=(3, 3, 2, 5)), RNG.normal(size=(3, 3, 2, 5)), RNG.uniform(0.01, 0.1, 5)

    def make(real, scale):
        return learned.symmetric_grid(scale, 5, True, full=False)(real)

    got, (d_real, d_scale) = values_and_gradients(make, real, [steps.reshape(1, 1, 1, 5)], upstream)
    assert d_scale.shape == (1, 1, 1, 5)
    for index in range(5):
        alone = values_and_gradients(make, real[..., index], [steps[index]], upstream[..., index])
        np.testing.assert_array_equal(got[..., index], alone[0])
        np.testing.assert_array_equal(d_real[..., index], alone[1][0])
        assert d_scale[0, 0, 0, index] == pytest.approx(alone[1][1], rel=1e-12)


def test_the_inside_test_is_on_the_rounded_value_and_the_edges_count_as_inside():
    real = np.array([-3.6, -3.4, -3.0, 0.0, 3.0, 3.4, 3.6])
    _, (d_real, _) = values_and_gradients(
        lambda real, scale: learned.symmetric_grid(scale, 3, True, full=False)(real), real, [1.0], np.ones(7)
    )
    np.testing.assert_array_equal(d_real, [0, 1, 1, 1, 1, 1, 0])


def test_an_unknown_grid_passes_values_and_gradients_and_learns_nothing():
    real, upstream = RNG.normal(size=9) * 100, RNG.normal(size=9)

    def make(real, left, width):
        return learned.affine_grid(left, width, 8)(real, known=False)

    got, gradients = values_and_gradients(make, real, [-1.0, 2.0], upstream)
    np.testing.assert_array_equal(got, real)
    np.testing.assert_array_equal(gradients[0], upstream)
    assert gradients[1] == gradients[2] == 0


@pytest.mark.parametrize(
    ("value", "want", "slope"), [(0.3, 0.5, 0), (0.5, 0.5, 1), (0.7, 0.7, 1), (1.0, 1, 1), (1.1, 1, 0)]
)
def test_clip_passes_the_gradient_in_the_closed_interval(value, want, slope):
    got, (gradient,) = values_and_gradients(lambda v: learned.clip_closed(v, 0.5, 1.0), value, [], 1.0)
    assert got == want
    assert gradient == slope


ENDS = st.tuples(st.floats(-4, 4), st.floats(0.001, 6), st.floats(-1, 1), st.floats(0, 2))


@settings(max_examples=30)
@given(ENDS, st.sampled_from(BITS))
def test_moved_ends_hold_zero_and_are_the_oracles(case, bits):
    minimum, size, left, width = case
    limits = ((-0.2, 0.4), (0.5, 1.0))
    got = learned.moved_ends(*map(tf.constant, np.float64([minimum, minimum + size, left, width])), *limits)
    np.testing.assert_allclose(got, oracle.ends(minimum, minimum + size, left, width), rtol=1e-12, atol=1e-300)
    assert float(got[0]) <= 0 <= float(got[0] + got[1])
    grid = learned.affine_grid(*got, bits)
    lowest = -(2 ** (bits - 1))
    assert lowest <= float(grid.zero_point) <= lowest + 2**bits - 1
    assert float(grid(tf.constant([0.0], "float64"))[0]) == 0.0
    on_grid = grid(tf.constant(np.linspace(-9, 9, 2001)))
    assert len(np.unique(on_grid)) <= 2**bits


def test_factors_get_no_gradient_where_the_clamp_acts():
    def make(left, width):
        start, span = learned.moved_ends(
            tf.constant(-0.1, "float64"), tf.constant(1.0, "float64"), left, width, (-0.2, 0.4), (0.5, 1)
        )
        return start + 2.0 * span

    # -0.1 + 0.3 * 1.1 > 0: the left end stays at 0.
    _, (d_left, d_width) = values_and_gradients(make, 0.3, [0.8], 1.0)
    assert d_left == 0
    assert d_width == pytest.approx(2.2)

    # A mostly negative range whose width no longer reaches 0: the width is what the left end needs.
    def narrow(left, width):
        return learned.moved_ends(
            tf.constant(-1.0, "float64"), tf.constant(0.1, "float64"), left, width, (-0.2, 0.4), (0.5, 1)
        )[1]

    value, (d_left, d_width) = values_and_gradients(narrow, 0.0, [0.6], 1.0)
    assert value == 1.0
    assert d_width == 0
    assert d_left == pytest.approx(-1.1)


def test_sixteen_bits_are_nearly_the_identity():
    real = RNG.uniform(-1, 1, 1000)
    for grid in (
        learned.symmetric_grid(tf.constant(1.0 / 32767, "float64"), 16, True, full=False),
        learned.affine_grid(tf.constant(-1.0, "float64"), tf.constant(2.0, "float64"), 16),
    ):
        assert np.abs(ops.convert_to_numpy(grid(tf.constant(real))) - real).max() <= 0.5001 / 32767
