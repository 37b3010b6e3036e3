"""Whole models with LiteRT's LSTM: conversion, file and verification, beside TensorFlow's own conversion of the same model."""

import dataclasses
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl

import keras_lowbit as klb
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.verification.parity import Parity
from keras_lowbit.quantizers import ActivationRange, Uniform

RANDOM = np.random.default_rng(0)
FUSED = "UNIDIRECTIONAL_SEQUENCE_LSTM"


def network(steps, features, units, **options):
    """A network whose weights are those of no beginning, and walks for it: (model, calibration data, test data)."""
    keras.utils.set_random_seed(steps)
    entry = keras.Input((steps, features), name="x")
    model = keras.Model(entry, kl.Dense(4, name="head")(kl.LSTM(units, name="lstm", **options)(entry)))
    for weight in model.weights:
        weight.assign(weight + 0.15 * np.random.default_rng(steps).normal(size=weight.shape))
    walks = np.cumsum(np.random.default_rng(steps).normal(size=(160, steps, features)), 1) / 5
    return model, *np.split(walks.astype("float32"), [128])


def exported(model, data, path, **options):
    quantized, report = klb.quantize_model(model, fuse_lstm=True)
    klb.calibrate(quantized, data, verbose=0)
    klb.export_litert(quantized, path, **options)
    return quantized, report


def run(path, data, reset=False):
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    [entry], [made], found = interpreter.get_input_details(), interpreter.get_output_details(), []
    for sample in data:
        if reset:
            interpreter.reset_all_variables()
        interpreter.set_tensor(entry["index"], sample[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(made["index"])[0])
    return np.stack(found)


def decibels(wanted, found):
    return 10 * np.log10(np.sum(wanted.astype(float) ** 2) / np.sum((wanted.astype(float) - found) ** 2))


CONVERSION = """
import sys
import numpy as np, tensorflow as tf, tf_keras
given, path, steps, features, units, sequence = *sys.argv[1:3], *map(int, sys.argv[3:])
arrays = np.load(given)
entry = tf_keras.Input((steps, features), batch_size=1)
made = tf_keras.layers.LSTM(units, return_sequences=bool(sequence))(entry)
model = tf_keras.Model(entry, tf_keras.layers.Dense(4)(made))
model.set_weights([arrays[f"arr_{k}"] for k in range(len(arrays) - 1)])
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([sample[None]] for sample in arrays["data"])
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
open(path, "wb").write(converter.convert())
"""


def tensorflow_file(model, data, path):
    """TensorFlow's full-integer conversion, in a process of its own: its converter knows the LSTM of Keras 2 alone."""
    pytest.importorskip("tf_keras")
    lstm = model.get_layer("lstm")
    weights = model.get_weights()
    if not lstm.use_bias:  # without one its converter makes a loop, and its calibration ends the process
        weights.insert(2, np.zeros(4 * lstm.units, "float32"))
    np.savez(path.with_suffix(".npz"), *weights, data=data)
    sizes = (*model.input_shape[1:], lstm.units, int(lstm.return_sequences))
    command = [sys.executable, "-c", CONVERSION, path.with_suffix(".npz"), path, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return path


@pytest.mark.parametrize(
    "options", [{}, {"return_sequences": True}, {"use_bias": False}], ids=["last", "sequence", "no bias"]
)
def test_it_verifies_and_is_not_behind_tensorflows_own_conversion(options, tmp_path):
    model, data, test = network(25, 5, 12, **options)
    quantized, report = exported(model, data, tmp_path / "ours.tflite", io="float32")
    assert (report["lstm"].outcome, report["lstm"].layer) == ("quantized", "LSTM")
    parity = klb.verify(quantized, tmp_path / "ours.tflite", test, reference=model, verbose=0)
    assert (parity.ok, parity.reference_equal) == (True, True), parity
    wanted = model.predict(test, verbose=0)
    ours = decibels(wanted, run(tmp_path / "ours.tflite", test))
    theirs = decibels(wanted, run(tensorflow_file(model, data, tmp_path / "theirs.tflite"), test, reset=True))
    assert ours > max(theirs - 1, 25), (ours, theirs)


def test_the_file_has_one_operator_for_all_steps(tmp_path):
    sizes = []
    for steps in (4, 90):
        model, data, _ = network(steps, 3, 5)
        exported(model, data, tmp_path / "m.tflite")
        file = LiteRTFile.of_bytes((tmp_path / "m.tflite").read_bytes())
        assert [operator.builtin for operator in file.operators].count(FUSED) == 1
        sizes.append(file.size)
    assert abs(sizes[1] - sizes[0]) < 64


def test_an_open_batch_and_sequences_of_any_length(tmp_path):
    entry = keras.Input((None, 3), name="x")
    model = keras.Model(entry, kl.LSTM(4, return_sequences=True)(entry))
    data = RANDOM.normal(size=(16, 7, 3)).astype("float32")
    quantized, _ = exported(model, data, tmp_path / "m.tflite", batch_size=None, input_shapes=(7, 3))
    assert klb.verify(quantized, tmp_path / "m.tflite", data, verbose=0).ok


def test_two_behind_one_another_one_used_twice_and_one_in_a_nested_model(tmp_path):
    first, second = keras.Input((6, 3), name="a"), keras.Input((6, 3), name="b")
    shared = kl.LSTM(5, return_sequences=True, name="shared")
    inner = keras.Sequential([keras.Input((6, 5)), kl.LSTM(4, name="deep")], name="inner")
    model = keras.Model([first, second], kl.Concatenate()([inner(shared(first)), inner(shared(second))]))
    data = [RANDOM.normal(size=(16, 6, 3)).astype("float32") for _ in range(2)]
    quantized, report = exported(model, data, tmp_path / "m.tflite")
    assert {report[path].outcome for path in ("shared", "inner/deep")} == {"quantized"}
    assert klb.verify(quantized, tmp_path / "m.tflite", data, verbose=0).ok


@pytest.mark.parametrize(
    ("options", "arguments", "reason"),
    [
        ({"activation": "relu"}, {}, "LiteRT's LSTM has tanh and sigmoid alone"),
        ({"go_backwards": True}, {}, "LiteRT's LSTM has no go_backwards"),
        ({"stateful": True}, {}, "LiteRT's LSTM has no stateful"),
        ({"mask": True}, {}, "it is called with a mask"),
        ({}, {"recipe": "sq-twn"}, r"LiteRT's LSTM has weights of up to 8 bits \('uniform'\)"),
        ({}, {"overrides": {"lstm": "ternary"}}, "its kernels have Ternary"),
    ],
)
def test_what_is_not_fused_says_why(options, arguments, reason):
    entry = keras.Input(batch_shape=(2, 6, 3), name="x")
    options = dict(options)
    x = kl.Masking()(entry) if options.pop("mask", False) else entry
    model = keras.Model(entry, kl.LSTM(4, name="lstm", **options)(x))
    _, report = klb.quantize_model(model, fuse_lstm=True, **arguments)
    assert report["lstm"].outcome == "skipped"
    assert re.search(f"not fused: .*{reason}", report["lstm"].detail), report["lstm"].detail


def test_what_is_not_fused_is_unrolled_where_asked():
    entry = keras.Input((6, 3), name="x")
    model = keras.Model(entry, kl.LSTM(4, name="lstm", go_backwards=True)(entry))
    _, report = klb.quantize_model(model, fuse_lstm=True, unroll=True)
    assert report["lstm"].outcome == "rewritten"
    assert report["lstm"].detail.endswith("not fused: LiteRT's LSTM has no go_backwards")


def test_skipped_and_overridden_layers_follow_the_user():
    entry = keras.Input((6, 3), name="x")
    model = keras.Model(entry, kl.LSTM(4, name="lstm", unroll=True)(entry))
    quantized, _ = klb.quantize_model(model, fuse_lstm=True, overrides={"lstm": Uniform(bits=6)})
    assert quantized.get_layer("lstm").kernel_quantizer == Uniform(bits=6)
    quantized, report = klb.quantize_model(model, fuse_lstm=True, skip=["lstm"])
    assert (report["lstm"].outcome, type(quantized.get_layer("lstm"))) == ("skipped", kl.LSTM)
    with pytest.raises(TypeError, match="fuse_lstm"):
        klb.quantize_model(model, fuse_lstm=1)


def test_activations_of_16_bits_have_no_such_operator():
    entry = keras.Input((6, 3), name="x")
    model = keras.Model(entry, kl.LSTM(4, name="lstm")(entry))
    recipe = klb.recipes.get("int8").replace(activations=ActivationRange(16))
    assert "LiteRT's LSTM has 8 bits" in klb.quantize_model(model, recipe, fuse_lstm=True)[1]["lstm"].detail


@pytest.mark.parametrize("missing", ["kernel", "output"])
def test_a_layer_without_a_quantizer_has_no_file(missing, tmp_path):
    entry = keras.Input((6, 3))
    quantizers = {"kernel_quantizer": "uniform", "output_quantizer": "activation", f"{missing}_quantizer": None}
    model = keras.Model(entry, klb.layers.QuantLSTM(4, **quantizers)(klb.layers.QuantActivation()(entry)))
    klb.calibrate(model, RANDOM.normal(size=(4, 6, 3)).astype("float32"), verbose=0)
    with pytest.raises(ValueError, match=f"has no {missing}_quantizer: its loop has no file in float"):
        klb.export_litert(model, tmp_path / "m.tflite")


def test_a_gate_of_zeros_is_written(tmp_path):
    model, data, test = network(6, 3, 4)
    lstm = model.get_layer("lstm")
    kernel, recurrent, bias = lstm.get_weights()
    kernel[:, :4], recurrent[:, :4] = 0, 0
    lstm.set_weights([kernel, recurrent, bias])
    quantized, _ = exported(model, data, tmp_path / "m.tflite")
    assert klb.verify(quantized, tmp_path / "m.tflite", test, verbose=0).ok


def test_summary_counts_the_multiplications_of_all_steps():
    model, data, _ = network(6, 3, 4)
    quantized, _ = klb.quantize_model(model, fuse_lstm=True)
    klb.calibrate(quantized, data, verbose=0)
    [row] = [row for row in klb.summary(quantized).layers if row.path == "lstm"]
    assert (row.weight_bits, row.macs, row.parameters) == (8, 6 * 4 * 4 * (3 + 4), 4 * 4 * (3 + 4 + 1))


def test_other_layers_may_differ_by_one_step_alone(tmp_path):
    model, data, test = network(6, 3, 4)
    quantized, _ = exported(model, data, tmp_path / "m.tflite")
    parity = klb.verify(quantized, tmp_path / "m.tflite", test, verbose=0)

    def with_steps(op, steps):
        return Parity((dataclasses.replace(parity.layers[0], op=op, max_steps=steps),), (), None, 1, 1)

    found = [
        with_steps(*steps).ok for steps in ((FUSED, 16), (FUSED, 17), ("FULLY_CONNECTED", 1), ("FULLY_CONNECTED", 2))
    ]
    assert found == [True, False, True, False]
