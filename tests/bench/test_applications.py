"""bench applications: a row for each network, whatever its size of images."""

import keras
from keras import layers as L

from keras_lowbit.bench import applications


def tiny(weights=None):
    """A network of images of any size, such as MobileNetV3."""
    image = keras.Input((None, None, 3))
    hidden = L.GlobalAveragePooling2D()(L.Conv2D(2, 3, strides=8)(L.Rescaling(1 / 255)(image)))
    return keras.Model(image, L.Dense(2)(hidden))


def test_a_network_of_any_image_size_gets_one(monkeypatch):
    monkeypatch.setattr(keras.applications, "Tiny", tiny, raising=False)
    row = applications.measure("Tiny")
    assert row["in_float"] == []
    assert row["nodes"] == 3
    assert row["parameters"] == 62
