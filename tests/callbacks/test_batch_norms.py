"""ReestimateBatchNorms: when `fit` ends, batch norms hold the statistics of the quantized network, not of its history."""

import keras
import numpy as np
import pytest

from keras_lowbit import callbacks, convert
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDense
from keras_lowbit.quantizers import Incremental, PowerOfTwo, Stochastic, Ternary

kl = keras.layers
RNG = np.random.default_rng(41)
IMAGES = (1 + RNG.normal(size=(24, 6, 6, 2))).astype("float32")
LABELS = RNG.integers(0, 3, 24)
PORTIONS = (0.5, 0.75, 1.0)


def network(quantizer=None, optimizer=None):
    """A convolution with an activation range, a batch norm, dropout and a head."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6, 6, 2))
    kernel = {"kernel_quantizer": quantizer or Incremental(PowerOfTwo(3))}
    hidden = QuantConv2D(4, 3, output_quantizer="activation", name="conv", **kernel)(inputs)
    hidden = kl.Dropout(0.5)(kl.Flatten()(kl.BatchNormalization(name="norm")(hidden)))
    model = keras.Model(inputs, QuantDense(3, name="head", **kernel)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.02), loss, jit_compile=False)
    return model


def fit(model, *listeners, **arguments):
    arguments = {"batch_size": 8, "verbose": 0, "epochs": 5} | arguments
    model.fit(IMAGES, LABELS, callbacks=list(listeners), **arguments)


def statistics(model):
    norm = model.get_layer("norm")
    return np.stack([to_numpy(norm.moving_mean), to_numpy(norm.moving_variance)])


def wanted(model, images=IMAGES):
    """Mean and variance of the norm's input at inference: weights on the grid, activations on theirs."""
    conv = model.get_layer("conv")
    seen = to_numpy(conv(images, training=False)).astype(np.float64).reshape(-1, 4)
    codes = seen / (seen[seen > 0].min() if (seen > 0).any() else 1)
    assert len(np.unique(np.round(codes, 3))) <= 256
    return np.stack([seen.mean(axis=0), seen.var(axis=0)])


def test_after_the_last_step_the_statistics_are_those_of_the_frozen_network():
    plain, model = network(), network()
    schedule = callbacks.PartitionSchedule(PORTIONS)
    fit(plain, schedule)
    assert np.abs(statistics(plain) - wanted(plain)).max() > 0.05
    fit(model, callbacks.PartitionSchedule(PORTIONS), callbacks.ReestimateBatchNorms(IMAGES, batch_size=7, check=False))
    np.testing.assert_allclose(statistics(model), wanted(model), rtol=1e-5)
    for left, right in zip(plain.variables, model.variables, strict=True):
        if "moving" not in left.path:
            np.testing.assert_array_equal(to_numpy(left), to_numpy(right), err_msg=left.path)


@pytest.mark.parametrize("order", [1, -1])
def test_a_fit_in_pieces_reestimates_after_the_last_step_only(order):
    model = network()
    both = [callbacks.PartitionSchedule(PORTIONS, epochs=5), callbacks.ReestimateBatchNorms(IMAGES, check=False)]
    fit(model, *both[::order], epochs=3)
    assert np.abs(statistics(model) - wanted(model)).max() > 0.05
    fit(model, *both[::order], initial_epoch=3)
    np.testing.assert_allclose(statistics(model), wanted(model), rtol=1e-5)


@pytest.mark.parametrize("quantizer", [Stochastic(Ternary()), Ternary()], ids=repr)
def test_other_methods_reestimate_at_the_end_of_every_fit(quantizer):
    model = network(quantizer)
    for _ in range(2):
        fit(model, callbacks.ReestimateBatchNorms(IMAGES, check=False), epochs=2)
        np.testing.assert_allclose(statistics(model), wanted(model), rtol=1e-5)


def test_averaged_weights_are_in_place_before_it_looks():
    model = network(Ternary(), keras.optimizers.SGD(0.3, use_ema=True, ema_momentum=0.9))
    fit(model, callbacks.ReestimateBatchNorms(IMAGES, check=False))
    np.testing.assert_allclose(statistics(model), wanted(model), rtol=1e-5)


def test_steps_and_data_of_its_own():
    model = network(Ternary())
    fit(model, callbacks.ReestimateBatchNorms(2 * IMAGES, batch_size=4, steps=3, check=False), epochs=1)
    np.testing.assert_allclose(statistics(model), wanted(model, 2 * IMAGES[:12]), rtol=1e-5)


def loss_of(model):
    return model.evaluate(IMAGES, LABELS, batch_size=24, verbose=0)


@pytest.mark.parametrize("check", [True, False])
def test_the_loss_on_held_back_samples_decides_whether_they_stay(check):
    """After so few steps the moving averages are nearly those of the start: those of the data are better."""
    plain, model, other = (network(Ternary()) for _ in range(3))
    fit(plain, epochs=20)
    both = {"labels": LABELS, "validation_data": (IMAGES, LABELS), "check": check}
    fit(model, callbacks.ReestimateBatchNorms(IMAGES, **both), epochs=20)
    assert np.abs(statistics(model) - statistics(plain)).max() > 0.1
    assert loss_of(model) < loss_of(plain)
    unlike = callbacks.ReestimateBatchNorms(100 * IMAGES, **both)
    if check:
        with pytest.warns(UserWarning, match="left the statistics"):
            fit(other, unlike, epochs=20)
        np.testing.assert_array_equal(statistics(other), statistics(plain))
    else:
        fit(other, unlike, epochs=20)
        assert loss_of(other) > loss_of(plain)


def test_the_function_is_at_both_places():
    assert callbacks.reestimate_batch_norms is convert.reestimate_batch_norms


class Block(kl.Layer):
    """A convolution and a batch norm in a layer with code of its own."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.conv = QuantConv2D(4, 3, kernel_quantizer="ternary", name="conv")
        self.norm = kl.BatchNormalization(name="norm")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))

    def call(self, inputs, training=None):
        return self.norm(self.conv(inputs), training=training)


def test_norms_inside_a_custom_layer_are_refused_by_name_and_reported_as_left():
    inputs = keras.Input((6, 6, 2))
    outer = kl.BatchNormalization(name="outer")(Block(name="block")(inputs))
    model = keras.Model(inputs, kl.Flatten()(outer))
    model.compile("sgd", "mse")
    words = r"1 batch norms of .* inside custom layers.*'block/norm'.*nested Functional"
    with pytest.raises(ValueError, match=words):
        callbacks.reestimate_batch_norms(model, IMAGES, verbose=0)
    with pytest.raises(ValueError, match=words):
        fit(model, callbacks.ReestimateBatchNorms(IMAGES, check=False))
    np.testing.assert_array_equal(to_numpy(model.get_layer("outer").moving_mean), 0)
    row = convert.fold_report(model)["block/norm"]
    assert (row.layer, row.outcome, row.detail) == ("BatchNormalization", "left", "inside a custom layer")


def test_refused_when_fit_begins():
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, QuantDense(3, kernel_quantizer="ternary")(kl.Flatten()(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"has no batch norm.*Leave ReestimateBatchNorms out"):
        fit(model, callbacks.ReestimateBatchNorms(IMAGES, check=False))

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = kl.BatchNormalization()

        def call(self, x):
            return self.norm(x)

    own = Own()
    own.compile("sgd", "mse")
    with pytest.raises(TypeError, match="not a Functional or Sequential"):
        own.fit(IMAGES, IMAGES, verbose=0, callbacks=[callbacks.ReestimateBatchNorms(IMAGES, check=False)])
