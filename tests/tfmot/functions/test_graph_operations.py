"""Operators as TensorFlow 2.0 to 2.3 wrote them into files: operations of a graph, with their constants."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import keras_lowbit.tfmot as klt

OPERATIONS = {
    "x / 255.": lambda x: x / 255.0,
    "1 - x": lambda x: 1.0 - x,
    "relu6": lambda x: tf.nn.relu6(x),
    "mean": lambda x: tf.reduce_mean(x, [1, 2], keepdims=True),
    "slice": lambda x: x[:, 1:, ..., ::-1],
    "new axis": lambda x: x[:, tf.newaxis, 0],
    "concat": lambda x: tf.concat([x, np.ones((2, 8, 8, 1), np.float32)], -1),
    "matmul": lambda x: tf.matmul(x, np.eye(3, 4, dtype=np.float32)),
    "squeeze": lambda x: tf.squeeze(x[..., :1], -1),
    "transpose": lambda x: tf.transpose(x, (0, 3, 1, 2)),
    "cast": lambda x: tf.cast(x, tf.int32),
    "leaky": lambda x: tf.nn.leaky_relu(x, 0.1),
    "clip": lambda x: tf.clip_by_value(x, 0.0, 1.0),
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]),
    "stack": lambda x: tf.stack([x, np.ones((2, 8, 8, 3), np.float32)], 2),
}


def as_layers(function):
    """The layers that stand for a function in such a file: one for each operation, its constants inside."""
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        source = tf.compat.v1.placeholder(tf.float32, (2, 8, 8, 3), "x")
        function(source)
        found = []
        for operation in graph.get_operations():
            if operation.type not in ("Placeholder", "Const", "ConcatV2Axis"):
                given = {i: session.run(t) for i, t in enumerate(operation.inputs) if t.op.type == "Const"}
                found.append((operation.node_def, given))
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operator_of_an_old_file(name):
    inputs = value = tf_keras.Input((8, 8, 3), batch_size=2)
    for node_def, constants in as_layers(OPERATIONS[name]):
        kind = {"node_def": node_def.SerializeToString(), "name": node_def.name, "constants": constants}
        value = tf_keras.layers.deserialize(
            {"class_name": "TensorFlowOpLayer", "config": {**kind, "dtype": "float32"}}
        )(value)
    model = tf_keras.Model(inputs, value)
    data = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(klt.to_keras3(model)(data)), np.asarray(OPERATIONS[name](data)), atol=1e-6)


def test_an_operation_without_a_form_is_named():
    with tf.Graph().as_default():
        node_def = tf.math.lgamma(tf.compat.v1.placeholder(tf.float32, (2, 3, 3))).op.node_def
    kind = {"node_def": node_def.SerializeToString(), "name": "gamma", "constants": {}, "dtype": "float32"}
    inputs = tf_keras.Input((3, 3), batch_size=2)
    value = tf_keras.layers.deserialize({"class_name": "TensorFlowOpLayer", "config": kind})(inputs)
    with pytest.raises(TypeError, match=r"calls tf\.raw_ops\.Lgamma, which has no form in Keras 3"):
        klt.to_keras3(tf_keras.Model(inputs, value))
