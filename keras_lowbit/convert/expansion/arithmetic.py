"""Arithmetic as products, sums and averages: quotients, sums and products of axes, variances, constants, slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.analysis.functions import DIVISIONS, is_function, starts_with_tensor
from keras_lowbit.convert.analysis.supported import MOST_SUMMED
from keras_lowbit.convert.expansion.attention import masked_softmax
from keras_lowbit.convert.expansion.normalizations import centered, sum_of_squares
from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of
from keras_lowbit.keras_graph.calls import Call, calls_of
from keras_lowbit.keras_graph.copies import function_name
from keras_lowbit.layers import AddConstant, ChannelAffine, MultiplyConstant

_MOST_FACTORS = 64  # of a product of all places of an axis
_MOST_AXES = 4  # of tensors of which LiteRT takes one from the other


@expands(*DIVISIONS)
def quotient(call: Call) -> Compose | None:
    """``a / b`` of two tensors: a times the reciprocal of b."""
    if len(call.inputs) != 2:
        return None

    def compose(parts: Parts, values: Values) -> Any:
        first, second = (values[key] for key in call.inputs)
        return parts.named(ops.multiply(first, parts.named(ops.reciprocal(second), "reciprocal")))

    return compose


@expands("CustomScaleLayer")
def scaled_residual(call: Call) -> Compose | None:
    """``a + scale * b``, as the blocks of `keras.applications.InceptionResNetV2` end."""
    scale = float(call.operation.scale)
    if len(call.inputs) != 2:
        return None

    def compose(parts: Parts, values: Values) -> Any:
        first, second = (values[key] for key in call.inputs)
        scaled = parts.named(ops.multiply(second, scale), "scaled")
        return parts.layer("", lambda **options: keras.layers.Add(**options))([first, scaled])

    return compose


@expands("Sum")
def total(call: Call) -> Compose | None:
    """The mean over some axes, times the number of values."""
    axes, sizes = _axes(call), sizes_of(call.tensors[0])
    if axes is None or sizes is None:
        return None
    count, keepdims = math.prod(sizes[axis - 1] for axis in axes), call.operation.keepdims

    def compose(parts: Parts, values: Values) -> Any:
        mean = parts.named(ops.mean(values[call.inputs[0]], axis=axes, keepdims=keepdims), "mean")
        return parts.named(ops.multiply(mean, float(count)))

    return compose


@expands("Var")
def variance(call: Call) -> Compose | None:
    """Of one axis: the exact sum of squares of what differs from the mean, divided. An axis that is not last is moved there."""
    axes, sizes = _axes(call), sizes_of(call.tensors[0])
    if sizes is None or axes is None or len(axes) != 1 or not 1 < len(sizes) <= 3 or sizes[axes[0] - 1] > MOST_SUMMED:
        return None
    axis, rank, keepdims = axes[0], len(sizes) + 1, call.operation.keepdims
    order = [*(place for place in range(rank) if place != axis), axis]

    def compose(parts: Parts, values: Values) -> Any:
        x, last = values[call.inputs[0]], axis == rank - 1
        x = x if last else parts.named(ops.transpose(x, order), "turn")
        total = sum_of_squares(parts, centered(parts, x), keepdims and last)
        if last or not keepdims:
            return parts.named(ops.multiply(total, 1 / sizes[axis - 1]))
        return parts.named(ops.expand_dims(parts.named(ops.multiply(total, 1 / sizes[axis - 1]), "mean_square"), axis))

    return compose


@expands("Std")
def deviation(call: Call) -> Compose | None:
    """The root of the variance."""
    compose = variance(call)
    if compose is None:
        return None
    return lambda parts, values: parts.named(ops.sqrt(compose(parts.within("variance"), values)))


@expands("Prod")
def product(call: Call) -> Compose | None:
    """Of one axis: products of two halves of it, until one place is left."""
    axes, sizes = _axes(call), sizes_of(call.tensors[0])
    if axes is None or sizes is None or len(axes) != 1 or not 1 < sizes[axes[0] - 1] <= _MOST_FACTORS:
        return None
    [axis] = axes

    def compose(parts: Parts, values: Values) -> Any:
        columns, keepdims = list(ops.unstack(values[call.inputs[0]], axis=axis)), call.operation.keepdims
        parts.named(columns[0], "places")
        while len(columns) > 1:
            pairs, level = zip(columns[::2], columns[1::2], strict=False), f"of_{len(columns)}"
            last = len(columns) == 2 and not keepdims
            made = [parts.named(ops.multiply(*pair), "" if last else f"{level}_{k}") for k, pair in enumerate(pairs)]
            columns = made + columns[len(columns) // 2 * 2 :]
        return parts.named(ops.expand_dims(columns[0], axis)) if keepdims else columns[0]

    return compose


@expands("Cumprod")
def running_product(call: Call) -> Compose | None:
    """Each place times the one 1 before it, then 2, then 4: fewer roundings for each than one product behind the other."""
    axis, rank, sizes = call.operation.axis, len(call.tensors[0].shape), sizes_of(call.tensors[0])
    if axis is None or axis % rank == 0 or sizes is None or not 1 < sizes[axis % rank - 1] <= _MOST_FACTORS:
        return None
    return lambda parts, values: products_so_far(values[call.inputs[0]], axis, parts.named)


def products_so_far(x: Any, axis: int, named: Callable[[Any, str], Any] = lambda value, part: value) -> Any:
    """`cumprod` of an axis by slices, products and concatenations. named: given each value and the name of that part."""
    size, before, apart = x.shape[axis], (slice(None),) * (axis % len(x.shape)), 1
    while apart < size:
        first = named(x[(*before, slice(apart))], f"first_{apart}")
        later = named(x[(*before, slice(apart, None))], f"later_{apart}")
        earlier = named(x[(*before, slice(size - apart))], f"earlier_{apart}")
        made = named(ops.multiply(later, earlier), f"products_{apart}")
        last = 2 * apart >= size
        x = named(ops.concatenate([first, made], axis=axis), "" if last else f"of_{2 * apart}")
        apart *= 2
    return x


def _axes(call: Call) -> tuple[int, ...] | None:
    """The axes of a reduction, the batch being 0; None if it is one of them."""
    axis, rank = call.operation.axis, len(call.tensors[0].shape)
    given = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(sorted(a % rank for a in given))
    return None if not axes or 0 in axes else axes


@expands("Add", "Subtract", "Multiply")
def constant_of_every_position(call: Call) -> Compose | None:
    """A tensor and a constant that is neither one number nor one for each channel."""
    constants = [np.asarray(value) for value in call.constants() if value is not None]
    sizes = sizes_of(call.tensors[0])
    if len(call.inputs) != 1 or len(constants) != 1 or sizes is None or call.results[0].shape != call.tensors[0].shape:
        return None
    constant, kind = constants[0].astype(np.float32), type(call.operation).__name__
    constant = constant.reshape((1,) * (len(sizes) + 1 - constant.ndim) + constant.shape)[0]
    if math.prod(constant.shape[:-1]) == 1 or (kind == "Subtract" and not starts_with_tensor(call)):
        return None
    made = MultiplyConstant if kind == "Multiply" else AddConstant
    constant = -constant if kind == "Subtract" else constant
    return lambda parts, values: parts.layer(
        "", lambda **options: made(constant.shape, **options), {"constant": constant}
    )(values[call.inputs[0]])


@expands("PReLU")
def prelu(call: Call) -> Compose | None:
    """``max(x, 0) + alpha * min(x, 0)``, alpha one for each channel, or for every position."""
    alpha, sizes = array(call.operation.alpha), sizes_of(call.tensors[0])
    if sizes is None:
        return None
    by_channel = math.prod(alpha.shape[:-1]) == 1 and alpha.shape[-1] in (1, sizes[-1])

    def compose(parts: Parts, values: Values) -> Any:
        x = values[call.inputs[0]]
        above = parts.named(ops.relu(x), "above")
        below = parts.named(ops.minimum(x, 0.0), "below")
        if by_channel:
            slopes = {"scale": np.broadcast_to(alpha.reshape(-1), sizes[-1:])}
            slope = parts.layer("slope", lambda **options: ChannelAffine(use_offset=False, **options), slopes)
        else:
            slope = parts.layer(
                "slope", lambda **options: MultiplyConstant(alpha.shape, **options), {"constant": alpha}
            )
        last = parts.layer("", lambda **options: keras.layers.Add(**options))
        return last([above, slope(below)])

    return compose


@expands("Softmax")
def softmax(call: Call) -> Compose | None:
    """Of another axis than the last, which is moved there and back; or with a mask."""
    axis, rank = getattr(call.operation, "axis", -1), len(call.tensors[0].shape)
    if call.arguments.kwargs.get("mask") is not None:
        return masked_softmax(call) if isinstance(axis, int) and axis % rank == rank - 1 else None
    if not isinstance(axis, int) or axis % rank in (0, rank - 1) or len(call.inputs) != 1:
        return None
    order = list(range(rank))
    order[axis % rank], order[-1] = order[-1], order[axis % rank]

    def compose(parts: Parts, values: Values) -> Any:
        moved = parts.named(ops.transpose(values[call.inputs[0]], order), "turn")
        return parts.named(ops.transpose(parts.named(ops.softmax(moved, axis=-1), "last_axis"), order))

    return compose


@expands("LogSoftmax", "Activation")
def log_softmax(call: Call) -> Compose | None:
    """``d - log(sum(exp(d)))`` of the last axis with ``d = x - max(x)``, so that nothing is lost in a softmax of 8 bits."""
    operation, sizes = call.operation, sizes_of(call.tensors[0])
    rank = len(call.tensors[0].shape)
    function = getattr(operation, "activation", None)
    if sizes is None or (function is not None and function_name(function) != "log_softmax"):
        return None
    axis = getattr(operation, "axis", -1)
    if not isinstance(axis, int) or axis % rank != rank - 1 or rank > _MOST_AXES:
        return None

    def compose(parts: Parts, values: Values) -> Any:
        x = values[call.inputs[0]]
        below = parts.named(ops.subtract(x, parts.named(ops.max(x, axis=-1, keepdims=True), "largest")), "below")
        powers = parts.named(ops.exp(below), "powers")
        mean = parts.named(ops.mean(powers, axis=-1, keepdims=True), "mean")
        rest = parts.named(ops.log(mean), "log")
        level = parts.named(ops.add(rest, math.log(sizes[-1])), "level")
        return parts.named(ops.subtract(below, level))

    return compose


@expands("Lambda")
def function_of_operations(call: Call) -> Compose | None:
    """A Lambda of one tensor that is written in `keras.ops`: the operations themselves."""
    layer = call.operation
    if len(call.inputs) != 1 or sizes_of(call.tensors[0]) is None or is_function(call, "Lambda"):
        return None
    entry = keras.Input(batch_shape=call.tensors[0].shape, dtype=call.tensors[0].dtype)
    try:
        traced = keras.Model(entry, layer.function(entry, **(layer.arguments or {})))
    except (
        Exception
    ):  # whatever a function of TensorFlow, or of shapes, says of a symbolic tensor: it runs in float, as it is
        return None
    if not isinstance(traced.output, keras.KerasTensor) or not all(map(_is_function_alone, calls_of(traced).calls)):
        return None
    return lambda parts, values: parts.named(layer.function(values[call.inputs[0]], **(layer.arguments or {})))


def _is_function_alone(call: Call) -> bool:
    """Whether a call computes with nothing that trains: a layer or variable would be the user's own."""
    return not call.is_layer and not any(isinstance(constant, keras.Variable) for constant in call.constants())
