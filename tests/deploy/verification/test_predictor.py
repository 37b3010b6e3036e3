"""Predictor: the outputs of a model, batch after batch; one graph for the shape that most batches have, and no warning."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit.deploy.verification.outputs import Predictor

SIZES = [4] * 7 + [3]


class Said(logging.Handler):
    """What TensorFlow logs."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def said():
    handler = Said()
    tf.get_logger().addHandler(handler)
    yield handler.lines
    tf.get_logger().removeHandler(handler)


class Counted(keras.layers.Dense):
    """How often it is called from Python: once for a graph."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return super().call(inputs)


def test_a_last_smaller_batch_makes_no_second_graph_and_many_models_no_warning(said):
    for _ in range(6):
        entry = keras.Input((5,))
        model = keras.Model(entry, Counted(2)(entry))
        predict, before = Predictor(model), model.layers[-1].calls
        for size in SIZES:
            batch = np.random.default_rng(size).normal(size=(size, 5)).astype(np.float32)
            wanted = batch @ model.layers[-1].kernel.numpy()
            np.testing.assert_allclose(predict([batch])[0], wanted, rtol=1e-5, atol=1e-6)
        assert model.layers[-1].calls - before == 4 + 1 + 1  # without a graph, into one, the last batch
    assert said == []


def test_every_batch_of_another_shape_is_right():
    entry = keras.Input((None, 3))
    model = keras.Model(entry, keras.layers.Softmax()(entry))
    predict = Predictor(model)
    for length in (2, 2, 2, 2, 2, 5, 2, 4):
        batch = np.random.default_rng(length).normal(size=(2, length, 3)).astype(np.float32)
        powers = np.exp(batch.astype(np.float64))
        np.testing.assert_allclose(predict([batch])[0], powers / powers.sum(-1, keepdims=True), rtol=1e-5)
