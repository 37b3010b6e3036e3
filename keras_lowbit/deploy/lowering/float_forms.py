"""Keras operations that the TensorFlow converter cannot express as Keras writes them, in a form of the same values."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.convert.expansion.arithmetic import products_so_far
from keras_lowbit.keras_graph.calls import Call


def run_convertible(call: Call, values: Mapping[int, Any]) -> list[Any]:
    """The outputs of a call, as `Call.run` gives them, by operations that the converter knows."""
    form = _FORMS.get(stock_kind(call.operation))
    arguments, options = call.fill(values)
    made = None if form is None or len(arguments) != 1 else form(call.operation, arguments[0], options)
    return call.run(values) if made is None else [made]


Options = Mapping[str, Any]  # keyword arguments of the call


def _extreme(operation: Any, x: Any, options: Options) -> Any | None:
    """argmax and argmin: Keras looks for negative zeros by operations on bits first, which LiteRT has not."""
    if keras.backend.backend() != "tensorflow" or operation.axis is None or options:
        return None
    import tensorflow as tf

    find = tf.argmax if type(operation).__name__ == "Argmax" else tf.argmin
    axis, keeps = operation.axis % len(x.shape), operation.keepdims

    def function(value: Any) -> Any:
        found = find(value, axis, output_type=tf.int32)
        return tf.expand_dims(found, axis) if keeps else found

    shape = [1 if place == axis else size for place, size in enumerate(x.shape) if keeps or place != axis]
    return keras.layers.Lambda(function, output_shape=tuple(shape[1:]), name=operation.name)(x)


def _categories(layer: Any, x: Any, options: Options) -> Any | None:
    """CategoryEncoding of rows: the largest or the sum of one-hot rows, in place of a count of bins."""
    if layer.output_mode not in ("multi_hot", "count") or layer.sparse or len(x.shape) != 2:
        return None
    rows, weights = ops.one_hot(ops.cast(x, "int32"), layer.num_tokens, dtype="float32"), options.get("count_weights")
    if layer.output_mode == "multi_hot":
        return ops.max(rows, axis=-2)
    return ops.sum(rows if weights is None else rows * ops.expand_dims(weights, -1), axis=-2)


def _pool_of_volumes(layer: Any, x: Any, options: Options) -> Any | None:
    """A pool of volumes: one of depth and height, as an image with a channel for each column, and one of width."""
    _, depth, height, width, channels = x.shape
    if layer.data_format != "channels_last" or None in (depth, height, width):
        return None
    pool = keras.layers.MaxPooling2D if stock_kind(layer) == "MaxPooling3D" else keras.layers.AveragePooling2D
    window, strides, ends = layer.pool_size, layer.strides, layer.padding
    planes = pool(window[:2], strides[:2], ends)(ops.reshape(x, (-1, depth, height, width * channels)))
    _, depth, height, _ = planes.shape
    rows = pool((1, window[2]), (1, strides[2]), ends)(ops.reshape(planes, (-1, depth * height, width, channels)))
    return ops.reshape(rows, (-1, depth, height, rows.shape[2], channels))


def _products_so_far(operation: Any, x: Any, options: Options) -> Any | None:
    """cumprod, which LiteRT has not."""
    axis = operation.axis
    if axis is None or axis % len(x.shape) == 0 or x.shape[axis] is None or operation.dtype is not None:
        return None
    return products_so_far(x, axis)


_FORMS: dict[str, Callable[[Any, Any, Options], Any | None]] = {
    "Argmax": _extreme,
    "Argmin": _extreme,
    "AveragePooling3D": _pool_of_volumes,
    "CategoryEncoding": _categories,
    "Cumprod": _products_so_far,
    "MaxPooling3D": _pool_of_volumes,
}
