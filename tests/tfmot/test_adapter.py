"""LowbitQuantizer in graphs of TensorFlow 1, which run nothing that no result depends on."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import keras_lowbit.tfmot as klt
from keras_lowbit.quantizers import Stochastic


@pytest.mark.parametrize("recipe", ["sq-twn", "inq-5"])
def test_models_are_quantized_and_trained_in_a_graph_of_tensorflow_1(recipe):
    data = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    with tf.Graph().as_default(), tf.compat.v1.Session():
        model = klt.quantize_model(tf_keras.Sequential([tf_keras.layers.Dense(10, input_shape=(5,))]), recipe)
        model.compile("sgd", "mse")
        model.fit(data, np.zeros((16, 10)), batch_size=8, epochs=1, verbose=0)
        names = [weight.name for weight in model.weights]
        state = dict(zip(names, model.get_weights(), strict=True))
    counts = [value for name, value in state.items() if "count" in name]
    assert counts == [2.0, 2.0][: len(counts)]
    assert counts
    if recipe == "sq-twn":
        (draws,) = (value for name, value in state.items() if "seed" in name)
        assert draws[1] == 2  # one draw a step


def test_a_draw_moves_the_generator_on_in_a_graph_of_tensorflow_1():
    adapter = klt.LowbitQuantizer(Stochastic("ternary", seed=3), (-1,))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        layer = tf_keras.layers.Layer()
        variables = adapter.build((4, 6), "kernel", layer)
        kernel = tf.constant(np.random.default_rng(0).normal(size=(4, 6)), tf.float32)
        result = adapter(kernel, True, variables)
        session.run(tf.compat.v1.global_variables_initializer())
        variables["ratio"].load(0.5, session)
        draws = [session.run(result) for _ in range(4)]
        assert session.run(variables["seed"]).tolist() == [3, 4]
    assert any((one != draws[0]).any() for one in draws[1:])
