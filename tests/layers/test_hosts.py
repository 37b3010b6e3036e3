"""Hosts are found once each, under paths that tell them apart."""

import keras

from keras_lowbit.layers import QuantDense, hosts

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
