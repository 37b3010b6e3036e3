"""Every model of keras.applications that the library promises to take, at the smallest size, with random weights."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.quantizers import Stochastic, Ternary
from keras_lowbit.recipes import Recipe
from tests.support.model_zoo import run

SIDE = 32  # what keras.applications allows at least
MODELS = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "ResNet50": {},
    "EfficientNetB0": {},
    "DenseNet121": {},
    "NASNetMobile": {},
}
KERNELS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")


def build(name):
    make = getattr(keras.applications, name)
    return make(input_shape=(SIDE, SIDE, 3), weights=None, classes=5, **MODELS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_promised_application_converts(name):
    model = build(name)
    copy, report = klb.quantize_model(model, "sq-twn")
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
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0"])
def test_an_application_with_nothing_quantized_computes_the_same_bits(name):
    model = build(name)
    images = np.random.default_rng(1).uniform(0, 255, (2, SIDE, SIDE, 3)).astype("float32")
    copy, _ = klb.quantize_model(model, Recipe("float", ()))
    np.testing.assert_array_equal(run(copy, images), run(model, images))
