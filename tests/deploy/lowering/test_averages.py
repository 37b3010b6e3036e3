"""Averages: one rounding of the exact sum to a range of their own."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_lowbit as klb
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.litert.delegate import delegate_coverage
from keras_lowbit.deploy.lowering.averages import strips
from keras_lowbit.deploy.reference.interpreter import trace

L = keras.layers
IMAGE, SIGNAL = (8, 7, 3), (13, 3)

AVERAGES = {
    "global": (lambda: L.GlobalAveragePooling2D(), IMAGE),
    "global kept": (lambda: L.GlobalAveragePooling2D(keepdims=True), IMAGE),
    "global 1-d": (lambda: L.GlobalAveragePooling1D(), SIGNAL),
    "mean of rows": (lambda: lambda x: keras.ops.mean(x, axis=1), IMAGE),
    "windows": (lambda: L.AveragePooling2D(2), IMAGE),
    "overlapping": (lambda: L.AveragePooling2D(3, 1), IMAGE),
    "padded": (lambda: L.AveragePooling2D(3, 1, "same"), IMAGE),
    "padded, strides": (lambda: L.AveragePooling2D((3, 2), 2, "same"), IMAGE),
    "padded, wider than the image": (lambda: L.AveragePooling2D((1, 15), (1, 1), "same"), (2, 4, 3)),
    "whole image": (lambda: L.AveragePooling2D((8, 7)), IMAGE),
    "whole columns": (lambda: L.AveragePooling2D((8, 1)), IMAGE),
    "padded, whole image": (lambda: L.AveragePooling2D((8, 7), (8, 7), "same"), IMAGE),
    "1-d": (lambda: L.AveragePooling1D(4), SIGNAL),
    "1-d padded": (lambda: L.AveragePooling1D(5, 1, "same"), SIGNAL),
    "1-d whole": (lambda: L.AveragePooling1D(13), SIGNAL),
}


def sparse(shape, count=24, seed=0):
    """Mostly zeros, so that averages are much smaller than what they are of."""
    random = np.random.default_rng(seed)
    return (random.exponential(1.0, (count, *shape)) * (random.random((count, *shape)) < 0.05)).astype("float32")


def averaging(make, shape):
    """A calibrated model of one average, and its float original."""
    x = keras.Input(shape, name="x")
    model = keras.Model(x, make()(x))
    quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, sparse(shape), verbose=0)
    return model, quantized


@pytest.mark.parametrize("name", AVERAGES)
def test_the_result_is_the_exact_average_rounded_once_to_its_own_range(name, tmp_path):
    make, shape = AVERAGES[name]
    model, quantized = averaging(make, shape)
    graph = klb.deploy.lower(quantized)
    source, target = (graph.tensors[end[0]] for end in (graph.inputs, graph.outputs))
    assert target.range.scale < source.range.scale
    codes = trace(graph, sparse(shape, seed=1))
    exact = model((codes["x"].astype("float32") - source.zero_point) * source.range.scale).numpy()
    steps = exact / target.range.scale + target.zero_point
    # LiteRT's convolution rounds the product first, by less than its factor in steps, then to a step.
    kernels = [graph.tensors[node.inputs[1]] for node in graph.nodes if node.op == "depthwise_conv2d"]
    first = max([source.range.scale * np.max(kernel.scale) / target.range.scale for kernel in kernels], default=0.0)
    assert first < 0.05
    assert np.abs(np.clip(steps, -128, 127) - codes[target.name]).max() <= 0.5 + first + 1e-3
    klb.export_litert(quantized, tmp_path / "m.tflite")
    assert not delegate_coverage(tmp_path / "m.tflite").left  # AVERAGE_POOL_2D with padding is none of XNNPACK's
    assert klb.verify(quantized, tmp_path / "m.tflite", sparse(shape, seed=2)).ok


def test_the_whole_image_is_litert_s_mean():
    for name in ("global", "global kept", "global 1-d", "whole image", "padded, whole image", "1-d whole"):
        ops = {node.op for node in klb.deploy.lower(averaging(*AVERAGES[name])[1]).nodes}
        # Windows that reach over the border at both ends still hold the whole image.
        assert ops <= {"mean", "reshape"}, (name, ops)


@settings(derandomize=True, database=None, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.sampled_from(["same", "valid"]))
def test_strips_hold_the_windows_in_their_order(size, window, stride, padding):
    if padding == "valid" and window > size:
        return
    image = np.arange(1.0, size + 1)[None, :, None]
    expected = keras.ops.average_pool(image, window, stride, padding)
    found = [
        image[0, strip.start + i * stride : strip.start + i * stride + strip.pixels, 0].mean()
        for strip in strips(size, window, stride, padding)
        for i in range(strip.number)
    ]
    np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-6)


def test_windows_of_one_pixel_move_codes_and_get_no_range():
    _, quantized = averaging(lambda: L.AveragePooling2D(1, 2), IMAGE)
    graph = klb.deploy.lower(quantized)
    assert [node.op for node in graph.nodes] == ["average_pool2d"]
    assert graph.tensors[graph.outputs[0]].range == graph.tensors["x"].range


def test_many_kinds_of_padded_windows_run_in_float_and_say_so():
    _, quantized = averaging(lambda: L.AveragePooling2D(9, 1, "same", name="wide"), IMAGE)
    [found] = klb.deploy.lower(quantized).metadata["float_fallbacks"]
    assert found["path"] == "wide"
    assert "up to 81 kinds, 25 at most in integers" in found["reason"]


# ---------------------------------------------------------------------------- models without a range behind an average


def by_hand(ranged, make=L.GlobalAveragePooling2D):
    """An average between two layers, with a range of its own or without."""
    x = keras.Input(IMAGE, name="x")
    value = make(name="average")(klb.layers.QuantActivation(name="range")(x))
    if ranged:
        value = klb.layers.QuantActivation(name="own")(value)
    value = klb.layers.QuantDense(2, output_quantizer="activation", name="dense")(value)
    model = keras.Model(x, value)
    klb.calibrate(model, sparse(IMAGE), verbose=0)
    return model


@pytest.mark.parametrize("make", [L.GlobalAveragePooling2D, lambda name: L.AveragePooling2D(2, name=name)])
def test_without_a_range_it_keeps_that_of_its_input_and_a_warning_says_so(make, tmp_path):
    model = by_hand(False, make)
    with pytest.warns(
        UserWarning, match=r"Only the file rounds.*'average' \(read by 'dense'\).*QuantActivation behind"
    ):
        graph = klb.deploy.lower(model)
    assert graph.tensors["average"].range == graph.tensors["x"].range
    with pytest.warns(UserWarning, match="Only the file rounds"):
        klb.export_litert(model, tmp_path / "m.tflite")


def test_with_a_range_nothing_is_warned_of():
    graph = klb.deploy.lower(by_hand(True))
    assert graph.tensors["average"].range.scale < graph.tensors["x"].range.scale


def test_an_average_in_its_inputs_range_is_an_average_pool():
    x = keras.Input(IMAGE, name="x")
    fixed = klb.quantizers.ActivationRange(minimum=-1.0, maximum=1.0)
    value = L.AveragePooling2D(2)(klb.layers.QuantActivation(quantizer=fixed)(x))
    model = keras.Model(x, klb.layers.QuantActivation(quantizer=fixed)(value))
    graph = klb.deploy.lower(model)
    assert [node.op for node in graph.nodes] == ["average_pool2d"]
    assert graph.tensors[graph.outputs[0]].range == Range(*graph.tensors["x"].range)
