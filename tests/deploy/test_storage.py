"""`klb.storage`: sizes that can be counted by hand, for every kind of grid."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.callbacks import freeze_portion
from keras_lowbit.layers import QuantConv2D, QuantDense
from keras_lowbit.quantizers import Binary, Incremental, PowerOfTwo, Stochastic, Ternary, Uniform

kl = keras.layers


def one_layer(quantizer, kernel):
    """A model of a dense layer with that kernel, a batch norm and a bias."""
    inputs = keras.Input((kernel.shape[0],))
    dense = QuantDense(kernel.shape[1], kernel_quantizer=quantizer, name="dense")
    model = keras.Model(inputs, kl.BatchNormalization()(dense(inputs)), name="m")
    dense.kernel.assign(kernel)
    return model


def counted(codes, bits):
    """The code written out: "0" for a zero, "1" and ``bits - 1`` more digits for any other weight."""
    return len("".join("0" if code == 0 else "1" + "x" * (bits - 1) for code in codes.ravel()))


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("wrap", [lambda base: base, Incremental], ids=["alone", "incremental"])
def test_powers_of_two_take_a_flag_and_the_rest_for_a_nonzero(bits, wrap):
    kernel = np.random.default_rng(bits).normal(size=(40, 6)).astype("float32")
    model = one_layer(wrap(PowerOfTwo(bits)), kernel)
    (layer,) = klb.storage(model).layers
    codes = klb.quantized_weights(model)["dense"].codes
    assert (layer.path, layer.bits, layer.weights) == ("dense", bits, 240)
    assert layer.zeros == (codes == 0).sum() > 0
    assert layer.code_bits == counted(codes, bits)
    assert layer.code_bytes == -(-layer.code_bits // 8)
    assert layer.ratio_alone == 32 / bits
    assert layer.ratio == 32 * 240 / counted(codes, bits)
    assert layer.pruned is None


def test_the_ratio_by_hand():
    """Three quarters zero at 5 bits: 4 weights take 1 + 1 + 1 + 5 bits, 8 in all, against 128."""
    kernel = np.zeros((8, 4), np.float32)
    kernel[::4] = 1
    (layer,) = klb.storage(one_layer(PowerOfTwo(5), kernel)).layers
    assert (layer.code_bits, layer.ratio, layer.ratio_alone) == (64, 16.0, 6.4)


@pytest.mark.parametrize(
    ("quantizer", "bits", "flag"),
    [(Ternary(), 2, True), (Stochastic(Ternary()), 2, True), (Binary(), 1, False), (Uniform(4), 4, False)],
    ids=repr,
)
def test_other_grids(quantizer, bits, flag):
    kernel = np.random.default_rng(0).normal(size=(30, 5)).astype("float32")
    model = one_layer(quantizer, kernel)
    (layer,) = klb.storage(model).layers
    codes = klb.quantized_weights(model)["dense"].codes
    assert layer.code_bits == (counted(codes, bits) if flag else bits * 150)
    assert layer.ratio_alone == 32 / bits


def test_pruned_weights_are_those_of_the_first_partition():
    kernel = np.random.default_rng(0).normal(size=(30, 5)).astype("float32")
    kernel[::3] = 0
    model = one_layer(Incremental(PowerOfTwo(3)), kernel)
    assert klb.storage(model).layers[0].pruned is None
    freeze_portion(model.get_layer("dense"), 0.5, np.random.default_rng(0))
    (layer,) = klb.storage(model).layers
    assert layer.pruned == 50
    assert layer.zeros > 50


def test_totals_the_rest_of_the_model_and_the_text():
    inputs = keras.Input((6, 6, 2))
    hidden = QuantConv2D(4, 3, kernel_quantizer=Incremental(PowerOfTwo(5)), output_quantizer="activation", name="conv")(
        inputs
    )
    hidden = kl.Flatten()(kl.BatchNormalization()(hidden))
    hidden = QuantDense(8, kernel_quantizer=Stochastic(Ternary()), name="dense")(hidden)
    model = keras.Model(inputs, kl.Dense(3, name="head")(hidden), name="m")
    found = klb.storage(model)
    assert [layer.path for layer in found.layers] == ["conv", "dense"]
    assert found.total.weights == 72 + 64 * 8
    assert found.total.code_bits == sum(layer.code_bits for layer in found.layers)
    assert found.total.bits == (5 * 72 + 2 * 512) / 584
    assert found.total.ratio == 32 * 584 / found.total.code_bits
    assert found.float_weights == 4 + 4 * 4 + 8 + 8 * 3 + 3  # without the states of the quantizers
    floats = 32 * found.float_weights
    assert found.model_ratio == pytest.approx((32 * 584 + floats) / (found.total.code_bits + floats))
    text = str(found)
    for words in ("ratio alone", "ratio with zeros", "conv", "dense", "total", "55 other weights stay float32"):
        assert words in text


def test_packed_layers_count_as_the_ternary_ones_that_they_were_made_from():
    """They were counted as float32 weights: a ratio of 1."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 8))
    hidden = kl.Flatten()(kl.Conv2D(8, 3, name="conv")(inputs))
    model, _ = klb.quantize_model(keras.Model(inputs, kl.Dense(5, name="head")(hidden), name="m"), "twn")
    klb.calibrate(model, np.random.default_rng(0).normal(size=(4, 6, 6, 8)).astype("float32"), verbose=0)
    before, after = klb.storage(model), klb.storage(klb.pack(model))
    assert after == before
    assert before.float_weights == 8 + 5  # biases


def test_a_float_model_is_refused():
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match=r"'m' has no quantized layer.*inq-5"):
        klb.storage(keras.Model(inputs, kl.Dense(2)(inputs), name="m"))
