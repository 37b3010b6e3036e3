"""Which models prepare pixels of 0 to 255 themselves, and the ranges that are known for that."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantActivation

L = keras.layers
MEAN, VARIANCE = (123.7, 116.8, 103.9), (58.4**2, 57.1**2, 57.4**2)


def known(*front, shape=(8, 8, 3), recipe="int8"):
    """Name of each range that is known beforehand (without its "_range") -> its ends, of a network behind `front`."""
    value = entry = keras.Input(shape, name="image")
    for layer in front:
        value = layer(value)
    network = keras.Model(entry, L.Dense(2, name="head")(value))
    ranges = [layer for layer in klb.quantize_model(network, recipe)[0].layers if isinstance(layer, QuantActivation)]
    static = [layer for layer in ranges if layer.quantizer.has_static_range]
    return {each.name.removesuffix("_range"): (each.quantizer.minimum, each.quantizer.maximum) for each in static}


@pytest.mark.parametrize(
    ("front", "ends"),
    [
        ([L.Rescaling(1 / 255, name="end")], (0, 1)),
        ([lambda x: keras.ops.multiply(x, 1 / 128.0), L.Rescaling(1.0, offset=-1, name="end")], (-1, 127 / 128)),
        ([L.RandomFlip("horizontal"), L.Dropout(0.1), L.Rescaling(1 / 256, name="end")], (0, 255 / 256)),
        ([L.Resizing(4, 4, interpolation="nearest"), L.Rescaling(1 / 255, name="end")], (0, 1)),
    ],
    ids=["a share", "arithmetic", "behind augmentation", "behind resizing"],
)
def test_every_pixel_has_a_code_of_its_own(front, ends):
    found = known(*front)
    assert set(found) == {"image", "end"}
    assert found["image"] == (0, 255)
    np.testing.assert_allclose(found["end"], ends, atol=1e-6)


def test_where_zero_lies_between_two_pixels_no_pixel_lies_between_two_codes():
    low, high = known(L.Rescaling(1 / 127.5, offset=-1, name="end"))["end"]
    scale = (high - low) / 255
    places = (np.arange(256) / 127.5 - 1) / scale
    assert abs(round(low / scale) - low / scale) < 1e-5  # zero is a code
    ties = np.abs(places - np.floor(places) - 0.5) < 1e-3
    assert not ties.any()
    assert len(set(np.round(places))) == 255


@pytest.mark.parametrize(
    "front",
    [
        [L.Normalization(mean=MEAN, variance=VARIANCE)],
        [L.Rescaling(1 / 255), L.Normalization(mean=[0.48, 0.46, 0.41], variance=[0.05, 0.05, 0.05])],
        [lambda x: keras.ops.subtract(x[..., ::-1], np.array([103.9, 116.8, 123.7], "float32"))],
    ],
    ids=["mean and spread", "torch", "caffe"],
)
def test_channels_of_their_own_leave_the_second_range_to_the_data(front):
    assert known(*front) == {"image": (0, 255)}


@pytest.mark.parametrize(
    ("front", "shape"),
    [
        ([L.Rescaling(0.5)], (8, 8, 3)),
        ([L.Normalization(mean=[0.5] * 3, variance=[0.1] * 3)], (8, 8, 3)),
        ([L.Normalization(mean=[120.0] * 5, variance=[3600.0] * 5)], (5,)),
        ([L.Conv2D(3, 1), L.Rescaling(1 / 255)], (8, 8, 3)),
    ],
    ids=["another factor", "shares already", "features", "in the middle"],
)
def test_other_inputs_have_the_range_of_their_data(front, shape):
    assert known(*front, shape=shape) == {}


def test_an_image_that_one_branch_prepares_and_another_reads_as_it_is_has_the_range_of_images():
    found = known(lambda x: L.Add()([L.Rescaling(1 / 255, name="share")(x), x]))
    assert found == {"image": (0, 255), "share": (0, 1)}


def test_powers_of_two_stay_the_recipes():
    recipe = "dfp-8w8a"
    assert known(L.Rescaling(1 / 255), recipe=recipe) == {}


def test_in_a_model_inside_the_model():
    entry = keras.Input((8, 8, 3))
    inner = keras.Model(entry, L.Conv2D(2, 3)(L.Rescaling(1 / 255, name="share")(entry)), name="inner")
    image = keras.Input((8, 8, 3), name="image")
    quantized, _ = klb.quantize_model(keras.Model(image, L.Flatten()(inner(image))))
    assert quantized.get_layer("image_range").quantizer.maximum == 255
    assert quantized.get_layer("inner").get_layer("share_range").quantizer.maximum == 1
