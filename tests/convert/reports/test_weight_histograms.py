"""Histograms of float weights in steps of their own scale."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(8, 3, name="ternary")(inputs)
    x = keras.layers.Conv2D(4, 1, name="clustered")(x)
    x = keras.layers.Dense(3, name="zero", kernel_initializer="zeros")(keras.layers.Flatten()(x))
    overrides = {"ternary|zero": "ternary", "clustered": klb.quantizers.Clustered("ternary", cluster_size=4)}
    return klb.quantize_model(keras.Model(inputs, x), "int8", overrides=overrides)[0]


def test_bars_are_the_weights_in_steps_and_codes_are_those_of_the_layer(model):
    found, weights = klb.weight_histograms(model), klb.quantized_weights(model)
    assert [row.path for row in found.layers] == ["ternary", "clustered", "zero"]
    row, codes = found["ternary"], weights["ternary"].codes
    steps = to_numpy(model.get_layer("ternary").kernel).astype(np.float64) / weights["ternary"].scale
    assert (row.codes, row.code_counts) == ((-1, 0, 1), tuple(np.count_nonzero(codes == code) for code in (-1, 0, 1)))
    inside = np.clip(steps, row.edges[0], row.edges[-1])
    assert row.counts == tuple(np.histogram(inside, row.edges)[0])
    assert row.weights == sum(row.counts) == codes.size
    assert (row.bits, len(row.edges)) == (2, len(row.counts) + 1)


def test_weights_far_out_are_in_the_outermost_bin(model):
    layer = model.get_layer("zero")
    far = np.ones(layer.kernel.shape, np.float32)
    far[0] = 20.0
    layer.kernel.assign(far)
    row = klb.weight_histograms(model)["zero"]
    layer.kernel.assign(0 * far)
    assert row.edges[-1] == 2.0
    assert row.counts[-1] == 3
    assert sum(row.counts) == far.size


def test_a_kernel_of_zeros_has_one_code(model):
    row = klb.weight_histograms(model)["zero"]
    assert (row.codes, row.code_counts) == ((0,), (row.weights,))
    assert np.isfinite(row.edges).all()


def test_an_unknown_path_names_close_ones(model):
    with pytest.raises(KeyError, match=r"no quantized layer 'ternery'. Close: \['ternary'\]"):
        klb.weight_histograms(model)["ternery"]
