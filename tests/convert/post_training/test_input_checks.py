"""What calibrate says of data that do not fit: pixels for shares of 255, features that one step swallows."""

import warnings

import keras
import numpy as np
import pytest

import keras_lowbit as klb

L = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (16, 8, 8, 3)).astype("float32")


def trained(*front):
    """A network whose batch norm has seen images of 0 to 1 (behind `front`)."""
    keras.utils.set_random_seed(0)
    norm = L.BatchNormalization(name="norm")
    stack = [*front, L.Conv2D(4, 3, name="conv")]
    model = keras.Sequential([keras.Input((8, 8, 3), name="image"), *stack, norm, L.ReLU(), L.Flatten(), L.Dense(2)])
    seen = IMAGES * 255 if front else IMAGES
    for layer in stack:
        seen = layer(seen)
    norm.moving_mean.assign(keras.ops.mean(seen, axis=(0, 1, 2)))
    norm.moving_variance.assign(keras.ops.var(seen, axis=(0, 1, 2)))
    return klb.quantize_model(model)[0]


def silently(model, data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return klb.calibrate(model, data, verbose=0)


def test_pixels_for_shares_of_255_and_the_other_way_round():
    with pytest.warns(UserWarning, match=r"do not fit 'norm'.* deviations"):
        klb.calibrate(trained(), IMAGES * 255, verbose=0)
    with pytest.warns(UserWarning, match=r"do not fit 'norm'.* vary by 0\.00"):
        klb.calibrate(trained(), IMAGES / 255, verbose=0)
    silently(trained(), IMAGES)
    silently(trained(), IMAGES[:1] * 0.5)


def test_shares_of_255_into_a_network_that_divides_by_itself():
    def model():
        return trained(L.Rescaling(1 / 255, name="scale"))

    with pytest.warns(
        UserWarning, match=r"do not fit 'scale': it multiplies its input by 0\.003922, .*largest value is 1"
    ):
        klb.calibrate(model(), np.ones_like(IMAGES), verbose=0)
    silently(model(), IMAGES * 255)


def test_a_normalization_that_was_adapted_to_other_numbers():
    rows = RNG.normal(size=(64, 3)).astype("float32") + 100
    scale = L.Normalization(name="scale")
    scale.adapt(rows)
    model, _ = klb.quantize_model(keras.Sequential([keras.Input((3,), name="row"), scale, L.Dense(2)]))
    with pytest.warns(UserWarning, match="do not fit 'scale'"):
        klb.calibrate(model, rows * 10, verbose=0)
    silently(model, rows)


def test_untrained_statistics_say_nothing():
    model = keras.Sequential([keras.Input((8, 8, 3)), L.BatchNormalization(), L.Conv2D(2, 3)])
    silently(klb.quantize_model(model)[0], IMAGES * 255)


def test_features_below_a_step_or_two_are_named_with_the_way_out():
    scale = np.array([1, 10, 100, 0.1, 5, 1, 0, 1000], np.float32)
    rows = (RNG.normal(size=(64, 8)) * scale).astype("float32")
    model = keras.Sequential([keras.Input((8,), name="row"), L.Dense(4, name="head")])
    copy, _ = klb.quantize_model(model)
    with pytest.warns(UserWarning, match=r"features 0, 3, 4, 5 of the input 'row'.*skip=\['row'.*before the model"):
        klb.calibrate(copy, rows, verbose=0)
    silently(copy, rows / np.maximum(scale, 0.1))
    silently(klb.quantize_model(model, skip=["head"])[0], rows)  # no range at the input
    silently(klb.quantize_model(model, "int16x8")[0], rows)  # 16 bits hold them all


def test_more_than_pixels_in_place_of_pixels():
    with pytest.warns(
        UserWarning, match=r"do not fit 'image_range': its range is 0 to 255 beforehand.* reach from 0 to 1023 .*skip="
    ):
        klb.calibrate(trained(L.Rescaling(1 / 255, name="scale")), np.round(IMAGES * 1023 / IMAGES.max()), verbose=0)
