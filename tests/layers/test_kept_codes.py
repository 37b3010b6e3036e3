"""Clustered codes are found once for each state of the weights, and never used for another."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import Clustered, Stochastic, Ternary, Uniform

L = keras.layers
RNG = np.random.default_rng(17)
ROWS = RNG.normal(size=(8, 6)).astype("float32")
WANTED = RNG.normal(size=(8, 3)).astype("float32")
KERNEL = RNG.normal(size=(6, 3)).astype("float32")
QUANTIZERS = [Clustered(Ternary(), 2), Clustered(Uniform(4), 2), Stochastic(Clustered(Ternary(), 2), seed=1)]
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.name} {q.bits:.0f}")


@pytest.fixture
def fits(monkeypatch):
    """How often a kernel was clustered, in `fits.count`."""

    class Fits:
        count = 0

    plain = Clustered._fit

    def counting(*arguments):
        Fits.count += 1
        return plain(*arguments)

    monkeypatch.setattr(Clustered, "_fit", counting)
    return Fits


def network(quantizer):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((6,)), klb.layers.QuantDense(3, kernel_quantizer=quantizer)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def assert_fresh(model):
    """The layer multiplies with what the quantizer, asked alone, makes of the kernel as it is."""
    [layer] = model.layers
    fresh = to_numpy(layer.kernel_quantizer.encode(layer.kernel, layer.kernel_host.values(), (-1,)).real)
    np.testing.assert_array_equal(to_numpy(layer.quantized_kernel()), fresh)
    np.testing.assert_array_equal(klb.quantized_weights(model)[layer.name].real, fresh)
    np.testing.assert_allclose(to_numpy(model(ROWS)), ROWS @ fresh + to_numpy(layer.bias), rtol=1e-5, atol=1e-5)


@each_quantizer
def test_a_kernel_that_stands_still_is_clustered_once_for_all_eager_runs(quantizer, fits, tmp_path):
    dense = klb.layers.QuantDense(3, kernel_quantizer=quantizer, output_quantizer="activation")
    model = keras.Sequential([keras.Input((6,)), klb.layers.QuantActivation(), dense])
    klb.calibrate(model, ROWS, batch_size=2, verbose=0)
    klb.calibrate(model, ROWS, batch_size=2, verbose=0)
    for _ in range(3):
        model(ROWS)
    klb.quantized_weights(model)
    klb.export_litert(model, tmp_path / "m.tflite")
    assert klb.verify(model, tmp_path / "m.tflite", ROWS).ok
    assert fits.count == 1


def one_bit(model, path):
    [layer] = model.layers
    kernel = to_numpy(layer.kernel)
    kernel.view(np.uint32)[0, 0] ^= 1
    layer.kernel.assign(kernel)


def loaded(model, path):
    other = network(model.layers[0].kernel_quantizer)
    other.layers[0].kernel.assign(2 * KERNEL)
    other.save_weights(path / "w.weights.h5")
    model.load_weights(path / "w.weights.h5")


def restored(model, path):
    other = network(model.layers[0].kernel_quantizer)
    other.layers[0].kernel.assign(2 * KERNEL)
    tf.train.Checkpoint(other).write(str(path / "c"))
    tf.train.Checkpoint(model).read(str(path / "c"))


CHANGES = {
    "assign": lambda model, path: model.layers[0].kernel.assign(KERNEL),
    "assign_add": lambda model, path: model.layers[0].kernel.assign_add(KERNEL),
    "one bit": one_bit,
    "set_weights": lambda model, path: model.set_weights([2 * w for w in model.get_weights()]),
    "fit": lambda model, path: model.fit(ROWS, WANTED, verbose=0),
    "optimizer": lambda model, path: model.optimizer.apply_gradients([(KERNEL, model.layers[0].kernel)]),
    "the variable of the framework": lambda model, path: model.layers[0].kernel.value.assign(KERNEL),
    "load_weights": loaded,
    "checkpoint": restored,
}


@each_quantizer
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_weights_they_are_clustered_anew(quantizer, change, tmp_path):
    model = network(quantizer)
    assert_fresh(model)
    before = to_numpy(model.layers[0].kernel)
    CHANGES[change](model, tmp_path)
    assert not np.array_equal(before, to_numpy(model.layers[0].kernel))
    assert_fresh(model)
    model.layers[0].kernel.assign(before)
    assert_fresh(model)


@each_quantizer
def test_a_traced_function_clusters_what_it_is_run_with(quantizer):
    model = network(quantizer)
    model(ROWS)  # codes are kept from here on
    traced = tf.function(lambda rows: model(rows))
    for scale in (1, -2):
        model.layers[0].kernel.assign(scale * KERNEL)
        np.testing.assert_allclose(to_numpy(traced(ROWS)), to_numpy(model(ROWS)), rtol=1e-5, atol=1e-5)
        assert_fresh(model)


def test_gradients_are_those_of_codes_found_anew():
    [layer] = network(QUANTIZERS[0]).layers

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ROWS) ** 2)
        return to_numpy(tape.gradient(loss, layer.kernel.value))

    first = gradient()
    assert np.abs(first).max() > 0
    np.testing.assert_array_equal(gradient(), first)


def test_layers_of_one_quantizer_keep_their_own():
    layers = [klb.layers.QuantDense(3, kernel_quantizer=QUANTIZERS[0]) for _ in range(2)]
    outputs = [to_numpy(layer(ROWS)) for layer in layers]
    assert not np.array_equal(*outputs)
    for layer, output in zip(layers, outputs, strict=True):
        np.testing.assert_array_equal(to_numpy(layer(ROWS)), output)
