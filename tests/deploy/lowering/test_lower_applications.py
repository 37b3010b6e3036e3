"""The seven `keras.applications` models, 96 px, random weights that keep the activations alive: lowered without a float
island, equal to LiteRT's reference kernels on every tensor, each layer within a step of Keras."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb

NAMES = "MobileNet MobileNetV2 MobileNetV3Small ResNet50 EfficientNetB0 DenseNet121 NASNetMobile".split()


def enliven(model, images):
    """Random batch norms (negative gammas too), and moving statistics of what really flows."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(-1, 2, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.5, layer.beta.shape))
            layer.momentum = 0.0
    model(images, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_application(name, tmp_path):
    keras.utils.set_random_seed(1)
    model = getattr(keras.applications, name)(input_shape=(96, 96, 3), weights=None, classes=10)
    images = np.random.default_rng(1).uniform(0, 255, (2, 96, 96, 3)).astype(np.float32)
    enliven(model, images)
    quantized, _ = klb.quantize_model(model, "int8" if name in ("MobileNetV2", "EfficientNetB0") else "twn")
    klb.calibrate(quantized, images, verbose=0)
    report = klb.export_litert(quantized, tmp_path / "m.tflite", weights="int2")
    assert report.float_fallbacks == ()
    parity = klb.verify(quantized, tmp_path / "m.tflite", images, layer_samples=2)
    print(parity.max_layer_steps, parity.exact_fraction, parity.delegate, parity.output_steps)
    assert parity.reference_equal is True, parity.reference
    assert parity.ok, "\n".join(str(row) for row in parity.layers if row.max_steps > 1 or row.codes_equal is False)
    fast = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "PAD", "MEAN"}
    assert not fast & set(parity.delegate.left_by_operator)
