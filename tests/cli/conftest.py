"""A small float network, the same quantized and calibrated, and its images: files that all commands read."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from tests.support.commands import caller
from tests.support.model_zoo import run


@pytest.fixture
def call(capsys):
    return caller(capsys)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths: `model` and `quantized` (.keras), `data` (.npz of `images` and `labels`), `names` (.txt), and a `folder`."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="bn")(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="classes")(x), name="small")
    images = np.random.default_rng(0).normal(size=(24, 12, 12, 3)).astype(np.float32)
    labels = run(model, images)[0].argmax(-1)
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, images, verbose=0)
    found = SimpleNamespace(
        folder=folder,
        model=folder / "small.keras",
        quantized=folder / "q.keras",
        data=folder / "images.npz",
        names=folder / "labels.txt",
    )
    model.save(found.model)
    quantized.save(found.quantized)
    np.savez(found.data, images=images, labels=labels)
    found.names.write_text("ant\nbee\ncat\ndog\n")
    return found
