"""QuantLSTM: the stock layer's steps with LiteRT's roundings; trains, calibrates, saves."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers.recurrent import CellRange, QuantLSTM
from keras_lowbit.numerics.grids import dequantize

QUANTIZED = {"kernel_quantizer": "uniform", "output_quantizer": "activation"}
DATA = np.random.default_rng(0).normal(size=(32, 9, 5)).astype("float32")


def model_of(layer):
    entry = keras.Input((9, 5))
    return keras.Model(entry, layer(klb.layers.QuantActivation()(entry)))


def calibrated(**options):
    model = model_of(QuantLSTM(6, **{**QUANTIZED, **options}))
    klb.calibrate(model, DATA, verbose=0)
    return model


@pytest.mark.parametrize("options", [{}, {"return_sequences": True}, {"use_bias": False}])
def test_without_quantizers_it_is_the_stock_layer(options):
    stock, own = keras.layers.LSTM(6, **options), QuantLSTM(6, **options)
    wanted = stock(DATA)
    own.build(DATA.shape)
    own.set_weights(stock.get_weights())
    np.testing.assert_allclose(own(DATA), wanted, atol=1e-5)
    assert own.compute_output_shape(DATA.shape) == tuple(wanted.shape)


def test_results_and_cell_lie_on_their_grids_and_close_to_the_stock_layer():
    model = calibrated(return_sequences=True)
    layer = model.layers[-1]
    made = model.predict(DATA, verbose=0)
    scale, _ = layer.output_host.quantizer.grid(layer.output_host.values())
    codes = made / float(scale)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    wanted = klb.dequantize(model).predict(DATA, verbose=0)
    assert 0 < np.mean((made - wanted) ** 2) < 1e-3 * np.mean(wanted**2)


@pytest.mark.parametrize(("reach", "bits"), [(0.0, 0), (0.4, 0), (0.99, 0), (1.5, 1), (2.0, 2), (31.0, 5), (500.0, 6)])
def test_the_cell_has_the_smallest_power_of_two_that_covers_it_from_1_to_64(reach, bits):
    step, zero_point = CellRange().grid({"minimum": np.float32(-reach), "maximum": np.float32(reach / 2)})
    assert (float(step), float(zero_point)) == (2.0 ** (bits - 15) if reach else 2.0**-9, 0.0)


def test_each_gate_has_a_scale_for_each_matrix():
    layer = QuantLSTM(6, **QUANTIZED)
    layer(DATA)
    for host, role in ((layer.kernel_host, "kernel"), (layer.recurrent_host, "recurrent")):
        found, real = host.encode(layer.kernels()[role]), keras.ops.convert_to_numpy(layer.kernels()[role])
        np.testing.assert_allclose(np.ravel(found.scale), np.abs(real).max((1, 2)) / 127, rtol=1e-6)
        assert np.abs(dequantize(found.codes, found.scale) - real).max() <= 0.51 * np.max(found.scale)


def test_it_trains_and_its_ranges_follow():
    model = model_of(QuantLSTM(6, dropout=0.2, **QUANTIZED))
    model.compile(keras.optimizers.Adam(0.03), "mse")
    losses = model.fit(DATA, np.full((32, 6), 0.2), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    assert all(float(host.state["count"]) == 8 for _, host in klb.layers.hosts(model) if "count" in host.state)


def test_a_saved_model_is_the_same(tmp_path):
    model = calibrated()
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(*(one.predict(DATA, verbose=0) for one in (model, again)))


def test_weights_of_the_stock_network_load_into_it(tmp_path):
    entry = keras.Input((9, 5))
    first = keras.layers.LSTM(6, return_sequences=True, name="a")(entry)
    loop = keras.layers.LSTM(3, return_sequences=True, go_backwards=True, name="b")(first)
    stock = keras.Model(entry, keras.layers.Dense(2, name="d")(keras.layers.LSTM(4, name="c")(loop)))
    stock.save_weights(tmp_path / "m.weights.h5")
    quantized, _ = klb.quantize_model(stock, fuse_lstm=True)
    for weight in quantized.trainable_weights:
        weight.assign(np.zeros(weight.shape))
    quantized.load_weights(tmp_path / "m.weights.h5")
    for name in "abcd":
        for got, wanted in zip(quantized.get_layer(name).trainable_weights, stock.get_layer(name).weights, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "LiteRT's LSTM has tanh and sigmoid alone"),
        ({"recurrent_activation": "hard_sigmoid"}, "LiteRT's LSTM has tanh and sigmoid alone"),
        ({"stateful": True}, "LiteRT's LSTM has no stateful"),
        ({"go_backwards": True}, "LiteRT's LSTM has no go_backwards"),
        ({"return_state": True}, "LiteRT's LSTM has no return_state"),
        ({"recurrent_dropout": 0.1}, "LiteRT's LSTM has no recurrent_dropout"),
        ({"dtype": "mixed_float16"}, "its policy is mixed_float16: float32 alone is fused"),
        ({"kernel_quantizer": "activation"}, "give one of weights"),
        ({"output_quantizer": "ternary"}, "give one of activations"),
        ({"format_version": 99}, "A QuantLSTM was saved in format version 99"),
    ],
)
def test_what_the_operator_has_not_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuantLSTM(6, **options)
