"""Weights of channels: squared gradients of the logits, and the error that they weigh."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_lowbit as klb
from keras_lowbit.convert.post_training.reconstruction.importance import channel_weights
from keras_lowbit.convert.post_training.reconstruction.trainer import train
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.variables import to_numpy
from tests.convert.post_training.reconstruction.test_trainer import INPUTS, TARGET, trainer_of

SLOPES = np.array([[2.0], [0.0], [-0.5]], np.float32)
IMAGES = np.random.default_rng(2).normal(size=(6, 4, 4, 2)).astype("float32")


def network(activation=None, logits=1):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 3, name="features")(inputs)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(logits, use_bias=False, name="logits")(x)
    if activation:
        x = layers.Activation(activation, name="end")(x)
    return keras.Model(inputs, x)


def weights_of(model, samples=IMAGES, seed=0):
    graph = calls_of(model)
    (key,) = next(call.outputs for call in graph.calls if call.path == "features")
    return channel_weights(graph, [key], [samples], seed).get(key)


def test_of_a_linear_end_they_are_its_squared_weights():
    model = network()
    model.get_layer("logits").kernel.assign(SLOPES)
    wanted = np.square(SLOPES[:, 0]) / np.square(SLOPES).mean()
    np.testing.assert_allclose(weights_of(model), wanted, rtol=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_at_the_end_are_left_out(activation):
    """They would flatten what they saturate."""
    np.testing.assert_allclose(weights_of(network(activation, logits=4)), weights_of(network(logits=4)), rtol=1e-5)


def test_of_several_logits_they_are_the_sum_of_squares_in_the_mean():
    model = network(logits=4)
    kernel = to_numpy(model.get_layer("logits").kernel).astype(np.float64)
    wanted = np.square(kernel).sum(1) / np.square(kernel).sum(1).mean()
    found = weights_of(model, np.repeat(IMAGES, 100, axis=0))
    np.testing.assert_allclose(found, wanted, rtol=0.15)
    np.testing.assert_array_equal(found, weights_of(model, np.repeat(IMAGES, 100, axis=0)))


def test_without_effect_or_shape_there_are_none():
    model = network()
    model.get_layer("logits").kernel.assign(np.zeros_like(SLOPES))
    assert weights_of(model) is None
    inputs = keras.Input((None, None, 2))
    x = layers.Conv2D(3, 3, name="features")(inputs)
    assert weights_of(keras.Model(inputs, layers.GlobalAveragePooling2D()(x))) is None


def test_the_error_and_the_energy_it_is_relative_to_are_weighted_by_channel():
    trainer, _, _ = trainer_of(1)
    trainer.channel_weights.assign([1.0, 0.0, 2.0])
    train(trainer, [INPUTS, INPUTS], TARGET, np.random.default_rng(0))
    energy = (np.square(TARGET.astype(np.float64)) @ np.array([1.0, 0.0, 2.0])).mean()
    assert float(to_numpy(trainer.target_energy)) == pytest.approx(energy, rel=1e-5)
    losses = [
        to_numpy(trainer.compute_loss(y=TARGET, y_pred=TARGET + move)) for move in ([0, 0, 0], [0, 5, 0], [0, 5, 1])
    ]
    assert losses[0] == losses[1]
    assert losses[2] - losses[0] == pytest.approx(3 * 2 / energy, rel=1e-3)


def test_reconstruct_takes_them():
    model, found = network(logits=4), []
    for weighted in (False, True):
        quantized, _ = klb.quantize_model(model, klb.recipes.w4(3, first=None, last=None))
        klb.calibrate(quantized, IMAGES, verbose=0)
        options = {"iterations": 30, "check": False, "verbose": 0, "gradient_weights": weighted}
        klb.reconstruct(quantized, model, IMAGES, **options)
        found.append(np.concatenate([to_numpy(weight).ravel() for weight in quantized.trainable_weights]))
    assert np.any(found[0] != found[1])
    with pytest.raises(TypeError, match="gradient_weights"):
        klb.reconstruct(quantized, model, IMAGES, gradient_weights=1, verbose=0)
