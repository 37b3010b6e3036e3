"""Every public function and class says in its docstring what it takes, returns and raises, and has an example, which runs.

Examples are a few lines on what `names` prepares. Those of `keras_lowbit.tfmot` are run by tests/tfmot/test_docstrings.py.
"""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from tests.support.docstrings import gaps, public_objects, run_example
from tests.support.pages import PUBLIC

OBJECTS = public_objects(*(f"keras_lowbit.{part}".strip(".") for part in PUBLIC if part != "tfmot"))


def network():
    """A trained network for pictures of 8 x 8, dark or light, and those pictures."""
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    labels = (images.mean((1, 2, 3)) > 0).astype("int32")
    layers = keras.layers
    inputs = features = keras.Input((8, 8, 3), name="image")
    features = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(features)
    features = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.5)(features))
    features = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(features)
    features = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.5)(features))
    features = layers.Conv2D(8, 1, activation="relu", name="pointwise")(features)
    features = layers.GlobalAveragePooling2D()(features)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="kind")(features), name="network")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=12, batch_size=16, verbose=0)
    return model, images, labels


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the examples begin with, as docs/reference/index.md says; the folder that they write to."""
    folder = tmp_path_factory.mktemp("examples")
    keras.utils.set_random_seed(0)
    tf.config.run_functions_eagerly(True)  # tracing takes longer than the steps
    model, images, labels = network()
    folded = klb.fold_batch_norms(model)
    (quantized, _), (ternary, _), (student, _) = (
        klb.quantize_model(source, recipe) for source, recipe in ((folded, "int8"), (model, "sq-twn"), (folded, "fat"))
    )
    for made in (quantized, ternary, student):
        klb.calibrate(made, images, verbose=0)
        made.compile("sgd", "sparse_categorical_crossentropy")
    for place, kind in enumerate(["dark", "light", "dark", "light"]):
        (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(folder / "photos" / kind / f"{place}.png", images[place])
    klb.export_litert(quantized, folder / "m.tflite")
    klb.export_litert(quantized, folder / "float.tflite", io="float32")
    graph = klb.deploy.lower(quantized)
    yield (
        folder,
        locals() | {"dataclasses": dataclasses, "json": json, "keras": keras, "klb": klb, "np": np, "os": os, "tf": tf},
    )
    tf.config.run_functions_eagerly(False)


@pytest.mark.slow(0.3)
@pytest.mark.filterwarnings("ignore:.*(did not help|no epoch was better):UserWarning")  # the data are drawn
@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")  # data sets are traced all the same
@pytest.mark.parametrize("name", OBJECTS)
def test_the_example_in_the_docstring_runs(name, names, monkeypatch):
    folder, shared = names
    monkeypatch.chdir(folder)
    failures = run_example(OBJECTS[name], shared)
    assert not failures, failures


@pytest.mark.parametrize("name", OBJECTS)
def test_the_docstring_says_what_it_takes_returns_and_raises(name):
    assert gaps(OBJECTS[name]) == []


def good(size, kind="a", *, seed=0) -> int:
    """The `size` of it.

    kind: "a" or "b".   seed: of the draw.
    Returns an int.
    Raises ValueError for another kind.
    """
    if kind not in "ab":
        raise ValueError(kind)
    return size + seed


def poor(size, other_kind="a", *, seed=0) -> int:
    """Its size, with kind: and seed."""
    if other_kind not in "ab":
        raise TypeError(other_kind)
    return size + seed


def test_what_a_docstring_leaves_out_is_found():
    assert gaps(good) == []
    arguments = [f"{name}: is not described" for name in ("size", "other_kind", "seed")]
    assert gaps(poor) == [*arguments, "what it returns", "when it raises TypeError"]
