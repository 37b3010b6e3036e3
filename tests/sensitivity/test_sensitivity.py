"""sensitivity: each quantizer alone and all but it, against runs made by hand."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers

import keras_lowbit as klb
from keras_lowbit.layers import QuantConv2D, QuantDense
from keras_lowbit.sensitivity.effects import Sensitivity
from tests.support.model_zoo import run


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(48, 6, 6, 3)).astype("float32")


@pytest.fixture(scope="module")
def reference():
    keras.utils.set_random_seed(2)
    inputs = x = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="classes")(x))


@pytest.fixture(scope="module")
def quantized(reference, images):
    model, _ = klb.quantize_model(
        reference, klb.recipes.get("int8"), overrides={"depthwise": klb.quantizers.Uniform(2)}
    )
    klb.calibrate(model, images, verbose=0)
    return model


@pytest.fixture(scope="module")
def labels(reference, images):
    return run(reference, images)[0].argmax(1)


@pytest.fixture(scope="module")
def found(quantized, reference, images, labels):
    return klb.sensitivity(quantized, reference, images, labels=labels, verbose=0)


def test_the_layer_of_two_bits_hurts_most_and_is_missed_by_none(found):
    worst = found.worst_first()[0]
    assert (worst.path, worst.part, worst.bits) == ("depthwise", "weights", 2)
    assert worst.only.snr_db == pytest.approx(found.everything.snr_db, abs=1)
    assert worst.without.snr_db > found.everything.snr_db + 10


def test_a_row_for_every_quantizer(found, quantized):
    weights = [row.path for row in found.rows if row.part == "weights"]
    assert weights == [layer.name for layer in quantized.layers if getattr(layer, "kernel_host", None)]
    activations = [row for row in found.rows if row.part == "activations"]
    assert len(activations) >= 4
    assert all(row.bits == 8 for row in activations)


def test_weights_alone_are_what_the_float_model_gives_with_that_kernel(found, reference, quantized, images):
    layer = quantized.get_layer("conv")
    assert isinstance(layer, QuantConv2D)
    changed = keras.models.clone_model(reference)
    changed.set_weights(reference.get_weights())
    changed.get_layer("conv").kernel.assign(layer.kernel_host.encode(layer.kernel).real)
    for model in (reference, changed):
        model.get_layer("classes").activation = None
    try:
        wanted, got = (model(images).numpy().astype(np.float64) for model in (reference, changed))
    finally:
        reference.get_layer("classes").activation = keras.activations.softmax
    snr = 10 * math.log10(np.square(wanted).sum() / np.square(got - wanted).sum())
    assert found["conv"][0].only.snr_db == pytest.approx(snr, abs=0.05)


def test_all_but_nothing_is_everything_and_labels_are_counted(found, labels):
    assert found.float_accuracy == 1.0
    assert found.everything.accuracy == pytest.approx(found.everything.agreement)
    assert "all quantized:" in str(found)
    assert "accuracy" in str(found)
    assert found.samples == 48
    with pytest.raises(KeyError, match="No quantizer at 'conv9'"):
        found["conv9"]


def test_json_and_picture(found, tmp_path):
    read = json.loads(found.to_json())
    assert read["format"] == "keras_lowbit.sensitivity"
    assert [row["path"] for row in read["rows"]] == [row.path for row in found.rows]
    picture = found.plot(tmp_path / "a.png")
    names = [label.get_text() for label in picture.axes[0].get_yticklabels()]
    assert names == [row.path for row in found.worst_first()]
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_interrupted_run_goes_on(quantized, reference, images, tmp_path, monkeypatch):
    from keras_lowbit.sensitivity.logits import Logits

    score, runs, path = Logits.score, [], tmp_path / "done.json"

    def counted(self, hosts=None):
        runs.append(hosts)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return score(self, hosts)

    monkeypatch.setattr(Logits, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        klb.sensitivity(quantized, reference, images, checkpoint=path, verbose=0)
    runs[:] = [None] * 10
    whole = klb.sensitivity(quantized, reference, images, checkpoint=path, verbose=0)
    assert isinstance(whole, Sensitivity)
    assert len(runs) - 10 == 2 * len(whole.rows) - 3 + 1
    path.write_text("{")
    with pytest.raises(ValueError, match="no checkpoint of sensitivity, or damaged"):
        klb.sensitivity(quantized, reference, images, checkpoint=path, verbose=0)
    path.write_text('{"model": "other", "scores": {}}')
    with pytest.raises(ValueError, match="of another model or other weights"):
        klb.sensitivity(quantized, reference, images, checkpoint=path, verbose=0)


def test_the_model_is_left_as_it_was(quantized, reference, images):
    before = [weight.numpy().copy() for weight in quantized.weights]
    klb.sensitivity(quantized, reference, images[:8], verbose=0)
    for weight, value in zip(quantized.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_what_does_not_fit_is_said(quantized, reference, images):
    with pytest.raises(ValueError, match="has nothing that quantizes"):
        klb.sensitivity(reference, reference, images, verbose=0)
    with pytest.raises(ValueError, match="7 labels for 48 samples"):
        klb.sensitivity(quantized, reference, images, labels=[0] * 7, verbose=0)
    inputs = keras.Input((6, 6, 3))
    other = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match=r"gives outputs of shapes .* Give the float model"):
        klb.sensitivity(quantized, other, images, verbose=0)
    assert isinstance(quantized.get_layer("classes"), QuantDense)
