"""Names of a model's outputs, which `compile` and `fit` know losses and labels by."""

import keras
import numpy as np

import keras_lowbit as klb
from tests.support.model_zoo import inputs_of, randomize, run

L = keras.layers
NAMES = ["u", "v", "w", "x"]


def several():
    image = keras.Input((8, 8, 3), name="image")
    features = L.Conv2D(4, 3, activation="relu", name="u")(image)
    pooled = L.GlobalAveragePooling2D(name="pool")(features)
    outputs = [L.Dense(3, name="v")(pooled), L.Dense(2, activation="softmax", name="w")(pooled)]
    last = L.SeparableConv2D(2, 3, activation="relu6", name="x")(features)
    return randomize(keras.Model(image, [features, *outputs, last], name="several"))


def fit_by_name(model):
    inputs = inputs_of(model)
    labels = dict(zip(model.output_names, map(np.zeros_like, run(model, inputs)), strict=True))
    assert list(labels) == NAMES
    model.compile("sgd", dict.fromkeys(labels, "mse"), metrics={"v": "mae"}, run_eagerly=True)
    return model.fit(inputs, labels, verbose=0).history


def test_outputs_keep_their_names_through_quantizing_saving_and_cloning(tmp_path):
    copy, report = klb.quantize_model(several(), "int8")
    klb.calibrate(copy, inputs_of(copy), verbose=0)
    assert {"u_loss", "v_loss", "w_loss", "x_loss", "v_mae"} < set(fit_by_name(copy))
    assert not any("as an output" in row.detail for row in report.layers)
    copy.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for known, same in zip(run(copy, inputs_of(copy)), run(loaded, inputs_of(copy)), strict=True):
        np.testing.assert_array_equal(known, same)
    for again in (loaded, keras.models.clone_model(copy), klb.quantize_model(copy, "int8")[0], klb.dequantize(copy)):
        fit_by_name(again)


def test_a_range_inside_an_output_layer_is_the_one_that_would_stand_behind_it(tmp_path):
    model = several()
    copy, _ = klb.quantize_model(model, "int8")
    ranges = klb.calibrate(copy, inputs_of(copy), verbose=0)
    alone, _ = klb.quantize_model(keras.Model(model.input, model.outputs[1]), "int8")
    assert klb.calibrate(alone, inputs_of(copy), verbose=0)["v_range/output_quantizer"] == ranges["v/output_quantizer"]
    klb.export_litert(copy, tmp_path / "model.tflite")
    assert klb.verify(copy, tmp_path / "model.tflite", inputs_of(copy)).max_layer_steps <= 1


def test_the_report_has_the_new_name_of_an_output_that_could_not_keep_it():
    row = keras.Input((4,), name="row")
    shared = L.Dense(4, name="shared")
    first = shared(row)
    model = keras.Model(row, [shared(first), L.ReLU(name="end")(first), L.Dense(2, name="head")(first)])
    copy, report = klb.quantize_model(model, "int8")
    assert copy.output_names == ["shared_range_1", "end_range", "head"]
    for old, new in (("shared", "shared_range_1"), ("end", "end_range")):
        assert report[old].detail.endswith(f"; as an output of the model it is called {new!r}")
    assert "as an output" not in report["head"].detail


def test_one_output_and_outputs_in_a_dict_have_their_ranges_behind_the_layers():
    row = keras.Input((4,), name="row")
    head = L.Dense(2, name="head")(row)
    copy, report = klb.quantize_model(keras.Model(row, head), "int8")
    assert [layer.name for layer in copy.layers] == ["row", "row_range", "head", "head_range"]
    assert "as an output" not in report["head"].detail
    named = keras.Model(row, {"a": head, "b": L.Dense(3, name="other")(row)})
    copy, report = klb.quantize_model(named, "int8")
    assert {"head_range", "other_range"} < {layer.name for layer in copy.layers}
    assert not any("as an output" in row.detail for row in report.layers)
    copy.compile("sgd", {"a": "mse", "b": "mse"}, run_eagerly=True)
    copy.fit(np.ones((2, 4)), {"a": np.ones((2, 2)), "b": np.ones((2, 3))}, verbose=0)
