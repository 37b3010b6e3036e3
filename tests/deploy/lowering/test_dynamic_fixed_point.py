"""Clustered weights and power-of-two activations in the integer graph and in the file: the codes themselves, no more."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.graph import Range
from keras_lowbit.quantizers import Clustered, DynamicFixedPoint, Uniform
from tests.support.lowering_zoo import case, enliven, samples

kl = keras.layers

MODELS = {
    "image": (
        (11, 10, 6),
        lambda: kl.Conv2D(8, 3, padding="same", name="ragged"),
        lambda: kl.ReLU(),
        lambda: kl.Conv2D(8, 3, groups=2, name="grouped"),
        lambda: kl.Conv2D(9, 3, dilation_rate=2, activation="relu6", name="dilated"),
        lambda: kl.DepthwiseConv2D(2, name="deep"),
        lambda: kl.Conv2DTranspose(5, 2, strides=2, name="up"),
        lambda: kl.GlobalAveragePooling2D(),
        lambda: kl.Dense(7, name="head"),
    ),
    "signal": ((13, 6), lambda: kl.Conv1D(7, 3, padding="causal", name="signal"), lambda: kl.Conv1D(4, 1, name="next")),
}
CLUSTERED = {
    "ternary": Clustered(),
    "optimal n64": Clustered(cluster_size=64, calibration="mse"),
    "one exponent": Clustered(granularity="tensor"),
    "4-bit": Clustered(Uniform(4)),
    "3-bit single weights": Clustered(Uniform(3), groups="weights"),
}


def converted(name, quantizer):
    shape, *stack = MODELS[name]
    model = case(*stack, shape=shape).make()
    enliven(model)
    rules = (klb.recipes.Rule(DynamicFixedPoint(8), kinds=("depthwise",)), klb.recipes.Rule(quantizer))
    quantized, _ = klb.quantize_model(model, klb.recipes.Recipe("test", rules, DynamicFixedPoint(8)))
    data = samples(quantized, count=8)[0]
    klb.calibrate(quantized, data, verbose=0)
    return quantized, data


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantizer", CLUSTERED.values(), ids=CLUSTERED)
def test_the_file_holds_the_codes_and_powers_of_two_and_verifies(name, quantizer, tmp_path):
    model, data = converted(name, quantizer)
    graph = klb.deploy.lower(model)
    for path, weights in klb.quantized_weights(model).items():
        layer = model.get_layer(path)
        kernel = stored_kernel(graph, path)
        scale = np.broadcast_to(weights.scale, per_channel(weights.codes, layer.filter_axes)).ravel()
        reals = np.moveaxis(
            weights.codes, [axis % weights.codes.ndim for axis in layer.filter_axes], range(len(layer.filter_axes))
        )
        assert sorted(np.abs(kernel.data[kernel.data != 0])) == sorted(np.abs(reals[reals != 0]))
        used = np.abs(reals).reshape(scale.size, -1).max(1) > 0  # a filter of zeros may get any scale
        np.testing.assert_array_equal(kernel.scale[used], scale[used])
        assert is_power_of_two(kernel.scale[used])
    for tensor in graph.tensors.values():
        if tensor.dtype == "int8" and not tensor.is_constant:
            assert is_power_of_two(tensor.scale)
            assert tensor.zero_point in (0, -128)
    klb.export_litert(model, tmp_path / "m.tflite")
    found = klb.verify(model, tmp_path / "m.tflite", data)
    assert found.ok
    assert found.reference_equal
    assert all(row.codes_equal for row in found.layers if row.codes_equal is not None)


def stored_kernel(graph, path):
    """The constant int8 tensor that the layer's node reads."""
    for node in graph.nodes:
        if node.name == path or node.name.startswith(f"{path}/conv"):
            constants = [graph.tensors[name] for name in node.inputs if graph.tensors[name].is_constant]
            kernels = [tensor for tensor in constants if tensor.dtype == "int8"]
            if kernels:
                return kernels[0]
    raise AssertionError(f"no kernel of {path}")


def per_channel(codes, axes):
    kept = {axis % codes.ndim for axis in axes}
    return [size if axis in kept else 1 for axis, size in enumerate(codes.shape)]


def is_power_of_two(values):
    return bool(np.all(np.frexp(values)[0] == 0.5))


def test_a_batch_norm_goes_into_scales_and_signs_and_leaves_the_codes():
    model = case(
        lambda: kl.Conv2D(8, 3, use_bias=False, name="conv"),
        lambda: kl.BatchNormalization(name="norm"),
        shape=(8, 8, 6),
    ).make()
    norm = model.get_layer("norm")
    gamma = np.linspace(-1.4, 2, 8).astype("float32")
    norm.gamma.assign(gamma)
    quantized, _ = klb.quantize_model(model, klb.recipes.dfp(2, 4, first=None, last=None))
    data = samples(quantized, count=4)[0]
    klb.calibrate(quantized, data, verbose=0)
    kernel = stored_kernel(klb.deploy.lower(quantized), "conv")
    weights = klb.quantized_weights(quantized)["conv"]
    np.testing.assert_array_equal(kernel.data, weights.codes * np.sign(gamma).astype(int))
    factor = np.abs(gamma) / np.sqrt(1 + norm.epsilon)
    np.testing.assert_allclose(kernel.scale, weights.scale.ravel() * factor, rtol=1e-6)


def test_a_range_of_fixed_ends_is_a_power_of_two_as_well():
    from keras_lowbit.deploy.lowering.ranges import range_of
    from keras_lowbit.layers import QuantActivation

    layer = QuantActivation(None, DynamicFixedPoint(8, minimum=0.0, maximum=6.0))
    layer.build((None, 3))
    assert range_of(layer.output_host, "x") == Range(2.0**-5, -128)


def test_the_snippet_of_the_readme(tmp_path):
    keras.utils.set_random_seed(0)
    model = case(
        lambda: kl.Conv2D(8, 3, padding="same", use_bias=False),
        lambda: kl.BatchNormalization(),
        lambda: kl.ReLU(),
        lambda: kl.Conv2D(16, 3, strides=2, use_bias=False),
        lambda: kl.BatchNormalization(),
        lambda: kl.ReLU(6.0),
        lambda: kl.GlobalAveragePooling2D(),
        lambda: kl.Dense(4),
        shape=(12, 12, 3),
    ).make()
    images = samples(model, count=64)[0]
    path = tmp_path / "dfp4.tflite"
    quantized, report = klb.quantize_model(model, "dfp-4w8a-n4")
    klb.calibrate(quantized, images, batch_size=32)
    klb.reestimate_batch_norms(quantized, images, batch_size=32)
    klb.calibrate(quantized, images, batch_size=32)
    klb.export_litert(quantized, path)
    verified = klb.verify(quantized, path, images)
    assert verified.ok, verified
    assert report.outcomes("quantized")
    found = klb.summary(quantized)
    assert "% mult. removed" in str(found)
    assert found.multiplications_removed == 0.0  # 4-bit codes still multiply
    ternary, _ = klb.quantize_model(model, "dfp-2w8a-n4")
    rows = {row.path: row.multiplications_removed for row in klb.summary(ternary).layers if row.macs}
    assert list(rows.values()) == [0.0, pytest.approx(1 - 1 / 36), 0.0]
    assert klb.quantizers.Clustered(klb.quantizers.Ternary(), cluster_size=64, calibration="mse").cluster_size == 64
