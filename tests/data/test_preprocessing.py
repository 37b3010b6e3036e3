"""The modes are those of keras.applications, and what a model wants is found in it."""

import inspect
import sys

import keras
import numpy as np
import pytest

from keras_lowbit.data import MODES, found_mode
from keras_lowbit.data.preprocessing import apply_mode

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_a_mode_computes_what_keras_does(mode):
    wanted = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), "channels_last", mode=mode)
    np.testing.assert_allclose(apply_mode(mode, PIXELS), wanted, rtol=1e-5, atol=1e-5)


def test_the_other_modes():
    assert np.array_equal(apply_mode("none", PIXELS), PIXELS)
    unit = np.asarray(apply_mode("unit", PIXELS))
    assert (unit.min(), unit.max()) == (PIXELS.min() / 255, PIXELS.max() / 255)
    assert set(MODES) == {"tf", "torch", "caffe", "unit", "none"}


def applications():
    """(class, default name, the module's preprocess_input) of the networks of Keras that have a default name."""
    for name, make in vars(keras.applications).items():
        if not name[0].isupper():
            continue
        default = inspect.signature(make).parameters.get("name")
        if default is not None and default.default:
            yield name, default.default, sys.modules[make.__module__].preprocess_input


@pytest.mark.parametrize(("network", "name", "preprocess"), list(applications()))
def test_a_name_of_keras_means_what_its_network_wants(network, name, preprocess):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)], name=name.replace("/", "-"))
    wanted = preprocess(PIXELS.copy())
    found = found_mode(model)
    if np.array_equal(wanted, PIXELS):  # its own layers prepare the pixels, and this model has none
        assert found is None
    else:
        np.testing.assert_allclose(apply_mode(found[0], PIXELS), wanted, rtol=1e-5, atol=1e-5)


def network(front, name="mine"):
    inputs = keras.Input((32, 32, 3), name="image")
    return keras.Model(inputs, keras.layers.Conv2D(2, 3)(front(inputs)), name=name)


FRONTS = {
    "Rescaling": keras.layers.Rescaling(1 / 255),
    "Normalization": keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 1.0]),
    "arithmetic": lambda x: x / 127.5 - 1.0,
    "by a constant on the left": lambda x: 2.0 * x,
    "torch": lambda x: keras.applications.imagenet_utils.preprocess_input(x, "channels_last", mode="torch"),
    "caffe": lambda x: keras.applications.imagenet_utils.preprocess_input(x, "channels_last", mode="caffe"),
    "behind a layer that changes nothing": lambda x: keras.layers.Rescaling(2.0)(keras.layers.Identity()(x)),
}


@pytest.mark.parametrize("front", FRONTS)
def test_what_prepares_pixels_at_the_front_is_found(front):
    mode, why = found_mode(network(FRONTS[front]))
    assert mode == "none"
    assert "at the front" in why


def test_a_front_goes_before_a_name():
    assert found_mode(network(keras.layers.Rescaling(1 / 255), name="vgg16"))[0] == "none"
    assert found_mode(network(lambda x: x, name="vgg16"))[0] == "caffe"


def test_a_network_of_keras_inside_a_model_is_found_by_its_name():
    inner = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), include_top=False, alpha=0.35)
    mode, why = found_mode(keras.Sequential([keras.Input((32, 32, 3)), inner, keras.layers.Flatten()], name="mine"))
    assert mode == "tf"
    assert inner.name in why


def test_nothing_is_made_up():
    assert found_mode(network(lambda x: x)) is None
    assert found_mode(network(lambda x: keras.layers.Add()([x, x]))) is None

    class Own(keras.Model):
        def call(self, x):
            return x

    assert found_mode(Own(name="mine")) is None
    assert found_mode(Own(name="resnet50"))[0] == "caffe"
