"""Hosts are found once each, under paths that tell them apart."""

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.layers import QuantDense, QuantizerHost, hosts

L = keras.layers


def block(name):
    row = keras.Input((4,))
    return keras.Model(row, QuantDense(4, kernel_quantizer="ternary", name="dense")(row), name=name)


def test_equal_layer_names_in_two_nested_models_have_two_paths():
    row = keras.Input((4,))
    left, right = block("left"), block("right")
    model = keras.Model(row, left(right(left(row))))
    found = dict(hosts(model))
    assert found == {f"{b.name}/dense/kernel_quantizer": b.get_layer("dense").kernel_host for b in (left, right)}


def test_a_layer_and_a_model_without_variables_have_hosts_too():
    layer = QuantDense(4, kernel_quantizer="ternary", bias_quantizer="uniform", name="dense")
    for owner in (layer, keras.Sequential([layer])):
        assert {host for _, host in hosts(owner)} == {layer.kernel_host, layer.bias_host}


def test_state_is_copied_from_host_to_host_with_the_random_generator():
    first, second = (QuantizerHost(klb.quantizers.Stochastic(klb.quantizers.Ternary(), seed=seed)) for seed in (1, 2))
    for host in (first, second):
        host.build((3, 4))
    first.state["ratio"].assign(0.25)
    second.copy_state_from(first)
    assert float(second.state["ratio"]) == 0.25
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(h.seed_generator.state + 0) for h in (first, second)))


def test_the_effective_bias_is_the_quantized_one():
    inputs = np.ones((1, 3), "float32")
    for quantizer in (None, "uniform"):
        layer = klb.layers.QuantDense(4, bias_quantizer=quantizer)
        layer.build((None, 3))
        layer.kernel.assign(np.zeros((3, 4)))
        layer.bias.assign([0.1, -0.33, 0.7, 1.0])
        np.testing.assert_array_equal(layer.effective_bias(), keras.ops.convert_to_numpy(layer(inputs))[0])
    bare = klb.layers.QuantDense(4, use_bias=False)
    bare.build((None, 3))
    assert bare.effective_bias() is None
