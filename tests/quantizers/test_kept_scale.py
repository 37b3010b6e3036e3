"""KeptScale: the scale that was given holds for those weights and no others."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import Incremental, KeptScale, Stochastic, Uniform

WEIGHTS = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
WEIGHTS[..., 4] = 0
SCALE = (np.abs(WEIGHTS).max((0, 1, 2)) * np.float32([0.9, 1.1, 1.0, 1.3, 1.0]) / 127).astype(np.float32)


def oracle(weights, scale):
    scale = np.where(scale > 0, scale, 1).astype(np.float64)
    return np.clip(np.round(weights / scale), -127, 127) * scale


def test_the_scale_given_holds_for_the_weights_it_was_given_for():
    quantizer = KeptScale()
    state = quantizer.scale_state(WEIGHTS, SCALE, (-1,))
    assert {name: value.shape for name, value in state.items()} == {
        name: spec.shape for name, spec in quantizer.state_specs(WEIGHTS.shape, (-1,)).items()
    }
    np.testing.assert_allclose(to_numpy(quantizer(WEIGHTS, state, (-1,))), oracle(WEIGHTS, SCALE), atol=1e-6)
    plain = to_numpy(Uniform()(WEIGHTS, {}, (-1,)))
    np.testing.assert_array_equal(to_numpy(quantizer(WEIGHTS, state, (-1,), training=True)), plain)
    np.testing.assert_array_equal(to_numpy(quantizer(WEIGHTS, {}, (-1,))), plain)
    unset = {
        name: np.zeros(spec.shape, np.float32) for name, spec in quantizer.state_specs(WEIGHTS.shape, (-1,)).items()
    }
    np.testing.assert_array_equal(to_numpy(quantizer(WEIGHTS, unset, (-1,))), plain)


def test_a_channel_that_changes_takes_the_scale_of_its_weights():
    quantizer = KeptScale()
    state = quantizer.scale_state(WEIGHTS, SCALE, (-1,))
    changed = WEIGHTS * np.float32([2, 1, 1, 1, 1])
    own = np.abs(changed).max((0, 1, 2)) / 127
    wanted = oracle(changed, np.where([True, False, False, False, False], own, SCALE))
    np.testing.assert_allclose(to_numpy(quantizer(changed, state, (-1,))), wanted, atol=1e-6)


def test_one_scale_for_the_tensor_and_other_bits():
    quantizer = KeptScale(4, "tensor")
    state = quantizer.scale_state(WEIGHTS, np.float32(0.25), (-1,))
    found = quantizer.encode(WEIGHTS, state, (-1,))
    assert float(to_numpy(found.scale).reshape(())) == 0.25
    np.testing.assert_array_equal(to_numpy(found.codes), np.clip(np.round(WEIGHTS / 0.25), -7, 7))


def test_inside_wrappers():
    quantizer = Stochastic(KeptScale())
    state = {f"base_{name}": value for name, value in KeptScale().scale_state(WEIGHTS, SCALE, (-1,)).items()}
    np.testing.assert_allclose(
        to_numpy(quantizer.encode(WEIGHTS, state, (-1,)).real), oracle(WEIGHTS, SCALE), atol=1e-6
    )
    with pytest.raises(ValueError, match="needs a base grid"):
        Incremental(KeptScale())


def network():
    inputs = keras.Input((6, 6, 4))
    conv = klb.layers.QuantConv2D(5, 3, kernel_quantizer=KeptScale(), output_quantizer="activation")
    return keras.Model(inputs, conv(klb.layers.QuantActivation(None)(inputs)))


def test_saved_exported_trained_and_handed_other_weights(tmp_path):
    model = network()
    layer = model.layers[-1]
    layer.kernel.assign(WEIGHTS)
    for name, value in layer.kernel_quantizer.scale_state(WEIGHTS, SCALE, (-1,)).items():
        layer.kernel_host.state[name].assign(value)
    images = np.random.default_rng(1).normal(size=(8, 6, 6, 4)).astype(np.float32)
    klb.calibrate(model, images, verbose=0)
    np.testing.assert_allclose(to_numpy(layer.quantized_kernel()), oracle(WEIGHTS, SCALE), atol=1e-6)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(np.asarray(again(images)), np.asarray(model(images)))
    klb.export_litert(model, tmp_path / "m.tflite")
    assert klb.verify(model, tmp_path / "m.tflite", images).ok
    again.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=True)
    again.fit(images, np.zeros((8, 4, 4, 5)), verbose=0)
    kernel = to_numpy(again.layers[-1].kernel)
    np.testing.assert_array_equal(to_numpy(again.layers[-1].quantized_kernel()), to_numpy(Uniform()(kernel, {}, (-1,))))


def test_float_weights_of_others_may_come_under_it():
    layer, stock = klb.layers.QuantConv2D(5, 3, kernel_quantizer=KeptScale()), keras.layers.Conv2D(5, 3)
    for one in (layer, stock):
        one.build((None, 6, 6, 4))
    for name, value in layer.kernel_quantizer.scale_state(layer.kernel, 0.5, (-1,)).items():
        layer.kernel_host.state[name].assign(value)
    layer.set_weights(stock.get_weights())
    np.testing.assert_array_equal(to_numpy(layer.quantized_kernel()), to_numpy(Uniform()(stock.kernel, {}, (-1,))))
