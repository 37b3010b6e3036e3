import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit.numerics.gradients import straight_through

RNG = np.random.default_rng(1)


def gradient_of(function, real, upstream):
    real, upstream = tf.constant(real), tf.constant(upstream)
    with tf.GradientTape() as tape:
        tape.watch(real)
        value = function(real)
    return value.numpy(), tape.gradient(value, real, output_gradients=upstream).numpy()


@pytest.fixture
def arrays():
    return (RNG.normal(size=(5, 7)).astype("float32") for _ in range(3))


def test_value_is_the_grid_and_gradient_is_the_upstream_bit_for_bit(arrays):
    real, on_grid, upstream = arrays
    value, gradient = gradient_of(lambda r: straight_through(r, on_grid), real, upstream)
    np.testing.assert_array_equal(value, on_grid)
    np.testing.assert_array_equal(gradient, upstream)


def test_gradient_is_multiplied_by_passes(arrays):
    real, on_grid, upstream = arrays
    passes = np.abs(real) < 1
    value, gradient = gradient_of(lambda r: straight_through(r, on_grid, tf.constant(passes)), real, upstream)
    np.testing.assert_array_equal(value, on_grid)
    np.testing.assert_array_equal(gradient, np.where(passes, upstream, 0))


@pytest.mark.parametrize("masked", [False, True])
def test_grid_computed_from_the_reals_adds_no_gradient(arrays, masked):
    real, _, upstream = arrays
    passes = tf.ones_like(real) if masked else None
    _, gradient = gradient_of(lambda r: straight_through(r, 3.0 * r * r, passes), real, upstream)
    np.testing.assert_array_equal(gradient, upstream)


def test_the_usual_idiom_would_not_be_exact():
    real = RNG.normal(size=1000).astype("float32")
    codes = np.float32(0.1) * np.sign(real)
    idiom = real + (codes - real)
    assert len(np.unique(idiom)) > 2
    assert len(np.unique(straight_through(real, codes))) == 2


def test_inside_a_compiled_function_nothing_changes(arrays):
    real, on_grid, upstream = arrays
    compiled = tf.function(lambda r: straight_through(r, on_grid), jit_compile=True)
    value, gradient = gradient_of(compiled, real, upstream)
    np.testing.assert_array_equal(value, on_grid)
    np.testing.assert_array_equal(gradient, upstream)
