"""Deep networks: Python's limit of recursion stops nothing here that it does not stop in the float network.

The limit is set low, so that a network of some hundred calls is a deep one. The float network fits; the quantized one, with its
ranges, has more calls than Python lets stand inside one another.
"""

import sys

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.lowering.float_parts import float_calls
from keras_lowbit.distill import logits_model
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.depth import build_model
from tests.support.recursion import frames_left

L = keras.layers
FRAMES, BLOCKS, CHAIN = 130, 22, 160
RNG = np.random.default_rng(12)


def residual():
    """Residual blocks, Keras' way through them the long one; every fourteenth has weights."""
    start = x = keras.Input((4, 4, 8))
    for n in range(BLOCKS):
        y = x
        if n % 14 == 0:
            y = L.BatchNormalization(name=f"norm{n}")(L.Conv2D(8, 1, name=f"conv{n}")(y))
        x = L.Average(name=f"average{n}")([L.ReLU(name=f"relu{n}")(y), x])
    return keras.Model(start, L.Dense(3, "softmax", name="classes")(L.Flatten()(x)))


@pytest.mark.slow(30)
def test_a_deep_network_goes_all_the_way(tmp_path):
    images = RNG.normal(size=(8, 4, 4, 8)).astype("float32")
    file, saved = tmp_path / "deep.tflite", tmp_path / "deep.keras"
    with frames_left(FRAMES):
        model = klb.equalize(klb.fold_batch_norms(residual()))
        quantized, _ = klb.quantize_model(model, "w4")
        assert max(quantized._nodes_by_depth) > FRAMES
        klb.calibrate(quantized, images, verbose=0)
        klb.correct_biases(quantized, model, images, check=False, verbose=0)
        klb.reconstruct(quantized, model, images, iterations=2, check=False, verbose=0)
        config = klb.DistillConfig(variables=[quantized.get_layer("classes").bias])
        klb.distill(quantized, model, images, config, epochs=1, check=False, verbose=0)
        klb.export_litert(quantized, file, verbose=0)
        assert klb.verify(quantized, file, images, verbose=0).ok
        klb.deploy.summary(quantized)
        klb.dequantize(quantized)
        quantized.save(saved)
        with pytest.raises(RecursionError):  # docs/limits.md says so, and what to do
            keras.saving.load_model(saved)
        sys.setrecursionlimit(10_000)
        np.testing.assert_array_equal(keras.saving.load_model(saved)(images), quantized(images))


def chained(tensor, make):
    """The end of a chain of layers."""
    for n in range(CHAIN):
        tensor = make(name=f"chain{n}")(tensor)
    return tensor


def turned(name):
    return L.Permute((2, 1, 3), name=name)


def conv(activation=None):
    return L.Conv2D(8, 1, activation=activation)


# Where a chain stands, and what is asked of it there.
CHAINS = {
    "moved before anything": (lambda x: conv()(chained(x, turned)), {}),
    "scaled before anything": (lambda x: conv()(chained(x, lambda name: L.Rescaling(1.01, name=name))), {}),
    "of 4 bits, moved": (lambda x: conv()(chained(conv("relu")(conv()(x)), turned)), {"recipe": "lsq-4"}),
    "moved at the end": (lambda x: chained(L.Softmax()(conv()(x)), turned), {}),
    "moved in float": (lambda x: conv()(chained(conv()(x), turned)), {"skip": "chain.*"}),
    "sums of an input": (lambda x: chained(x, lambda name: lambda tensor: L.Average(name=name)([tensor, tensor])), {}),
}


@pytest.mark.parametrize(("build", "options"), CHAINS.values(), ids=CHAINS)
def test_what_is_asked_of_a_chain_is_asked_without_recursion(build, options):
    start = keras.Input((4, 4, 8))
    model = build_model(start, build(start))
    with frames_left(FRAMES):
        quantized, _ = klb.quantize_model(model, **{"recipe": "int8"} | options)
    assert sum(layer.name in {f"chain{n}" for n in range(CHAIN)} for layer in quantized.layers) == CHAIN


def test_logits_behind_a_chain():
    start = keras.Input((4,))
    model = build_model(start, chained(L.Dense(3, "softmax", bias_initializer="ones")(start), L.Identity))
    with frames_left(FRAMES):
        logits = logits_model(model)
        np.testing.assert_array_equal(logits(np.zeros((1, 4))), np.ones((1, 3)))


@pytest.mark.parametrize("ends", [True, False])
def test_a_range_behind_a_chain(ends):
    start = keras.Input((4,))
    end = chained(
        L.Activation("gelu")(klb.layers.QuantActivation()(start)),
        lambda name: lambda tensor: L.Concatenate(name=name)([tensor]),
    )
    model = build_model(start, klb.layers.QuantActivation()(end) if ends else end)
    with frames_left(FRAMES):
        found = float_calls(calls_of(model))
    assert any(call.kind == "Activation" for call in found) is not ends
