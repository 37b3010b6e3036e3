"""What the packed layers compute: TensorFlow, imported when one is called."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lowbit.numerics import requantization as fp
from keras_lowbit.ops import tf_fallback
from keras_lowbit.ops.epilogue import Requantize, Rescale


def reals(layer: Any, inputs: Any) -> Any:
    """`scale * sums + bias` in float32, before the activation."""
    _check_backend(layer)
    if layer.input_range is None:
        outputs = layer.linear(tf.cast(inputs, tf.float32), _real_kernel(layer))
    elif inputs.dtype == tf.int8:
        outputs = _integer(layer, inputs)
    else:
        outputs = _through(layer, tf.cast(inputs, tf.float32))
    return outputs if layer.bias is None else outputs + tf.convert_to_tensor(layer.bias)


def codes(layer: Any, inputs: Any) -> Any:
    """int8 codes of the output range, requantised as LiteRT does; bias rounded to input scale times weight scale."""
    _check_backend(layer)
    given, scale = _codes_of(layer, inputs), tf.cast(tf.convert_to_tensor(layer.scale), tf.float64)
    (source, _), (target, zero_point) = layer.input_range, layer.output_range
    low, high = fp.activation_range(layer.fused_activation, target, zero_point)
    multiplier, shift = _fixed(np.float64(np.float32(source)) * scale / np.float64(np.float32(target)))
    step = tf.cast(tf.cast(scale, tf.float32) * np.float32(source), tf.float64)
    bias = None if layer.bias is None else tf.cast(tf.round(tf.math.divide_no_nan(_wide(layer.bias), step)), tf.int32)
    return layer.integer(given, Requantize(multiplier, shift, None, zero_point, low, high), bias)


def _through(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    """The integer layer on float inputs, with the gradient of the float layer where nothing saturates."""
    scale, zero_point = layer.input_range
    kernel = _real_kernel(layer)

    @tf.custom_gradient
    def run(x: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                linear = layer.linear(x, kernel)
            inside = (x >= scale * (-128 - zero_point)) & (x <= scale * (127 - zero_point))
            return tape.gradient(linear, x, upstream) * tf.cast(inside, x.dtype)

        return _integer(layer, _codes_of(layer, x)), gradient

    return run(inputs)


def _integer(layer: Any, given: tf.Tensor) -> tf.Tensor:
    scale = tf.convert_to_tensor(layer.scale) * np.float32(layer.input_range[0])
    return layer.integer(given, Rescale(scale))


def _codes_of(layer: Any, inputs: Any) -> tf.Tensor:
    inputs = tf.convert_to_tensor(inputs)
    return inputs if inputs.dtype == tf.int8 else tf_fallback.quantize(inputs, *layer.input_range)


def _real_kernel(layer: Any) -> tf.Tensor:
    """`scale * integer weights` [rows, columns, inputs, outputs] in float32."""
    return tf_fallback.kernel_of(layer.packed(), tf.float32) * tf.convert_to_tensor(layer.scale)


def _fixed(real: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`fixed_point.quantize_multiplier` of a float64 tensor of factors below 2**31."""
    bits = tf.bitcast(real, tf.int64)
    exponent = tf.bitwise.right_shift(bits, tf.fill(tf.shape(bits), tf.constant(52, tf.int64))) - 1022
    mantissa = tf.bitwise.bitwise_or(tf.bitwise.bitwise_and(bits, (1 << 52) - 1), 1 << 52)  # fraction * 2**53
    fixed = tf.bitwise.right_shift(mantissa + (1 << 21), tf.fill(tf.shape(bits), tf.constant(22, tf.int64)))
    carry = tf.cast(fixed == 1 << 31, tf.int64)
    fixed, shift = tf.where(carry > 0, tf.constant(1 << 30, tf.int64), fixed), exponent + carry
    flushed = shift < -31
    zero = tf.zeros_like(fixed)
    return tf.cast(tf.where(flushed, zero, fixed), tf.int32), tf.cast(tf.where(flushed, zero, shift), tf.int32)


def _wide(variable: Any) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variable), tf.float64)


def _check_backend(layer: Any) -> None:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"{layer.name!r} runs on the TensorFlow and JAX backends of Keras, this is {keras.backend.backend()!r}: set "
            "KERAS_BACKEND=tensorflow or jax before Keras is imported"
        )
