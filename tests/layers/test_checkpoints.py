"""Every way that Keras, TensorFlow, Orbax and PyTorch offer to keep a model keeps all of its quantizers' state."""

import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDense
from keras_lowbit.quantizers import AdjustableThreshold, Clustered, Incremental, PowerOfTwo, Stochastic, Ternary
from tests.support.process import run_python

L = keras.layers
KERNELS = [
    "ternary",
    Stochastic(Ternary()),
    Incremental(PowerOfTwo(5)),
    AdjustableThreshold(),
    Clustered("ternary", cluster_size=4),
]


def network(kernel):
    """Every role of a quantizer, and a nested model whose layers have names of their own."""
    image = keras.Input((4, 4, 4), name="image")
    roles = {"kernel_quantizer": kernel, "bias_quantizer": "uniform", "output_quantizer": "activation"}
    inner = keras.Sequential([keras.Input((2, 2, 4)), QuantConv2D(4, 1, name="inner_conv", **roles)], name="inner")
    x = inner(QuantConv2D(4, 3, name="conv", **roles)(image))
    x = klb.layers.QuantActivation("relu", quantizer=AdjustableThreshold("activation"), name="act")(x)
    return keras.Model(image, QuantDense(2, name="head", **roles)(L.Flatten(name="flat")(x)), name="net")


def told(model, seed):
    """The model with a random value in every variable: state that no two models have in common."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(rng.integers(1, 100, variable.shape).astype(variable.dtype))
    return model


def everything(model):
    found = {variable.path: to_numpy(variable) for variable in model.variables}
    assert len(found) == len(model.variables)
    return found


def assert_same(wanted, model):
    found = everything(model)
    assert set(found) == set(wanted)
    for path, value in found.items():
        np.testing.assert_array_equal(value, wanted[path], err_msg=path)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_tensorflow_checkpoint_holds_every_variable(tmp_path, kernel):
    model, other = told(network(kernel), 1), told(network(kernel), 2)
    file = tf.train.Checkpoint(model=model).save(tmp_path / "c")
    tf.train.Checkpoint(model=other).restore(file).assert_existing_objects_matched().assert_consumed()
    assert_same(everything(model), other)


def test_a_tensorflow_checkpoint_without_state_does_not_pass_for_one_that_has_it(tmp_path):
    stock = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    file = tf.train.Checkpoint(model=stock).save(tmp_path / "c")
    model = keras.Sequential([keras.Input((3,)), QuantDense(2, output_quantizer="activation")])
    status = tf.train.Checkpoint(model=model).restore(file)
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel), to_numpy(stock.layers[0].kernel))
    with pytest.raises(AssertionError, match="minimum"):
        status.assert_existing_objects_matched()


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("way", ["keras", "h5", "weights", "shards", "tree", "pickle"])
def test_keras_own_ways_hold_every_variable(tmp_path, kernel, way):
    model, other = told(network(kernel), 1), told(network(kernel), 2)
    if way in ("keras", "h5", "pickle"):
        if way == "pickle":
            other = pickle.loads(pickle.dumps(model))
        else:
            model.save(tmp_path / f"m.{way}")
            other = keras.saving.load_model(tmp_path / f"m.{way}")
        for ours, theirs in zip(model.variables, other.variables, strict=True):  # Keras gives those inside other paths
            np.testing.assert_array_equal(to_numpy(theirs), to_numpy(ours), err_msg=ours.path)
        return
    elif way == "tree":  # which Orbax writes
        for one in (model, other):
            one.compile("sgd", "mse")
        other.set_state_tree(model.get_state_tree("numpy_array"))
    else:
        name, options = ("m.weights.h5", {}) if way == "weights" else ("m.weights.json", {"max_shard_size": 1e-6})
        model.save_weights(tmp_path / name, **options)
        other.load_weights(tmp_path / name)
    assert_same(everything(model), other)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_get_weights_holds_every_variable(kernel):
    model, other = told(network(kernel), 1), told(network(kernel), 2)
    other.set_weights(model.get_weights())
    assert_same(everything(model), other)
    assert len(model.weights) == len(model.variables)


IN_ANOTHER = """
import json, sys
import keras
import numpy as np
from tests.layers.test_checkpoints import KERNELS, assert_same, everything, network, told
folder = sys.argv[1]
for number, kernel in enumerate(KERNELS):
    model, other = told(network(kernel), 1), told(network(kernel), 2)
    if keras.backend.backend() == "torch":
        import torch
        torch.save(model.state_dict(), f"{folder}/{number}.pt")
        other.load_state_dict(torch.load(f"{folder}/{number}.pt"))
    else:
        path = f"{folder}/{number}"
        model.compile("sgd", "mse")
        keep = keras.callbacks.OrbaxCheckpoint(path, save_on_background=False)
        keep.set_model(model)
        keep._save_checkpoint(0)
        loaded = keras.saving.load_model(path)
        flat = {path: value for path, value in everything(model).items() if not path.startswith("inner/")}
        found = everything(loaded)  # Keras gives the layers of nested models other paths, and finds none of their weights
        assert all(np.array_equal(found[path], value) for path, value in flat.items())
        other.compile("sgd", "mse")
        other.load_weights(path)
    assert_same(everything(model), other)
print(json.dumps("same"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "package"), [("torch", "torch"), ("jax", "orbax.checkpoint")])
def test_orbax_and_torch_hold_every_variable(tmp_path, backend, package):
    pytest.importorskip(package)
    assert json.loads(run_python(IN_ANOTHER, tmp_path, KERAS_BACKEND=backend).splitlines()[-1]) == "same"
