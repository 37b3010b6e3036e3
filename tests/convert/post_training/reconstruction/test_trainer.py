"""The training of a block: gradients of logits and biases against finite differences in NumPy float64."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.convert.post_training.reconstruction.blocks import Block, find_blocks
from keras_lowbit.convert.post_training.reconstruction.neighbours import neighbours_of
from keras_lowbit.convert.post_training.reconstruction.trainer import BlockTrainer, Settings, train
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantDense

LAMBDA, SAMPLES = 0.3, 7
RNG = np.random.default_rng(4)
INPUTS = RNG.normal(1.0, 1.0, (SAMPLES, 5)).astype("float32")
TARGET = RNG.normal(0.0, 1.0, (SAMPLES, 3)).astype("float32")


def trainer_of(iterations, **layer_options):
    """One dense layer of 3-bit weights, its logits and shifts moved off their start."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    layer = QuantDense(3, kernel_quantizer=klb.quantizers.Uniform(3), name="dense", **layer_options)
    model = keras.Model(inputs, layer(inputs))
    if layer.bias is not None:
        layer.bias.assign([0.3, -0.2, 0.1])
    (block,) = find_blocks(calls_of(model), lambda call: call.path == "dense")
    found = neighbours_of(layer)
    settings = Settings(iterations, 0.05, 0.0, LAMBDA, SAMPLES, 0)
    trainer = BlockTrainer(block, {"dense": layer}, {"dense": found}, settings)
    trainer.target_energy.assign(np.square(TARGET).sum(-1).mean())
    return trainer, layer, found


def loss(v, d, layer, found, units, beta, hard):
    """The formula of `reconstruct`, float64."""
    h = np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)
    kernel = found.low + (h >= 0.5 if hard else h) * (found.high.astype(np.float64) - found.low)
    y = INPUTS.astype(np.float64) @ kernel + np.array([0.3, -0.2, 0.1], np.float32).astype(np.float64) + units * d
    t = TARGET.astype(np.float64)
    error = 3 * np.square(y - t).sum(-1).mean() / np.square(t).sum(-1).mean()
    return error + (not hard) * LAMBDA * (1 - np.abs(2 * h[found.free] - 1) ** beta).sum()


def slopes(function, at, step=1e-5):
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


@pytest.mark.parametrize(("iterations", "hard"), [(2, False), (1, True)])
def test_gradients_of_biases_and_logits(iterations, hard):
    """A step of plain gradient descent at rate 1 shows them. iterations: the first is halfway, or in the last part."""
    trainer, layer, found = trainer_of(iterations)
    trainer.measure_units([INPUTS])
    trainer.shifts[0].assign([0.5, -1.0, 2.0])
    before = [keras.ops.convert_to_numpy(w).astype(np.float64) for w in (trainer.logits[0], trainer.shifts[0])]
    trainer.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    trainer.train_on_batch([INPUTS, INPUTS], TARGET)
    after = [keras.ops.convert_to_numpy(w) for w in (trainer.logits[0], trainer.shifts[0])]
    units = keras.ops.convert_to_numpy(trainer.units[0]).astype(np.float64)
    beta = 20 - 18 * (1 / iterations - 0.2) / 0.8
    rest = (layer, found, units, beta, hard)
    wanted = slopes(lambda d: loss(before[0], d, *rest), before[1])
    np.testing.assert_allclose(before[1] - after[1], wanted, rtol=2e-4, atol=1e-5)
    assert np.abs(wanted).min() > 1e-3
    if hard:
        np.testing.assert_array_equal(before[0], after[0])
    else:
        wanted = slopes(lambda v: loss(v, before[1], *rest), before[0])
        np.testing.assert_allclose((before[0] - after[0])[found.free], wanted[found.free], rtol=1e-3, atol=1e-4)


def test_units_are_the_rms_of_what_nearest_rounding_does_to_each_sum():
    trainer, layer, found = trainer_of(1)
    trainer.measure_units([INPUTS])
    nearest = np.where(found.nearest_is_high, found.high, found.low).astype(np.float64)
    noise = INPUTS.astype(np.float64) @ (nearest - keras.ops.convert_to_numpy(layer.kernel))
    np.testing.assert_allclose(trainer.units[0], np.sqrt(np.square(noise).mean(0)), rtol=1e-4)


def test_biases_alone_make_up_for_a_shift():
    """The target is the soft block's own output, moved: with nothing to round, biases find the shift."""
    trainer, layer, found = trainer_of(1500)
    shift = np.array([0.05, -0.1, 0.0])
    target = (INPUTS @ found.weights + np.array([0.3, -0.2, 0.1]) + shift).astype("float32")
    train(trainer, [INPUTS, INPUTS], target, np.random.default_rng(0))
    (learnt,) = trainer.learnt()
    kernel = np.where(learnt.up, found.high, found.low)
    residual = INPUTS @ kernel + learnt.bias - target
    np.testing.assert_allclose(residual.mean(0), 0, atol=0.01)  # least squares has none
    np.testing.assert_array_equal(layer.bias, np.array([0.3, -0.2, 0.1], np.float32))  # the layer itself is not touched


@pytest.mark.parametrize("options", [{"use_bias": False}, {"bias_quantizer": "uniform"}])
def test_layers_whose_bias_does_not_train(options):
    trainer, _, _ = trainer_of(2, **options)
    train(trainer, [INPUTS, INPUTS], TARGET, np.random.default_rng(0))
    assert [found.bias for found in trainer.learnt()] == [None]
    assert trainer.trainable_variables == trainer.logits


def test_choices_stand_still_while_biases_alone_learn(monkeypatch):
    trainer, _, _ = trainer_of(40)
    at_last, centre = [], trainer.centre
    monkeypatch.setattr(
        trainer, "centre", lambda sets: (at_last.append(to_numpy(trainer.logits[0]).copy()), centre(sets))
    )
    train(trainer, [INPUTS, INPUTS], TARGET, np.random.default_rng(0))
    (before,) = at_last
    np.testing.assert_array_equal(before, to_numpy(trainer.logits[0]))  # Adam's momentum is gone too
    assert np.abs(to_numpy(trainer.shifts[0])).max() > 0


def test_choices_shift_no_mean_once_biases_are_centred():
    """Two layers, each with the sums of the float one on the mean, the second behind the first as it then is."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    options = {"kernel_quantizer": klb.quantizers.Uniform(3)}
    layers = [QuantDense(4, activation="relu", name="a", **options), QuantDense(3, name="b", **options)]
    model = keras.Model(inputs, layers[1](layers[0](inputs)))
    biases = [RNG.normal(size=layer.units).astype("float32") for layer in layers]
    for layer, bias in zip(layers, biases, strict=True):
        layer.bias.assign(bias)
    neighbours = {layer.name: neighbours_of(layer) for layer in layers}
    named, calls = {layer.name: layer for layer in layers}, calls_of(model)
    block = Block(calls.calls, calls.inputs, calls.outputs[0], ("a", "b"))
    trainer = BlockTrainer(block, named, neighbours, Settings(0, 0.05, 0.0, LAMBDA, SAMPLES, 0))
    trainer.measure_units([INPUTS])
    codes = INPUTS + RNG.normal(0.1, 0.1, INPUTS.shape).astype("float32")
    trainer.centre([[codes[:3], INPUTS[:3]], [codes[3:6], INPUTS[3:6]]])
    real, seen = INPUTS[:6].astype(float), codes[:6].astype(float)
    for found, learnt, start in zip(neighbours.values(), trainer.learnt(), biases, strict=True):
        real = real @ found.weights.astype(float) + start
        seen = seen @ np.where(learnt.up, found.high, found.low).astype(float) + learnt.bias
        np.testing.assert_allclose(seen.mean(0), real.mean(0), rtol=1e-4, atol=1e-5)
        real, seen = np.maximum(real, 0), np.maximum(seen, 0)
    for layer, bias in zip(layers, biases, strict=True):
        np.testing.assert_array_equal(layer.bias, bias)  # the layers themselves are not touched
