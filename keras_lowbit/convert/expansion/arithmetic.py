"""Arithmetic as products, sums and averages: quotients, sums and products of axes, variances, constants, slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.analysis.functions import DIVISIONS, is_function, starts_with_tensor
from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.convert.analysis.supported import MOST_SUMMED
from keras_lowbit.convert.expansion.attention import masked_softmax
from keras_lowbit.convert.expansion.axes import LastAxis, axes_of
from keras_lowbit.convert.expansion.moves import moved_by_function
from keras_lowbit.convert.expansion.normalizations import centered, sum_of_squares
from keras_lowbit.convert.expansion.registry import EXPANSIONS, Compose, Parts, Values, array, expands, sizes_of
from keras_lowbit.keras_graph.calls import Call, calls_of
from keras_lowbit.keras_graph.copies import Copies, function_name
from keras_lowbit.keras_graph.depth import build_model
from keras_lowbit.layers import AddConstant, ChannelAffine, MultiplyConstant

_MOST_FACTORS, _FEW_FACTORS = 64, 16  # of a product of all places of an axis, or of several
_MOST_AXES = 4  # of tensors of which LiteRT takes one from the other


@expands(*DIVISIONS)
def quotient(call: Call) -> Compose | None:
    """``a / b`` of two tensors: a times the reciprocal of b. By a constant of every position: a product."""
    if len(call.inputs) != 2:
        return constant_of_every_position(call)

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
    """The exact sum of squares of what differs from the mean, divided. Several axes are joined, another than the last moved."""
    axes, sizes = _axes(call), sizes_of(call.tensors[0])
    count = 0 if sizes is None or axes is None else math.prod(sizes[axis - 1] for axis in axes)
    if axes is None or not 1 < count <= MOST_SUMMED or (axes == (1,) and len(call.tensors[0].shape) == 2):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        form = LastAxis(parts, values[call.inputs[0]], axes)
        total = sum_of_squares(parts, centered(parts, form.rows), call.operation.keepdims and not form.moves)
        return _shaped(parts, call, ops.multiply(total, 1 / count), "mean_square")

    return compose


def _shaped(parts: Parts, call: Call, made: Any, part: str) -> Any:
    """The result of a call from values of it in a row for each sample. part: the name of what made them."""
    wanted = call.results[0].shape[1:]
    if made.shape[1:] == wanted:
        return parts.named(made)
    return parts.named(ops.reshape(parts.named(made, part), (-1, *wanted)))


@expands("Std")
def deviation(call: Call) -> Compose | None:
    """The root of the variance."""
    compose = variance(call)
    if compose is None:
        return None
    return lambda parts, values: parts.named(ops.sqrt(compose(parts.within("variance"), values)))


@expands("Prod")
def product(call: Call) -> Compose | None:
    """Products of two halves of what is multiplied, until one place is left. Several axes are joined first."""
    axes, sizes = _axes(call), sizes_of(call.tensors[0])
    count = 0 if sizes is None or axes is None else math.prod(sizes[axis - 1] for axis in axes)
    if axes is None or not 1 < count <= (_MOST_FACTORS if len(axes) == 1 else _FEW_FACTORS):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        x, axis = values[call.inputs[0]], axes[0]
        if len(axes) > 1:
            x, axis = LastAxis(parts, x, axes).rows, -1
        columns = list(ops.unstack(x, axis=axis))
        parts.named(columns[0], "places")
        while len(columns) > 2:
            pairs, level = zip(columns[::2], columns[1::2], strict=False), f"of_{len(columns)}"
            made = [parts.named(ops.multiply(*pair), f"{level}_{k}") for k, pair in enumerate(pairs)]
            columns = made + columns[len(columns) // 2 * 2 :]
        return _shaped(parts, call, ops.multiply(*columns), "of_2_0")

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
    return axes_of(axis if axis is None or isinstance(axis, int) else sorted(a % rank for a in axis), rank)


@expands("Add", "Subtract", "Multiply")
def elementwise(call: Call) -> Compose | None:
    """A constant of every position; a product of many; tensors of several shapes, or of more axes than LiteRT adds."""
    if call.kind == "Multiply" and len(call.inputs) > 2:
        return _of_pairs(call, ops.multiply)
    if call.kind == "Add" and len(call.inputs) > 2 and len({tuple(tensor.shape) for tensor in call.tensors}) > 1:
        return _of_pairs(call, ops.add)
    return _in_rows(call) if len(call.inputs) == 2 else constant_of_every_position(call)


def _of_pairs(call: Call, operation: Callable[[Any, Any], Any]) -> Compose:
    """Two of many tensors, then the result and the next."""

    def compose(parts: Parts, values: Values) -> Any:
        made, *others = (values[key] for key in call.inputs)
        for place, other in enumerate(others, 2):
            made = parts.named(operation(made, other), "" if place > len(others) else f"of_{place}")
        return made

    return compose


def _in_rows(call: Call) -> Compose | None:
    """Two tensors of one shape of many axes as rows of their last one."""
    sizes, others = (sizes_of(tensor) for tensor in call.tensors)
    if sizes is None or sizes != others or len(sizes) < _MOST_AXES:
        return None
    *outer, last = sizes
    operation = {"Add": ops.add, "Subtract": ops.subtract, "Multiply": ops.multiply}[call.kind]

    def compose(parts: Parts, values: Values) -> Any:
        shape = (-1, math.prod(outer), last)
        rows = [parts.named(ops.reshape(values[key], shape), f"rows_{place}") for place, key in enumerate(call.inputs)]
        return parts.named(ops.reshape(parts.named(operation(*rows), "made"), (-1, *outer, last)))

    return compose


def constant_of_every_position(call: Call) -> Compose | None:
    """A tensor and a constant that is neither one number nor one for each channel; by which it is divided, its reciprocal."""
    constants = [np.asarray(value) for value in call.constants() if value is not None]
    sizes = sizes_of(call.tensors[0])
    if len(call.inputs) != 1 or len(constants) != 1 or sizes is None or call.results[0].shape != call.tensors[0].shape:
        return None
    constant, kind = constants[0].astype(np.float32), type(call.operation).__name__
    constant = constant.reshape((1,) * (len(sizes) + 1 - constant.ndim) + constant.shape)[0]
    turned, divides = kind not in ("Add", "Multiply") and not starts_with_tensor(call), kind in DIVISIONS
    if math.prod(constant.shape[:-1]) == 1 or turned or (divides and not constant.all()):
        return None
    made = AddConstant if kind in ("Add", "Subtract") else MultiplyConstant
    constant = -constant if kind == "Subtract" else 1 / constant if divides else constant
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
    """Of another axis than the last, or several, which are moved there and back; or with a mask."""
    axes, rank = axes_of(getattr(call.operation, "axis", -1), len(call.tensors[0].shape)), len(call.tensors[0].shape)
    if call.arguments.kwargs.get("mask") is not None:
        return masked_softmax(call) if axes == (rank - 1,) else None
    if axes in (None, (rank - 1,)) or sizes_of(call.tensors[0]) is None or len(call.inputs) != 1:
        return None

    def compose(parts: Parts, values: Values) -> Any:
        form = LastAxis(parts, values[call.inputs[0]], axes or ())
        return form.back(parts.named(ops.softmax(form.rows, axis=-1), "last_axis"))

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
        return parts.named(ops.subtract(below, log_of_sum(parts, below)))

    return compose


def log_of_sum(parts: Parts, below: Any) -> Any:
    """``log(sum(exp(x)))`` of the last axis, of values of which the largest is 0."""
    powers = parts.named(ops.exp(below), "powers")
    mean = parts.named(ops.mean(powers, axis=-1, keepdims=True), "mean")
    rest = parts.named(ops.log(mean), "log")
    return parts.named(ops.add(rest, math.log(below.shape[-1])), "level")


@expands("Lambda")
def function_of_operations(call: Call) -> Compose | None:
    """A Lambda of one tensor that is written in `keras.ops`: the operations themselves."""
    layer = call.operation
    if len(call.inputs) != 1 or sizes_of(call.tensors[0]) is None or is_function(call, "Lambda"):
        return None
    entry = keras.Input(batch_shape=call.tensors[0].shape, dtype=call.tensors[0].dtype)
    try:
        traced = build_model(entry, layer.function(entry, **(layer.arguments or {})))
    except (
        Exception
    ):  # whatever a function of TensorFlow, or of shapes, says of a symbolic tensor: it may only move values
        return moved_by_function(call)
    if not isinstance(traced.output, keras.KerasTensor) or not all(map(_is_function_alone, calls_of(traced).calls)):
        return None
    graph = calls_of(traced)

    def compose(parts: Parts, values: Values) -> Any:
        copies, found = Copies(), {graph.inputs[0]: values[call.inputs[0]]}
        for inner in graph.calls:
            rule = EXPANSIONS.get(stock_kind(inner.operation))
            stands = rule(inner) if rule is not None and len(inner.results) == 1 else None
            if stands is None:
                made = copies.call(inner, found)[0]
            else:
                made = [stands(parts.within(inner.name), found)]
            found |= zip(inner.outputs, made, strict=True)
        return parts.named(found[graph.outputs[0]])

    return compose


def _is_function_alone(call: Call) -> bool:
    """Whether a call computes with nothing that trains: a layer or variable would be the user's own."""
    return not call.is_layer and not any(isinstance(constant, keras.Variable) for constant in call.constants())
