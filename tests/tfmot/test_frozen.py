"""Under `trainable=False` ranges and thresholds of tf_keras models stand still too, as a batch norm's statistics do."""

import numpy as np
import pytest
import tf_keras

import keras_lowbit as klb
import keras_lowbit.tfmot as klt
from keras_lowbit.layers import QuantActivation

L = tf_keras.layers
ROWS = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
# What a frozen threshold is for an optimizer; TFMOT's wrapper lists it for training all the same.
pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist")


def network():
    inputs = L.Input((4,), name="row")
    x = L.ReLU(name="relu")(L.Dense(3, name="body")(inputs))
    return tf_keras.Model(inputs, L.Dense(2, activation="softmax", name="head")(x))


def fit(model, rows=ROWS):
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(rows, rows[:, :2], batch_size=8, verbose=0)
    return model


def moved(model):
    """The layers of which a fit on other data moves quantizer state."""
    before = [_state(layer) for layer in model.layers]
    fit(model, 8 * ROWS + 5)
    pairs = zip(model.layers, before, strict=True)
    return {
        "input" if layer.name.startswith("quantize_layer") else layer.name
        for layer, state in pairs
        if any((one != other).any() for one, other in zip(_state(layer), state, strict=True))
    }


def _state(layer):
    return [weight.numpy() for weight in layer.weights if not any(word in weight.name for word in ("kernel:", "bias:"))]


def freeze(model, *names):
    for layer in (model.layers[1] if name == "input" else model.get_layer(name) for name in names):
        layer.trainable = False


EVERYWHERE = {"input", "quant_relu", "quant_head"}


@pytest.mark.parametrize("recipe", ["int8", "fat", "dfp-8w8a"])
def test_of_a_layer_frozen_after_training(recipe):
    model = fit(klt.quantize_model(network(), recipe))
    assert moved(model) >= EVERYWHERE
    freeze(model, "quant_body", "quant_relu", "input")
    assert moved(model) == {"quant_head"}
    model.get_layer("quant_relu").trainable = True
    assert moved(model) == {"quant_head", "quant_relu"}
    model.trainable = False
    assert moved(model) == set()


def test_of_layers_and_models_frozen_before_and_after_reload(tmp_path):
    plain = network()
    plain.get_layer("relu").trainable = False
    model = klt.quantize_model(plain, "int8")
    model.save(tmp_path / "m.keras")
    with klt.scope():
        again = tf_keras.models.load_model(tmp_path / "m.keras")
    assert moved(model) == moved(again) == EVERYWHERE - {"quant_relu"}
    plain.trainable = False
    assert moved(klt.quantize_model(plain, "fat")) == set()


def test_a_compiled_fit_too():
    model = fit(klt.quantize_model(network(), "int8"))
    model.get_layer("quant_relu").trainable = False
    model.compile("sgd", "mse")
    before = model.get_layer("quant_relu").get_weights()
    model.fit(8 * ROWS, ROWS[:, :2], verbose=0)
    for one, other in zip(before, model.get_layer("quant_relu").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_keras_3_model_keeps_what_is_frozen():
    model = fit(klt.quantize_model(network(), "int8"))
    freeze(model, "quant_relu", "input")
    twin = klt.to_keras3(model)
    assert [layer.trainable for layer in twin.layers if isinstance(layer, QuantActivation)] == [False, False]
    assert all(host.trainable for path, host in klb.layers.hosts(twin) if "head" in path)
