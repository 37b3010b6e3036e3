"""Arithmetic, activations and reductions of TensorFlow, by `keras.ops`."""

from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from keras_lowbit.tfmot.functions.registry import (
    FUNCTIONS,
    Function,
    array_of,
    axis_of,
    is_constant,
    require_default,
    stands_for,
)

_BINARY = {
    "__operators__.add": ops.add,
    "math.add": ops.add,
    "math.subtract": ops.subtract,
    "math.multiply": ops.multiply,
    "math.pow": ops.power,
    "math.maximum": ops.maximum,
    "math.minimum": ops.minimum,
    "math.floordiv": ops.floor_divide,
    "floor_div": ops.floor_divide,
    "math.floormod": ops.mod,
    "math.greater": ops.greater,
    "math.greater_equal": ops.greater_equal,
    "math.less": ops.less,
    "math.less_equal": ops.less_equal,
    "math.equal": ops.equal,
    "__operators__.eq": ops.equal,
    "math.not_equal": ops.not_equal,
    "__operators__.ne": ops.not_equal,
    "math.logical_and": ops.logical_and,
    "math.logical_or": ops.logical_or,
}
_UNARY = {
    "math.negative": ops.negative,
    "math.abs": ops.absolute,
    "math.square": ops.square,
    "math.sqrt": ops.sqrt,
    "math.rsqrt": ops.rsqrt,
    "math.exp": ops.exp,
    "math.log": ops.log,
    "math.log1p": ops.log1p,
    "math.floor": ops.floor,
    "math.ceil": ops.ceil,
    "math.round": ops.round,
    "math.sign": ops.sign,
    "math.sin": ops.sin,
    "math.cos": ops.cos,
    "math.logical_not": ops.logical_not,
    "math.sigmoid": ops.sigmoid,
    "nn.sigmoid": ops.sigmoid,
    "math.tanh": ops.tanh,
    "math.softplus": ops.softplus,
    "nn.softplus": ops.softplus,
    "nn.softsign": ops.softsign,
    "math.erf": ops.erf,
    "math.atan": ops.arctan,
    "math.reciprocal": ops.reciprocal,
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.elu": ops.elu,
    "nn.selu": ops.selu,
    "zeros_like": ops.zeros_like,
    "ones_like": ops.ones_like,
    "stop_gradient": ops.stop_gradient,
}


def _binary(function: Function) -> Function:
    def call(x: Any, y: Any, name: Any = None) -> Any:
        return function(array_of(x, y), array_of(y, x))

    return call


def _unary(function: Function) -> Function:
    def call(*args: Any, name: Any = None, **kwargs: Any) -> Any:
        (value,) = (*args, *kwargs.values())  # TensorFlow calls it x, input, features or a
        return function(value)

    return call


FUNCTIONS |= {symbol: _binary(function) for symbol, function in _BINARY.items()}
FUNCTIONS |= {symbol: _unary(function) for symbol, function in _UNARY.items()}


@stands_for("math.truediv", "math.divide")
def _divide(x: Any, y: Any, name: Any = None) -> Any:
    if not is_constant(y):
        return ops.divide(x, y)
    # A product runs in int8, a division in float. The reciprocal is rounded: up to one unit in the last place.
    return ops.multiply(x, np.reciprocal(np.asarray(y, "float32")))


@stands_for("math.divide_no_nan")
def _divide_no_nan(x: Any, y: Any, name: Any = None) -> Any:
    none = ops.equal(y, 0)
    return ops.where(none, ops.zeros_like(x), ops.divide(x, ops.where(none, ops.ones_like(y), y)))


@stands_for("identity")
def _identity(input: Any, name: Any = None) -> Any:
    return input


@stands_for("math.squared_difference")
def _squared_difference(x: Any, y: Any, name: Any = None) -> Any:
    return ops.square(ops.subtract(x, y))


@stands_for("math.add_n")
def _add_n(inputs: Any, name: Any = None) -> Any:
    total = inputs[0]
    for value in inputs[1:]:
        total = ops.add(total, value)
    return total


@stands_for("clip_by_value")
def _clip(t: Any, clip_value_min: Any, clip_value_max: Any, name: Any = None) -> Any:
    return ops.clip(t, float(clip_value_min), float(clip_value_max))


@stands_for("nn.bias_add")
def _bias_add(value: Any, bias: Any, data_format: str | None = None, name: Any = None) -> Any:
    if data_format not in (None, "N...C", "NHWC", "NDHWC"):
        bias = ops.reshape(array_of(bias, value), (-1,) + (1,) * (len(value.shape) - 2))
    return ops.add(value, array_of(bias, value))


@stands_for("linalg.matmul")
def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, **others: Any) -> Any:
    require_default(others, "linalg.matmul")
    return ops.matmul(_swapped(a) if transpose_a else a, _swapped(b) if transpose_b else b)


def _swapped(value: Any) -> Any:
    return ops.swapaxes(value, -1, -2)


@stands_for("einsum")
def _einsum(equation: str, *inputs: Any, name: Any = None, optimize: Any = None) -> Any:
    return ops.einsum(equation, *inputs)


@stands_for("cast")
def _cast(x: Any, dtype: Any, name: Any = None) -> Any:
    return ops.cast(x, tf.as_dtype(dtype).name)


@stands_for("where")
def _where(condition: Any, x: Any = None, y: Any = None, name: Any = None) -> Any:
    return ops.where(condition, x, y)


# ---------------------------------------------------------------- activations


@stands_for("nn.silu", "nn.swish")
def _silu(features: Any, beta: float = 1.0, name: Any = None) -> Any:
    return ops.silu(features) if float(beta) == 1 else ops.multiply(features, ops.sigmoid(ops.multiply(features, beta)))


@stands_for("nn.leaky_relu")
def _leaky_relu(features: Any, alpha: float = 0.2, name: Any = None) -> Any:
    return ops.leaky_relu(features, float(alpha))


@stands_for("nn.gelu")
def _gelu(features: Any, approximate: bool = False, name: Any = None) -> Any:
    return ops.gelu(features, approximate)


@stands_for("nn.softmax")
def _softmax(logits: Any, axis: int | None = None, name: Any = None, dim: int | None = None) -> Any:
    return ops.softmax(logits, next((a for a in (axis, dim) if a is not None), -1))


@stands_for("nn.log_softmax")
def _log_softmax(logits: Any, axis: int | None = None, name: Any = None) -> Any:
    return ops.log_softmax(logits, -1 if axis is None else axis)


@stands_for("math.l2_normalize", "nn.l2_normalize")
def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12, name: Any = None, dim: Any = None) -> Any:
    squares = ops.sum(ops.square(x), axis_of(axis if dim is None else dim), keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(squares, float(epsilon))))


# ---------------------------------------------------------------- reductions

_REDUCTIONS = {
    "mean": ops.mean,
    "sum": ops.sum,
    "max": ops.max,
    "min": ops.min,
    "prod": ops.prod,
    "std": ops.std,
    "variance": ops.var,
    "any": ops.any,
    "all": ops.all,
    "logsumexp": ops.logsumexp,
}


def _reduction(function: Function) -> Function:
    def call(input_tensor: Any, axis: Any = None, keepdims: bool = False, name: Any = None) -> Any:
        return function(input_tensor, axis=axis_of(axis), keepdims=bool(keepdims))

    return call


FUNCTIONS |= {f"math.reduce_{name}": _reduction(function) for name, function in _REDUCTIONS.items()}


@stands_for("norm")
def _norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: bool = False, name: Any = None) -> Any:
    if ord not in ("euclidean", 2):
        raise TypeError(f"ord is {ord!r}")
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axis_of(axis), keepdims=bool(keepdims)))


@stands_for("math.argmax")
def _argmax(input: Any, axis: int | None = None, output_type: Any = tf.int64, name: Any = None, **old: Any) -> Any:
    axis = old.get("dimension", axis)
    return ops.cast(ops.argmax(input, 0 if axis is None else int(axis)), tf.as_dtype(output_type).name)


@stands_for("one_hot")
def _one_hot(indices: Any, depth: int, **others: Any) -> Any:
    require_default(others, "one_hot")
    return ops.one_hot(indices, int(depth))
