"""Channels-first networks become channels-last ones that compute the same, turned at their ends alone."""

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_lowbit as klb
from keras_lowbit.convert.channels_last import channels_last
from keras_lowbit.keras_graph.calls import all_calls, calls_of
from tests.support.lowering_zoo import ZOO, enliven, samples

FIRST = {"data_format": "channels_first"}


def kinds(model):
    return [call.kind for _, call in all_calls(model)]


def body(x):
    x = L.LeakyReLU()(L.BatchNormalization(axis=1)(L.Conv2D(4, 3, padding="same", name="conv", **FIRST)(x)))
    x = keras.ops.add(keras.ops.multiply(x, 0.5), L.SeparableConv2D(4, 3, padding="same", **FIRST)(x))
    return L.GlobalAveragePooling2D(**FIRST)(L.GroupNormalization(2, axis=1)(L.Softmax(axis=1)(x)))


def nested(x):
    entry = keras.Input((3, 8, 8))
    inner = keras.Model(entry, L.ReLU()(L.Conv2D(3, 3, padding="same", **FIRST)(entry)), name="inner")
    return L.Flatten()(inner(inner(x)))


def shared(x):
    conv = L.Conv2D(3, 3, padding="same", **FIRST)
    return L.GlobalMaxPooling2D(**FIRST)(conv(conv(x)))


def signals(x):
    x = L.Reshape((3, 64))(x)
    return L.Dense(3)(L.MaxPooling1D(2, **FIRST)(L.Conv1D(4, 3, **FIRST)(x)))  # Dense works on the places


def elsewhere(x):
    """Operations that know an axis in another way read the channels where they were."""
    x = L.Conv2D(4, 3, padding="same", **FIRST)(x)
    x = keras.ops.multiply(x, np.arange(1, 5, dtype="float32")[:, None, None])
    x = L.PReLU(shared_axes=[2, 3])(x[:, 1:])
    return L.Dense(2)(L.Activation("softmax")(L.MaxPooling2D(**FIRST)(x)))


@pytest.mark.parametrize("network", [body, nested, shared, signals, elsewhere])
def test_the_copy_computes_the_same(network):
    entry = keras.Input((3, 8, 8), name="image")
    model = keras.Model(entry, network(entry))
    enliven(model)
    copy = channels_last(model)
    data = samples(model, 4)[0]
    want = np.asarray(model(data))
    np.testing.assert_allclose(np.asarray(copy(data)), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert not any(getattr(call.operation, "data_format", None) == "channels_first" for _, call in all_calls(copy))
    ours, theirs = ({v.path: v.shape for v in one.variables} for one in (model, copy))
    assert sorted(ours.values(), key=str) == sorted(theirs.values(), key=str)


def test_it_is_turned_at_its_ends_alone():
    entry = keras.Input((3, 8, 8), name="image")
    assert kinds(channels_last(keras.Model(entry, body(entry)))).count("Transpose") == 1
    model = ZOO["a network with channels first"].make()
    copy = channels_last(model)
    turned = [call.path for call in calls_of(copy).calls if call.kind == "Transpose"]
    assert len(turned) == 4  # the image, the gate, in front of a Flatten that knows no channels, the output
    assert [tuple(tensor.shape) for tensor in copy.outputs] == [tuple(tensor.shape) for tensor in model.outputs]


def test_a_model_with_its_channels_last_is_itself():
    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, L.Conv2D(4, 3)(entry))
    assert channels_last(model) is model


def test_the_file_has_integers_alone_and_the_input_of_the_model(tmp_path):
    entry = keras.Input((3, 8, 8), name="image")
    model = keras.Model(entry, L.Dense(3)(body(entry)))
    data = samples(model, 32)[0]
    quantized, report = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    assert klb.export_litert(quantized, tmp_path / "m.tflite").float_fallbacks == ()
    assert report["conv"].outcome == "quantized"
    assert klb.verify(quantized, tmp_path / "m.tflite", data, reference=model).ok
    assert klb.deploy.lower(quantized).tensors["image"].shape == (None, 3, 8, 8)


def test_transposed_volumes_become_slices_with_their_channels_last():
    entry = keras.Input((2, 4, 4, 4))
    volume = L.Conv3DTranspose(3, 2, 2, name="volume", **FIRST)
    quantized, report = klb.quantize_model(keras.Model(entry, volume(entry)))
    assert report["volume"].outcome == "rewritten"
    assert quantized.get_layer("volume_planes_1").data_format == "channels_last"
