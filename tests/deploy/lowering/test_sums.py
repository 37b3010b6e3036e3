"""Sums of all places so far: the exact sum, rounded once to a range of its own."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.reference.interpreter import trace

AXES = {"the only axis": ((12,), 1), "steps": ((9, 3), 1), "channels": ((9, 3), 2), "rows": ((4, 5, 3), 1)}


def summing(shape, axis, make=keras.ops.cumsum):
    """A calibrated model of sums so far, its float original, and other data than it was calibrated on."""
    entry = keras.Input(shape, name="x")
    model = keras.Model(entry, make(entry, axis=axis))
    known, data = np.random.default_rng(0).normal(size=(2, 48, *shape)).astype("float32")
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, known, verbose=0)
    return model, quantized, data


@pytest.mark.parametrize("name", AXES)
def test_each_is_the_exact_sum_rounded_once_to_the_range_of_all(name, tmp_path):
    shape, axis = AXES[name]
    model, quantized, data = summing(shape, axis)
    graph = klb.deploy.lower(quantized)
    source, target = (graph.tensors[end[0]].range for end in (graph.inputs, graph.outputs))
    codes = trace(graph, data)
    exact = model((codes["x"].astype("float32") - source.zero_point) * source.scale).numpy()
    unrounded = np.clip(exact / target.scale + target.zero_point, *target.limits)
    # Half a step for rounding. LiteRT rounds twice, the first time to a part of 1/128 of a step or less.
    assert np.abs(codes[graph.outputs[0]] - unrounded).max() < 0.51
    klb.export_litert(quantized, tmp_path / "m.tflite")
    assert klb.verify(quantized, tmp_path / "m.tflite", data, reference=model).ok


def test_it_loses_less_than_sums_of_pairs_would():
    """Doubling distances, as for products so far: each of its sums is rounded to the range of all."""

    def doubling(x, axis):
        for apart in (1, 2, 4, 8, 16):
            x = keras.ops.concatenate([x[:, :apart], x[:, apart:] + x[:, :-apart]], axis=axis)
        return x

    found = []
    for make in (keras.ops.cumsum, doubling):
        model, quantized, data = summing((32, 3), 1, make)
        want, got = model(data).numpy(), quantized(data).numpy()
        found.append(10 * np.log10(np.mean(want**2) / np.mean((want - got) ** 2)))
    assert found[0] > found[1] + 3
    assert found[0] > 35
