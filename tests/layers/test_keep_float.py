"""KeepFloat: the mark in front of what stays in float."""

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.layers import KeepFloat, QuantActivation, QuantDense

ROWS = np.random.default_rng(0).normal(size=(20, 5)).astype("float32") * [1, 10, 100, 1000, 10000]


def drop_in():
    """A tabular network of drop-in layers whose scaling runs in float."""
    row = keras.Input((5,), name="row")
    scaled = keras.layers.Normalization(mean=[0.0] * 5, variance=ROWS.var(0), name="scale")(KeepFloat()(row))
    hidden = QuantDense(4, kernel_quantizer="uniform", name="head")(QuantActivation()(scaled))
    return keras.Model(row, QuantActivation()(hidden))


def test_it_hands_on_what_it_gets_of_any_type_and_is_saved(tmp_path):
    for dtype in ("float32", "int32", "bool"):
        entry = keras.Input((3,), dtype=dtype)
        model = keras.Model(entry, KeepFloat(name="here")(entry))
        model.save(tmp_path / "m.keras")
        values = np.arange(6).reshape(2, 3).astype(dtype)
        got = keras.ops.convert_to_numpy(keras.saving.load_model(tmp_path / "m.keras")(values))
        np.testing.assert_array_equal(got, values)
        assert got.dtype == dtype


def test_drop_in_layers_keep_a_front_in_float_with_it(tmp_path):
    model = drop_in()
    klb.calibrate(model, ROWS, verbose=0)
    report = klb.export_litert(model, tmp_path / "m.tflite")
    assert [found.path for found in report.float_fallbacks] == ["scale"]
    assert [node.op for node in klb.deploy.lower(model).nodes] == ["float_subgraph", "quantize", "fully_connected"]
    assert klb.verify(model, tmp_path / "m.tflite", ROWS).ok


def test_a_stock_model_has_none_of_it():
    model = drop_in()
    klb.calibrate(model, ROWS, verbose=0)
    assert [layer.name for layer in klb.dequantize(model).layers] == ["row", "scale", "head"]
