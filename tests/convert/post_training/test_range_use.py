"""activation_ranges: ends, extremes and what is clipped."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    x = keras.layers.Dense(16, activation="relu", name="first")(inputs)
    return klb.quantize_model(keras.Model(inputs, keras.layers.Dense(4, name="second")(x)), "int8")[0]


IMAGES = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)


def test_before_calibration_nothing_is_known_of_the_ends(model):
    for row in klb.activation_ranges(model).ranges:
        assert (row.minimum, row.maximum, row.seen_minimum, row.clipped) == (None,) * 4
    seen = klb.activation_ranges(model, IMAGES).ranges[0]
    assert (seen.minimum, seen.clipped) == (None, None)
    assert (seen.seen_minimum, seen.seen_maximum) == (IMAGES.min(), IMAGES.max())


def test_what_a_range_was_calibrated_to_is_not_clipped_and_larger_values_are(model):
    known = klb.calibrate(model, IMAGES, verbose=0)
    state = [np.array(value) for value in model.get_weights()]
    found = klb.activation_ranges(model, IMAGES)
    assert [row.path for row in found.ranges] == list(known)
    for row in found.ranges:
        step = (row.maximum - row.minimum) / 255
        assert (row.minimum, row.maximum) == pytest.approx(known[row.path], abs=step)
        assert (row.seen_minimum, row.seen_maximum) == pytest.approx(known[row.path], abs=1e-6)
        assert row.clipped == 0
    doubled = 2 * IMAGES
    first = klb.activation_ranges(model, doubled).ranges[0]
    step = (first.maximum - first.minimum) / 255
    outside = (doubled < first.minimum - step / 2) | (doubled > first.maximum + step / 2)
    assert first.clipped == outside.mean() > 0
    assert f"{100 * first.clipped:.4g}" in str(klb.activation_ranges(model, doubled))
    assert all(np.array_equal(old, now) for old, now in zip(state, model.get_weights(), strict=True))


def test_a_range_given_as_arguments_has_ends_without_data():
    layer = klb.layers.QuantActivation(quantizer=klb.quantizers.ActivationRange(minimum=0.0, maximum=2.55))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    (row,) = klb.activation_ranges(model, np.array([[0.0, 1.0, 2.0, 9.0]], np.float32)).ranges
    assert (row.minimum, row.maximum, row.clipped) == pytest.approx((0.0, 2.55, 0.25))
