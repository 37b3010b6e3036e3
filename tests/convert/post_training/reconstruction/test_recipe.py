"""The recipe w4: the lines of the issue as they are written, on a small network."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import keras_lowbit as klb
from keras_lowbit.layers.base import kernel_layers

LINES = """
recipe = klb.recipes.get("w4")                                            # print(recipe) shows each step
folded = klb.fold_batch_norms(model); quantized, report = klb.quantize_model(klb.equalize(folded, images[:64]), recipe)
klb.calibrate(quantized, images[:100]); klb.correct_biases(quantized, folded, images[:64])
print(klb.reconstruct(quantized, folded, images, batch_size=32, unit="block", seed=0))
klb.export_litert(quantized, "w4.tflite", weights="int4"); print(klb.verify(quantized, "w4.tflite", images))
table = klb.sensitivity(quantized, folded, images[:200]); print(table); table.plot("sensitivity.png")
recipe = klb.assign_bits(folded, images[:200], budget_kb=2000)
"""


def network():
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(16, 1, name="expand")(x)))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)))
    y = layers.BatchNormalization()(layers.Conv2D(8, 1, name="project")(y))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")  # what does not help so small a network is taken back, and said
def test_the_lines_of_the_issue_run_as_written(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(208, 1, 1, 3)) + 0.3 * rng.normal(size=(208, 8, 8, 3))).astype("float32")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(klb, "reconstruct", functools.partial(klb.reconstruct, iterations=20))
    names = {"klb": klb, "model": network(), "images": images}
    exec(compile(LINES, "the issue", "exec"), names)
    printed = capsys.readouterr().out
    assert "whole model: error" in printed
    assert (tmp_path / "w4.tflite").stat().st_size > 0
    assert (tmp_path / "sensitivity.png").stat().st_size > 0
    kernels = {layer.name: layer.kernel_quantizer.bits for layer in kernel_layers(names["quantized"])}
    assert kernels == {"stem": 8, "expand": 4, "depthwise": 4, "project": 4, "logits": 8}
    assert isinstance(names["recipe"], klb.recipes.Recipe)
