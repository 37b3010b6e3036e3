"""to_keras3 of float tf_keras models: every stock layer, operators, Lambda, nested and transfer-learning models."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import keras_lowbit as klb
import keras_lowbit.tfmot as klt
from keras_lowbit.cli.models import read_model
from keras_lowbit.tfmot.functions.registry import FUNCTIONS

L, K = tf_keras.layers, tf_keras.backend
IMAGE, SEQUENCE = (8, 8, 3), (10, 4)


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)


def flat(results):
    return [np.asarray(value, np.float32) for value in tf.nest.flatten(results)]


def assert_same(model, *inputs):
    """The Keras 3 model computes the same, and names no two things alike. Gives it."""
    twin = klt.to_keras3(model)
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    for found, wanted in zip(flat(twin(given, training=False)), flat(model(given, training=False)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-5)
    return twin


def of_layer(layer, shape):
    inputs = tf_keras.Input(shape)
    return tf_keras.Model(inputs, layer(inputs))


# ---------------------------------------------------------------- stock layers


def adapted(layer):
    layer.adapt(values(IMAGE, 5))
    return layer


OF_IMAGES = {
    "old hard_sigmoid": lambda: L.Conv2D(4, 3, activation="hard_sigmoid"),
    "tf.nn function": lambda: L.Conv2D(4, 3, activation=tf.nn.softmax),
    "relu6 as a layer": lambda: L.Conv2D(4, 3, activation=L.ReLU(6.0)),
    "slope as a layer": lambda: L.Conv2D(4, 3, activation=L.LeakyReLU(0.1)),
    "gelu": lambda: L.Conv2D(4, 3, activation="gelu", kernel_regularizer="l2", kernel_constraint="max_norm"),
    "depthwise": lambda: L.DepthwiseConv2D(3, depth_multiplier=2),
    "grouped": lambda: L.Conv2D(6, 3, groups=3),
    "transposed": lambda: L.Conv2DTranspose(4, 3, strides=2),
    "max_pooling": lambda: L.MaxPooling2D(),
    "average_pooling": lambda: L.AveragePooling2D(3, 2, "same"),
    "global_pooling": lambda: L.GlobalAveragePooling2D(keepdims=True),
    "upsampling": lambda: L.UpSampling2D(2, interpolation="bilinear"),
    "padding": lambda: L.ZeroPadding2D(((0, 1), (0, 1))),
    "spatial_dropout": lambda: L.SpatialDropout2D(0.2),
    "shaped_dropout": lambda: L.Dropout(0.2, noise_shape=(None, 1, 1, 3)),
    "noise": lambda: L.GaussianNoise(0.2),
    "prelu": lambda: L.PReLU(alpha_initializer="ones", shared_axes=[1, 2]),
    "thresholded": lambda: L.ThresholdedReLU(0.5),
    "activation": lambda: L.Activation("hard_sigmoid"),
    "batch_norm": lambda: L.BatchNormalization(axis=1),
    "layer_norm": lambda: L.LayerNormalization(axis=[1, 2]),
    "group_norm": lambda: L.GroupNormalization(3),
    "normalization": lambda: adapted(L.Normalization()),
    "normalization of all": lambda: adapted(L.Normalization(axis=None)),
    "discretization": lambda: L.Discretization([-0.5, 0.0, 1.0]),
    "resizing": lambda: L.Resizing(16, 16),
    "rotation": lambda: L.RandomRotation(0.1),
    "time_distributed": lambda: L.TimeDistributed(L.Dense(3)),
    "time_distributed model": lambda: L.TimeDistributed(
        tf_keras.Sequential([L.Input((8, 3)), L.Flatten(), L.Dense(3)])
    ),
    "convolutional lstm": lambda: L.ConvLSTM1D(3, 2),
}
OF_SEQUENCES = {
    "lstm": lambda: L.LSTM(5, recurrent_activation="hard_sigmoid", return_state=True),
    "gru": lambda: L.GRU(5, reset_after=False, go_backwards=True),
    "simple": lambda: L.SimpleRNN(5, unroll=True),
    "bidirectional": lambda: L.Bidirectional(L.LSTM(5, return_sequences=True), merge_mode="sum"),
    "cells": lambda: L.RNN([L.LSTMCell(5), L.GRUCell(3)]),
    "causal": lambda: L.Conv1D(3, 3, padding="causal", dilation_rate=2),
    "separable": lambda: L.SeparableConv1D(3, 3),
    "spatial_dropout": lambda: L.SpatialDropout1D(0.2),
    "attention": lambda: lambda x: L.MultiHeadAttention(2, 3)(x, x),
    "masking": lambda: L.Masking(),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_layers_of_images(name):
    assert_same(of_layer(OF_IMAGES[name](), IMAGE), values(IMAGE))


@pytest.mark.parametrize("name", OF_SEQUENCES)
def test_layers_of_sequences(name):
    assert_same(of_layer(OF_SEQUENCES[name](), SEQUENCE), values(SEQUENCE))


def test_the_former_hard_sigmoid_is_saved_under_the_librarys_name(tmp_path):
    twin = klt.to_keras3(of_layer(OF_SEQUENCES["lstm"](), SEQUENCE))
    twin.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for found, wanted in zip(flat(again(values(SEQUENCE))), flat(twin(values(SEQUENCE))), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_embedding_with_a_mask_and_states_handed_on():
    ids = tf_keras.Input((6,), dtype="int32")
    features, *state = L.LSTM(4, return_state=True)(L.Embedding(9, 4, mask_zero=True, input_length=6)(ids))
    model = tf_keras.Model(ids, [features, L.LSTM(4)(L.Embedding(9, 4)(ids), initial_state=state)])
    assert_same(model, np.random.default_rng(1).integers(0, 9, (2, 6)))


def test_half_precision_comes_along():
    twin = klt.to_keras3(of_layer(L.Conv2D(3, 3, dtype="mixed_float16"), IMAGE))
    assert twin.layers[-1].dtype_policy.name == "mixed_float16"


def not_relu(x):
    return 2 * tf.nn.relu(x)


not_relu.__name__ = "relu"


def test_a_function_that_only_has_the_name_of_one_of_keras_is_refused():
    with pytest.raises(TypeError, match=r"has the activation 'relu', which cannot go to Keras 3.*computes the same"):
        klt.to_keras3(of_layer(L.Dense(2, activation=not_relu), (3,)))


class OtherSoftmax(keras.layers.Softmax):
    def call(self, inputs):
        return 2 * super().call(inputs)


def test_a_layer_that_computes_something_else_in_keras_3_is_refused(monkeypatch):
    monkeypatch.setattr(keras.layers, "Softmax", OtherSoftmax)
    with pytest.raises(TypeError, match=r"Layer 'softmax\w*' \(Softmax\) computes something else in Keras 3"):
        klt.to_keras3(of_layer(L.Softmax(), IMAGE))


# ---------------------------------------------------------------- operators

OPERATORS = {
    "x / 255.": lambda x, y: x / 255.0,
    "x + 3.": lambda x, y: 3.0 + x,
    "x + y": lambda x, y: x + y,
    "1 - x": lambda x, y: 1 - x,
    "x * y / y": lambda x, y: x * y / (abs(y) + 1.0),
    "x ** 2": lambda x, y: -(x**2),
    "x[...]": lambda x, y: x[:, 1:, ..., ::-1] + x[:, :-1, tf.newaxis, 0],
    "hard swish": lambda x, y: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    "concat": lambda x, y: tf.concat([x, y], -1),
    "stack": lambda x, y: tf.unstack(tf.stack([x, y], 1), axis=1),
    "split": lambda x, y: tf.split(x, [1, 2], -1),
    "mean": lambda x, y: tf.reduce_mean(x, [1, 2], keepdims=True),
    "deviation": lambda x, y: tf.math.reduce_std(x, -1),
    "l2": lambda x, y: K.l2_normalize(x, -1),
    "activations": lambda x, y: [f(x) for f in (tf.nn.swish, tf.nn.leaky_relu, tf.nn.gelu, tf.nn.softmax, tf.sigmoid)],
    "keras functions": lambda x, y: [tf_keras.activations.relu(x, max_value=6), tf_keras.activations.hard_sigmoid(x)],
    "resize": lambda x, y: [tf.image.resize(x, (16, 16)), K.resize_images(x, 2, 2, "channels_last")],
    "pooling": lambda x, y: [
        tf.nn.avg_pool2d(x, 2, 2, "VALID"),
        tf.nn.max_pool2d(x, 3, 2, "SAME"),
        K.pool2d(x, (2, 2)),
    ],
    "reshape": lambda x, y: K.reshape(K.permute_dimensions(x, (0, 3, 1, 2)), (-1, 192)),
    "shape": lambda x, y: tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1] * 8, 3]),
    "flatten": lambda x, y: K.batch_flatten(K.expand_dims(x, 1)),
    "depth": lambda x, y: tf.nn.depth_to_space(tf.nn.space_to_depth(x, 4), 2),
    "pad": lambda x, y: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0),
    "clip": lambda x, y: tf.clip_by_value(x, 0.0, 6.0),
    "convolution": lambda x, y: tf.nn.conv2d(x, np.ones((3, 3, 3, 2), np.float32), 2, "SAME"),
    "blur": lambda x, y: tf.nn.depthwise_conv2d(x, np.ones((3, 3, 3, 1), np.float32), [1, 1, 1, 1], "VALID"),
    "response": lambda x, y: tf.nn.lrn(x, 1, 2.0, 1e-2, 0.75),
    "standardization": lambda x, y: tf.image.per_image_standardization(x),
    "norm": lambda x, y: x / tf.norm(x, axis=-1, keepdims=True),
    "no nan": lambda x, y: tf.math.divide_no_nan(x, tf.nn.relu(y)),
    "repeat": lambda x, y: [K.repeat_elements(x, 2, axis=1), tf.repeat(x, 2, axis=-1), tf.tile(x, [1, 1, 2, 1])],
    "choice": lambda x, y: tf.where(x > y, x, 0.5 * y),
    "gather": lambda x, y: tf.gather(x, [2, 0], axis=-1),
    "classes": lambda x, y: tf.one_hot(tf.argmax(x, -1), 3),
    "matmul": lambda x, y: tf.matmul(x, y, transpose_b=True),
    "dot": lambda x, y: K.batch_dot(K.batch_flatten(x), K.batch_flatten(y)),
    "preprocessing": lambda x, y: tf_keras.applications.resnet50.preprocess_input(x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_and_functions_of_tensorflow(name):
    x, y = tf_keras.Input(IMAGE), tf_keras.Input(IMAGE)
    model = tf_keras.Model([x, y], OPERATORS[name](x, y))
    again = tf_keras.Model.from_config(model.get_config())  # as a file has it: numbers, not tensors; slices as dicts
    assert_same(model, values(IMAGE), values(IMAGE, 1))
    assert_same(again, values(IMAGE), values(IMAGE, 1))


def test_the_names_of_operators_are_those_of_tf_keras_and_meet_no_layers():
    inputs = tf_keras.Input((4,))
    hidden = L.Dense(4, name="multiply")(inputs / 3.0)  # the name that Keras gives its first product
    model = tf_keras.Model(inputs, L.Dense(4, name="add")(hidden) + hidden * hidden)
    names = {layer.name for layer in assert_same(model, values((4,))).operations}
    assert {"multiply", "add"} <= names
    assert sum(name.startswith("tf.") for name in names) == 3


def test_a_function_that_keras_3_does_not_have_is_named():
    x = tf_keras.Input(IMAGE)
    with pytest.raises(TypeError, match=r"calls tf\.math\.lgamma, which has no form in Keras 3"):
        klt.to_keras3(tf_keras.Model(x, tf.math.lgamma(x)))
    with pytest.raises(TypeError, match=r"tf\.image\.resize is called with \{'antialias': True\}"):
        klt.to_keras3(tf_keras.Model(x, tf.image.resize(x, (4, 4), antialias=True)))


def test_every_function_is_public_in_tensorflow():
    for symbol in FUNCTIONS:
        place = tf_keras if symbol.startswith("keras.") else tf
        parts = symbol.removeprefix("keras.").split(".")
        assert _reaches(place, parts) or _reaches(tf.compat.v1, parts), symbol


def _reaches(root, parts):
    for part in parts:
        if not hasattr(root, part):
            return False
        root = getattr(root, part)
    return True


def test_the_preprocessing_of_a_lambda_layer_runs_in_int8(tmp_path):
    model = tf_keras.Sequential([L.Input(IMAGE), L.Lambda(lambda x: x / 127.5 - 1.0), L.Conv2D(4, 3), L.Flatten()])
    twin = assert_same(model, values(IMAGE))
    quantized, _ = klb.quantize_model(twin, "int8")
    klb.calibrate(quantized, np.clip(127.5 + 60 * values(IMAGE), 0, 255))
    assert klb.export_litert(quantized, tmp_path / "m.tflite").float_fallbacks == ()


def test_lambda_layers_are_followed_with_their_arguments():
    with_scale = L.Lambda(lambda x, scale: K.mean(x * scale, [1, 2]), arguments={"scale": 3.0})
    model = tf_keras.Sequential([L.Input(IMAGE), with_scale])
    assert_same(model, values(IMAGE))
    inputs = tf_keras.Input(IMAGE)
    assert_same(tf_keras.Model(inputs, L.Lambda(lambda pair: pair[0] - pair[1])([inputs, inputs])), values(IMAGE))

    def by_value(x):
        return x if x > 0 else -x

    with pytest.raises(TypeError, match=r"The function of Lambda layer 'look' cannot be followed \("):
        klt.to_keras3(_unchecked_lambda(by_value))


class Swap(L.Layer):
    """A custom layer without weights, under the name of nothing in Keras."""

    def call(self, inputs):
        return inputs[1] - 2 * inputs[0]


class Scaled(L.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight("scale", initializer="ones")

    def call(self, inputs):
        return inputs * self.scale


def test_custom_layers_without_weights_are_followed_and_others_named():
    inputs = tf_keras.Input(IMAGE)
    assert_same(tf_keras.Model(inputs, Swap()([inputs, L.Dense(3)(inputs)])), values(IMAGE))
    with pytest.raises(TypeError, match=r"is a tests.tfmot.test_keras3.Scaled; to_keras3 takes stock tf_keras layers"):
        klt.to_keras3(of_layer(Scaled(), IMAGE))


def _unchecked_lambda(function):
    model = tf_keras.Sequential([L.Input((3,)), L.Lambda(lambda x: x, name="look")])
    model.layers[-1].function = function
    return model


# ---------------------------------------------------------------- nested models


def test_nested_models_and_layers_shared_with_them():
    shared = L.Dense(4, name="shared")
    inner_input = tf_keras.Input((4,))
    inner = tf_keras.Model(inner_input, shared(inner_input) * 2.0, name="inner")
    outer_input = tf_keras.Input((4,))
    tail = tf_keras.Sequential([L.Input((4,)), L.Dense(2, activation="relu")], name="tail")
    model = tf_keras.Model(outer_input, tail(shared(inner(inner(outer_input)))))
    twin = assert_same(model, values((4,)))
    assert twin.get_layer("inner").get_layer("shared") is twin.get_layer("shared")
    assert len(twin.weights) == len(model.weights)


def test_a_frozen_backbone_in_inference_stays_frozen_and_in_inference():
    body = tf_keras.Sequential([L.Input(IMAGE), L.Conv2D(4, 3), L.BatchNormalization()], name="body")
    body.trainable = False
    inputs = tf_keras.Input(IMAGE)
    model = tf_keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(body(inputs, training=False))))
    twin = assert_same(model, values(IMAGE))
    assert not twin.get_layer("body").trainable
    assert len(twin.trainable_weights) == 2
    images = values(IMAGE)
    np.testing.assert_array_equal(np.asarray(twin(images, training=True)), np.asarray(twin(images)))


def test_dropout_that_a_call_keeps_on_stays_on():
    inputs = tf_keras.Input((400,))
    twin = klt.to_keras3(tf_keras.Model(inputs, L.Dropout(0.5)(inputs, training=True)))
    assert (np.asarray(twin(np.ones((1, 400), np.float32))) == 0).any()


def test_a_subclassed_part_is_named():
    class Part(tf_keras.Model):
        def call(self, inputs):
            return inputs

    inputs = tf_keras.Input((3,))
    with pytest.raises(TypeError, match="got the Part 'part"):
        klt.to_keras3(tf_keras.Model(inputs, Part()(inputs)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0"])
def test_applications(name):
    model = getattr(tf_keras.applications, name)(input_shape=(32, 32, 3), weights=None, classes=4)
    assert_same(model, values((32, 32, 3)))


@pytest.mark.slow
def test_a_transfer_learning_model():
    body = tf_keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None, alpha=0.35)
    body.trainable = False
    inputs = tf_keras.Input((32, 32, 3))
    features = body(tf_keras.applications.mobilenet_v2.preprocess_input(L.RandomFlip()(inputs)), training=False)
    model = tf_keras.Model(inputs, L.Dense(2, "softmax")(L.Dropout(0.2)(L.GlobalAveragePooling2D()(features))))
    assert_same(model, 127.5 + 60 * values((32, 32, 3)))


@pytest.mark.slow
def test_the_command_line_names_the_way_from_a_folder_that_tf_keras_wrote(tmp_path, monkeypatch):
    model = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(2)])
    model.save(tmp_path / "it's here", save_format="tf")
    with pytest.raises(ValueError, match="SavedModel folder of Keras 2") as raised:
        read_model(str(tmp_path / "it's here"))
    monkeypatch.chdir(tmp_path)
    exec(str(raised.value).split("once: ")[1])
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(read_model("model.keras")(x), model(x))
