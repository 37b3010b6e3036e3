"""Activations, initializers and regularizers of the user's in models that are converted."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.keras_graph.copies import function_name, live_config
from keras_lowbit.quantizers import Uniform
from keras_lowbit.recipes import Recipe, Rule
from tests.support import model_zoo
from tests.support.model_zoo import inputs_of, randomize, run

L = keras.layers

NOTHING = Recipe("nothing", ())
WEIGHTS = Recipe("weights", (Rule(Uniform(8)),))


def leaky_relu(x):
    return keras.activations.leaky_relu(x, negative_slope=0.01)


def relu(x):
    return keras.ops.maximum(x, -0.5)


def doubled(x):
    return 2 * keras.ops.relu(x)


FUNCTIONS = {
    "a name of Keras'": leaky_relu,
    "a name that fuses": relu,
    "a name of its own": doubled,
    "lambda": lambda x: keras.ops.relu(x) + 1,
    "partial": functools.partial(keras.activations.leaky_relu, negative_slope=0.01),
    "TensorFlow's": tf.math.sin,
    "another gelu": keras.ops.gelu,
    "layer": L.LeakyReLU(negative_slope=0.01),
    "layer with weights": L.PReLU(),
}


class Halved(keras.regularizers.Regularizer):
    def __call__(self, weights):
        return 0.5 * keras.ops.sum(keras.ops.square(weights))


class Positive(keras.constraints.Constraint):
    def __call__(self, weights):
        return keras.ops.abs(weights)


class Scaled(L.Layer):
    """Its configuration names a function in the way of Keras' layers."""

    def __init__(self, activation=None, **options):
        super().__init__(**options)
        self.activation = keras.activations.get(activation)

    def call(self, inputs):
        return self.activation(3 * inputs)

    def get_config(self):
        return {**super().get_config(), "activation": keras.activations.serialize(self.activation)}


def dense(**options):
    row = keras.Input((6,), name="row")
    hidden = L.BatchNormalization(name="norm")(L.Dense(5, name="own", **options)(row))
    return randomize(keras.Model(row, L.Dense(3, name="head")(hidden)))


def errors(model, copy):
    return [np.abs(a - b).max() for x in [inputs_of(model)] for a, b in zip(run(model, x), run(copy, x), strict=True)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_layer_computes_with_the_users_own_function_after_every_conversion(name):
    model = dense(activation=FUNCTIONS[name])
    folded, _ = klb.fold_batch_norms(model, return_report=True)
    assert errors(model, folded)[0] < 1e-5
    for recipe, most in ((NOTHING, 0.0), (WEIGHTS, 0.1)):
        copy, report = klb.quantize_model(model, recipe)
        assert errors(model, copy)[0] <= most
        assert copy.get_layer("own") is not model.get_layer("own")
        assert report["own"].outcome == ("quantized" if most else "skipped")
        assert errors(copy, klb.dequantize(copy))[0] < 1e-5
    assert errors(copy, klb.quantize_model(copy, NOTHING)[0]) == [0.0]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "layer with weights"])
def test_a_separable_layer_and_an_activation_keep_the_users_function(name):
    image = keras.Input((6, 6, 2), name="image")
    hidden = L.SeparableConv2D(4, 3, activation=FUNCTIONS[name], name="separable")(image)
    model = randomize(keras.Model(image, L.Activation(FUNCTIONS[name], name="act")(hidden)))
    copy, _ = klb.quantize_model(model, WEIGHTS)
    assert errors(model, copy)[0] < 0.1
    assert errors(model, klb.fold_batch_norms(model)) == [0.0]
    assert errors(copy, klb.dequantize(copy))[0] < 1e-5


def test_initializers_regularizers_and_constraints_need_not_be_registered():
    model = dense(
        kernel_initializer=lambda shape, dtype=None: keras.ops.ones(shape, dtype),
        kernel_regularizer=Halved(),
        bias_constraint=Positive(),
    )
    for copy in (
        klb.fold_batch_norms(model),
        klb.quantize_model(model)[0],
        klb.dequantize(klb.quantize_model(model)[0]),
    ):
        layer = copy.get_layer("own")
        assert layer.kernel_regularizer is model.get_layer("own").kernel_regularizer
        assert isinstance(layer.bias_constraint, Positive)
        assert len(copy.losses) == 1


def test_a_function_inside_a_layer_of_layers_stays_itself():
    row = keras.Input((4, 3), name="row")
    inner = L.TimeDistributed(L.Dense(5, activation=leaky_relu), name="inner")
    model = randomize(keras.Model(row, L.Dense(2, name="head")(Scaled(leaky_relu, name="scaled")(inner(row)))))
    copy, report = klb.quantize_model(model, WEIGHTS, skip=["head"])
    assert errors(model, copy) == [0.0]
    assert copy.get_layer("inner").layer.activation is copy.get_layer("scaled").activation is leaky_relu
    for name in ("inner", "scaled"):
        assert report[name].detail.endswith("runs in float")
        assert copy.get_layer(name) is not model.get_layer(name)
    assert errors(copy, klb.dequantize(copy)) == [0.0]


def test_a_configuration_that_cannot_be_read_leaves_the_layer_float_and_says_why():
    class Bad(L.Layer):
        def __init__(self, *things):
            super().__init__()

        def call(self, inputs):
            return inputs + 1

    model = dense(activation=Bad())
    copy, report = klb.quantize_model(model)
    assert report["own"].outcome == "skipped"
    assert report["own"].detail.startswith(
        "its configuration cannot be read (TypeError: Error when deserializing class 'Bad'"
    )
    assert "\n" not in report["own"].detail
    klb.calibrate(copy, inputs_of(copy), verbose=0)


def test_keras_functions_are_known_by_whatever_library_exports_them():
    for function in (keras.activations.relu, keras.ops.relu, tf.nn.relu):
        assert function_name(function) == "relu"
    assert [function_name(f) for f in (tf.nn.softmax, tf.nn.silu, keras.ops.silu)] == ["softmax", "silu", "silu"]
    assert function_name(keras.activations.gelu) == "gelu"
    assert [function_name(f) for f in (keras.ops.gelu, relu, print, L.ReLU())] == ["?"] * 4


@pytest.mark.parametrize("name", "relu relu6 sigmoid tanh softmax silu leaky_relu hard_sigmoid hard_silu".split())
def test_functions_of_one_name_that_count_as_keras_own_are_equal(name):
    x = np.linspace(-20, 20, 2001, dtype=np.float32).reshape(3, -1)
    known = keras.activations.get(name)
    for library in (tf.nn, keras.ops):
        if hasattr(library, name):
            assert function_name(getattr(library, name)) == name
            np.testing.assert_array_equal(getattr(library, name)(x), known(x))


def test_tensorflows_functions_fuse_and_stay_float_as_keras_do():
    row = keras.Input((6,), name="row")
    hidden = L.Dense(5, activation=tf.nn.relu, name="hidden")(row)
    copy, _ = klb.quantize_model(keras.Model(row, L.Dense(3, activation=tf.nn.softmax, name="head")(hidden)))
    assert copy.get_layer("hidden").activation_fuses
    assert [layer.name for layer in copy.layers] == ["row", "row_range", "hidden", "hidden_range", "head"]


def test_a_stock_configuration_is_keras_own():
    for make in (model_zoo.sequential, model_zoo.residual, model_zoo.recurrent):
        for layer in make()._flatten_layers(include_self=False):
            assert live_config(layer) == layer.get_config()
