"""Frequencies of the draws against their exact law. Seeds are fixed, so nothing here is flaky."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit.quantizers import Stochastic
from tests.support import oracle

ERRORS = np.array([0.1, 0.2, 0.4, 0.8])
DRAWS = 4000
# Chi-square of 3 degrees of freedom: 99.9 % of fair samples lie below.
CHI_SQUARE_999 = 16.27


def kernel_with_errors(errors):
    """[2, m] weights and grid values whose relative errors are `errors`."""
    real = np.ones((2, len(errors)))
    return real.astype("float32"), (real * (1 - errors)).astype("float32")


def frequencies(quantizer, ratio, seed):
    """[m]: how often each unit was quantized in DRAWS draws."""
    real, on_grid = kernel_with_errors(ERRORS)
    generator = keras.random.SeedGenerator(seed)

    @tf.function
    def draw():
        state = {"ratio": tf.constant(ratio, "float32"), "seed": generator}
        return tf.reshape(quantizer.draw(real, on_grid, state, (-1,)), (-1,))

    masks = np.array([draw() for _ in range(DRAWS)])
    return masks.sum(0), masks.sum(1)


MODES = list(itertools.product(("constant", "linear", "softmax", "sigmoid"), ("quantize_inv_error", "keep_error")))


@pytest.mark.parametrize(("probability", "selection"), MODES)
def test_one_drawn_unit_follows_the_stated_probability(probability, selection):
    # Paper: one of four is quantized. Official code: one of four stays float, so three are quantized.
    keep = selection == "keep_error"
    counts, per_draw = frequencies(
        Stochastic(probability=probability, selection=selection), 0.75 if keep else 0.25, seed=11
    )
    assert set(per_draw) == {3 if keep else 1}
    drawn = DRAWS - counts if keep else counts
    expected = DRAWS * oracle.probabilities(ERRORS, probability, selection)
    possible = expected > 1e-3  # softmax of 10 against 5: the others have probability 0.007 and less
    chi_square = np.sum((drawn - expected)[possible] ** 2 / np.maximum(expected[possible], 1.0))
    assert chi_square < CHI_SQUARE_999, (drawn, expected)
    assert drawn[~possible].sum() == 0


@pytest.mark.parametrize(
    ("selection", "published"),
    [("quantize_inv_error", (0.847, 0.632, 0.344, 0.177)), ("keep_error", (0.823, 0.656, 0.368, 0.153))],
)
def test_two_of_four_have_the_exact_inclusion_probabilities(selection, published):
    first = oracle.probabilities(ERRORS, "linear", selection)
    exact = oracle.inclusion(first, 2)
    exact = 1 - exact if selection == "keep_error" else exact
    np.testing.assert_allclose(exact, published, atol=5e-4)
    counts, per_draw = frequencies(Stochastic(selection=selection), 0.5, seed=12)
    assert set(per_draw) == {2}
    deviations = np.abs(counts / DRAWS - exact) / np.sqrt(exact * (1 - exact) / DRAWS)
    assert deviations.max() < 3.5, counts / DRAWS  # standard deviations


def test_a_unit_without_error_stays_float_only_when_no_other_is_left():
    real, on_grid = kernel_with_errors(np.array([0.0, 0.5, 0.0, 0.5]))
    quantizer = Stochastic(selection="keep_error")
    state = {"ratio": tf.constant(0.5), "seed": keras.random.SeedGenerator(1)}
    for _ in range(50):
        mask = np.ravel(quantizer.draw(real, on_grid, state, (-1,)))
        np.testing.assert_array_equal(mask, [True, False, True, False])
    state["ratio"] = tf.constant(0.25)
    masks = {tuple(np.ravel(quantizer.draw(real, on_grid, state, (-1,)))) for _ in range(50)}
    assert all(sum(mask) == 1 and (mask[0] or mask[2]) for mask in masks)
