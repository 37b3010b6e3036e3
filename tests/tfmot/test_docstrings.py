"""The examples in the docstrings of the front end for tf_keras. They stand here since importing TFMOT changes `tf.keras`."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

import keras_lowbit as klb
import keras_lowbit.tfmot as klt
from tests.support.docstrings import gaps, public_objects, run_example

OBJECTS = public_objects("keras_lowbit.tfmot", "keras_lowbit.tfmot.callbacks")


@pytest.fixture(scope="module")
def names():
    """A network of tf_keras, and the same quantized by SQ."""
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    layers = [tf_keras.layers.Conv2D(8, 3, name="first"), tf_keras.layers.ReLU(), tf_keras.layers.Flatten()]
    model = tf_keras.Sequential([tf_keras.layers.Input((8, 8, 3)), *layers, tf_keras.layers.Dense(2, name="head")])
    quantized = klt.quantize_model(model, "sq-twn")
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    return locals() | {"np": np, "tfmot": tfmot, "tf_keras": tf_keras, "klb": klb, "klt": klt}


@pytest.mark.parametrize("name", OBJECTS)
def test_the_example_in_the_docstring_runs(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failures = run_example(OBJECTS[name], names)
    assert not failures, failures


@pytest.mark.parametrize("name", OBJECTS)
def test_the_docstring_says_what_it_takes_returns_and_raises(name):
    assert gaps(OBJECTS[name]) == []
