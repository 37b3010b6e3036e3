"""Lambda layers and custom layers of tf_keras as models: what their functions do to tensors, call by call."""

import inspect
from typing import Any

import tensorflow as tf
import tf_keras


def can_be_traced(layer: Any) -> bool:
    """Whether a layer is its function of the inputs and nothing more: no weights, and the same in training."""
    if isinstance(layer, tf_keras.layers.Lambda):
        return True
    return not layer.weights and "training" not in inspect.signature(layer.call).parameters


def traced(layer: Any, node: Any) -> Any:
    """The tf_keras model of the TensorFlow functions that such a layer calls on the tensors of one of its calls.

    Raises TypeError for a function that cannot be followed with symbolic tensors.
    """
    inputs = tf.nest.map_structure(
        lambda tensor: tf_keras.Input(tensor.shape[1:], tensor.shape[0], dtype=tensor.dtype), node.call_args[0]
    )
    is_lambda = isinstance(layer, tf_keras.layers.Lambda)
    try:
        outputs = layer.function(inputs, **layer.arguments) if is_lambda else layer.call(inputs)
        return tf_keras.Model(inputs, outputs, name=layer.name)
    except Exception as error:  # a user's function may fail in any way
        raise TypeError(
            f"The function of {type(layer).__name__} layer {layer.name!r} cannot be followed ({type(error).__name__}: "
            f"{error}). Replace it by layers or by TensorFlow functions of its input. A Lambda function from a file misses "
            "the modules that it was written with: make the model from its code, then load_weights."
        ) from error
