"""quantized_weights and dequantize: the integers, and the way back to stock Keras."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantConv2D, QuantDense, QuantizedLayer, QuantizerHost
from keras_lowbit.quantizers import Binary, Stochastic, Ternary, Uniform
from keras_lowbit.recipes import Recipe, Rule
from tests.support import model_zoo
from tests.support.model_zoo import MODELS, inputs_of, randomize, run

L = keras.layers
each_model = pytest.mark.parametrize("name", MODELS)
each_quantizer = pytest.mark.parametrize(
    "quantizer",
    [
        Binary(),
        Ternary(),
        Ternary(calibration="mse", granularity="tensor"),
        Uniform(8),
        Uniform(2),
        Uniform(4, granularity="tensor", calibration="mse"),
        Stochastic(Ternary(), probability="softmax"),
    ],
    ids=repr,
)


def quantized(name, recipe="int8", seed=3):
    model = randomize(MODELS[name](), seed)
    copy, _ = klb.quantize_model(model, recipe)
    if klb.recipes.get(recipe).activations is not None:
        klb.calibrate(copy, inputs_of(copy), verbose=0)
    return copy


def weights_only(quantizer):
    return Recipe("weights", (Rule(quantizer),))


@each_quantizer
@pytest.mark.parametrize("name", ["residual", "other_kernels", "separable"])
def test_real_is_what_the_forward_pass_multiplies_with_bit_for_bit(name, quantizer):
    copy = quantized(name, weights_only(quantizer))
    found = klb.quantized_weights(copy)
    for path, weights in found.items():
        layer = copy.get_layer(path)
        used = keras.ops.convert_to_numpy(layer.quantized_kernel(training=False))
        np.testing.assert_array_equal(weights.real, used)
        np.testing.assert_array_equal(weights.scale * weights.codes, used)
        assert weights.codes.dtype == np.int8
        assert weights.scale.dtype == np.float32
        assert weights.codes.shape == tuple(layer.kernel.shape)
        assert np.broadcast_shapes(weights.scale.shape, weights.codes.shape) == weights.codes.shape
        limit = {1: 1, 2: 1}.get(quantizer.bits, 2 ** (quantizer.bits - 1) - 1)
        assert np.abs(weights.codes).max() <= limit


def test_an_identity_input_reads_the_kernel_off_a_dense_layer():
    row = keras.Input((6,))
    copy, _ = klb.quantize_model(
        keras.Model(row, L.Dense(4, use_bias=False, name="head")(row)), weights_only("ternary")
    )
    (got,) = run(copy, np.eye(6, dtype="float32"))
    np.testing.assert_array_equal(got, klb.quantized_weights(copy)["head"].real)


def test_keys_are_paths_in_running_order():
    assert list(klb.quantized_weights(quantized("nested_twice"))) == ["middle/inner/conv", "conv"]
    assert list(klb.quantized_weights(quantized("separable"))) == ["sep_depthwise", "sep"]


@each_quantizer
def test_a_filter_of_zeros_has_codes_that_stand_for_zeros(quantizer):
    model = randomize(model_zoo.residual())
    kernel = model.get_layer("stem").kernel.numpy()
    kernel[..., 2] = 0.0
    model.get_layer("stem").kernel.assign(kernel)
    copy, _ = klb.quantize_model(model, weights_only(quantizer))
    weights = klb.quantized_weights(copy)["stem"]
    assert np.isfinite(weights.scale).all()
    if isinstance(quantizer, Uniform) or (isinstance(quantizer, Ternary) and quantizer.granularity == "channel"):
        np.testing.assert_array_equal(weights.codes[..., 2], 0)
    np.testing.assert_array_equal(weights.real[..., 2], 0.0)


def test_a_model_without_quantized_layers_is_refused():
    with pytest.raises(ValueError, match=r"'residual' has no quantized layer. Quantize it first"):
        klb.quantized_weights(model_zoo.residual())


class Block(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = QuantDense(4, kernel_quantizer="ternary", name="conv")
        self.same = QuantDense(4, kernel_quantizer="binary", name="conv")

    def call(self, inputs):
        return self.same(self.conv(inputs))


def test_layers_inside_custom_layers_are_found():
    row = keras.Input((4,))
    model = keras.Model(row, QuantDense(2, kernel_quantizer="binary", name="head")(Block(name="block")(row)))
    assert list(klb.quantized_weights(model)) == ["block/conv", "block/conv_1", "head"]


@each_model
def test_dequantized_models_are_stock_keras_with_the_quantized_values(name):
    copy = quantized(name)
    stock = klb.dequantize(copy)
    for layer in stock._flatten_layers():
        assert type(layer).__module__.startswith("keras.")
        assert not isinstance(layer, (QuantizedLayer, QuantizerHost))
    assert stock.name == copy.name
    floating, _ = klb.quantize_model(copy, "int8"), None
    # The same float operations on the same values, once the ranges are out of the way.
    for host in (host for _, host in klb.layers.hosts(floating[0]) if not host.filter_axes):
        host.watch = _ignore
    inputs = inputs_of(copy)
    for want, got in zip(run(floating[0], inputs), run(stock, inputs), strict=True):
        np.testing.assert_array_equal(got, want)


def _ignore(real):
    """A host with a watch lets its values through."""


@pytest.mark.parametrize("name", ["residual", "nested_twice", "other_kernels"])
def test_dequantized_kernels_are_the_reals_of_the_codes(name):
    copy = quantized(name, "twn")
    stock = klb.dequantize(copy)
    for path, weights in klb.quantized_weights(copy).items():
        layer = stock
        for part in path.split("/"):
            layer = layer.get_layer(part)
        np.testing.assert_array_equal(layer.kernel, weights.real)
        source = copy
        for part in path.split("/"):
            source = source.get_layer(part)
        np.testing.assert_array_equal(layer.bias, source.bias)


def test_dequantized_biases_are_the_quantized_ones():
    row = keras.Input((6,))
    model = keras.Model(row, QuantDense(4, kernel_quantizer="ternary", bias_quantizer=Uniform(4), name="head")(row))
    layer = randomize(model).get_layer("head")
    stock = klb.dequantize(model).get_layer("head")
    np.testing.assert_array_equal(stock.bias, layer.bias_host.encode(layer.bias).real)
    assert not np.array_equal(stock.bias, layer.bias)


def test_dequantizing_leaves_the_quantized_model_as_it_was():
    copy = quantized("dense_chain", "sq-twn")
    before = [variable.numpy().tolist() for variable in copy.variables]
    nodes = [len(operation._inbound_nodes) for operation in copy.operations]
    config = copy.get_config()
    stock = klb.dequantize(copy)
    stock.set_weights([weight + 1 for weight in stock.get_weights()])
    assert [variable.numpy().tolist() for variable in copy.variables] == before
    assert [len(operation._inbound_nodes) for operation in copy.operations] == nodes
    assert copy.get_config() == config


@each_model
def test_dequantized_models_save_load_and_quantize_to_the_same_codes(name, tmp_path):
    copy = quantized(name, "int8")
    klb.dequantize(copy).save(tmp_path / "stock.keras")
    stock = keras.saving.load_model(tmp_path / "stock.keras")
    codes = klb.quantized_weights(copy)
    if name == "separable":  # two layers now
        assert {type(layer).__name__ for layer in stock.layers} == {"InputLayer", "DepthwiseConv2D", "Conv2D"}
    again = klb.quantized_weights(klb.quantize_model(stock, "int8")[0])
    assert list(again) == list(codes)
    for path, weights in codes.items():
        # Quantizing on-grid values again finds the same grid, to a rounding of the scale.
        np.testing.assert_array_equal(again[path].codes, weights.codes)
        np.testing.assert_allclose(again[path].scale, weights.scale, rtol=1e-6)


def test_activation_of_a_range_layer_becomes_a_stock_activation():
    stock = klb.dequantize(quantized("gates"))
    kinds = [type(layer).__name__ for layer in stock.layers]
    assert kinds.count("Activation") == 4
    assert kinds.count("Multiply") == 4
    assert not any(layer.name.endswith("_range") for layer in stock.layers)


def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(TypeError, match="is not a Functional or Sequential Keras 3 model"):
        klb.dequantize(Subclassed())


def test_half_precision_uses_the_reals_cast_once():
    image = keras.Input((6, 6, 3))
    layer = QuantConv2D(4, 3, kernel_quantizer="ternary", name="conv", dtype="mixed_float16")
    model = randomize(keras.Model(image, layer(image)))
    used = keras.ops.convert_to_numpy(layer.quantized_kernel(training=False))
    assert used.dtype == np.float16
    np.testing.assert_array_equal(klb.quantized_weights(model)["conv"].real.astype(np.float16), used)
    stock = klb.dequantize(model).get_layer("conv")
    assert stock.dtype_policy.name == "mixed_float16"
