"""Every model of keras.applications that the library promises to take, small, random weights: converted, lowered, equal.

The deepest are cut behind the first of each of their kinds of blocks, which then repeat, and end in a new classifier.
"""

import gc

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.quantizers import Stochastic, Ternary
from keras_lowbit.recipes import Recipe
from tests.support.model_zoo import run

SIDE = 64
MODELS = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "ResNet50": {},
    "EfficientNetB0": {},
    "DenseNet121": {},
    "NASNetMobile": {},
}
LAST = {"ResNet50": "conv4_block2_out", "EfficientNetB0": "block4b_add", "DenseNet121": "conv4_block2_concat"}
LAST["NASNetMobile"] = "normal_concat_5"  # behind a reduction
KERNELS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")


def build(name):
    make = getattr(keras.applications, name)
    model = make(input_shape=(SIDE, SIDE, 3), weights=None, classes=5, **MODELS[name])
    if name not in LAST:
        return model
    features = keras.layers.GlobalAveragePooling2D()(model.get_layer(LAST[name]).output)
    return keras.Model(model.input, keras.layers.Dense(5, "softmax")(features), name=model.name)


def enliven(model, images):
    """Random batch norms (negative gammas too), and moving statistics of what really flows."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(-1, 2, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.5, layer.beta.shape))
            layer.momentum = 0.0
    model(images, training=True)


@pytest.fixture(scope="module", params=MODELS)
def application(request):
    """(name, images, model, its conversion by "sq-twn"): made once for all tests of a network, and then freed."""
    keras.utils.set_random_seed(1)
    model = build(request.param)
    images = np.random.default_rng(1).uniform(0, 255, (2, SIDE, SIDE, 3)).astype(np.float32)
    enliven(model, images)
    yield request.param, images, model, klb.quantize_model(model, "sq-twn")
    keras.utils.clear_session()
    gc.collect()


@pytest.mark.slow
def test_every_promised_application_converts(application):
    _, _, model, (copy, report) = application
    rows = [row.path for row in report.layers]
    assert rows == sorted(set(rows), key=rows.index)
    assert set(rows) == {operation.name for operation in model.operations}
    assert report.outcomes("skipped") == []  # all of their layers have an integer form
    kernels = [layer for layer in model.layers if type(layer).__name__ in KERNELS]
    assert len(report.outcomes("quantized")) == len(kernels)
    pieces = sum(2 if type(layer).__name__ == "SeparableConv2D" else 1 for layer in kernels)
    quantized = [layer for layer in copy.layers if isinstance(layer, QuantizedLayer)]
    assert len(quantized) == pieces
    assert {layer.kernel_quantizer for layer in quantized} == {Stochastic(Ternary())}
    assert copy.count_params() >= model.count_params()
    assert copy.output_shape == model.output_shape
    assert str(report).count("\n") == len(rows) + 2


@pytest.mark.slow
def test_application(application, tmp_path):
    """Lowered without a float fallback, equal to LiteRT's reference kernels on every tensor, each layer within a step of
    Keras: ternary weights (SQ is all ternary at inference), and int8 in two networks.
    """
    name, images, model, (quantized, _) = application
    if name in ("MobileNetV2", "EfficientNetB0"):
        quantized, _ = klb.quantize_model(model, "int8")
    klb.calibrate(quantized, images, verbose=0)
    report = klb.export_litert(quantized, tmp_path / "m.tflite", weights="int2")
    assert report.float_fallbacks == ()
    parity = klb.verify(quantized, tmp_path / "m.tflite", images, layer_samples=2)
    print(parity.max_layer_steps, parity.exact_fraction, parity.delegate, parity.output_steps)
    assert parity.reference_equal is True, parity.reference
    assert parity.ok, "\n".join(str(row) for row in parity.layers if row.max_steps > 1 or row.codes_equal is False)
    fast = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "PAD", "MEAN"}
    # XNNPACK leaves to the built-in kernels what has INT4 weights beside dense layers, and nothing else of these.
    packed = {row.name for row in report.rows if row.op != "FULLY_CONNECTED" and row.weight_type == "int4"}
    assert {tensor for kind, tensor in parity.delegate.left if kind in fast} == packed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0"])
def test_an_application_with_nothing_quantized_computes_the_same_bits(name):
    model = build(name)
    images = np.random.default_rng(1).uniform(0, 255, (2, SIDE, SIDE, 3)).astype("float32")
    copy, _ = klb.quantize_model(model, Recipe("float", ()))
    np.testing.assert_array_equal(run(copy, images), run(model, images))
