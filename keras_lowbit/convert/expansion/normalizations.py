"""Normalizations over the values of one sample: mean, deviations, their exact sum of squares, one table, a product.

The sum of squares is a product of matrices, [1, K] times [K, 1], which int32 holds exactly. Squares of 8-bit codes rounded to
8 bits each would lose nearly everything where a few values are large: with one channel in a hundred 20 times as large as the
others the result had -21 dB, with the exact sum 17, as with a float variance.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_lowbit.convert.analysis.supported import MOST_SUMMED
from keras_lowbit.convert.expansion.axes import LastAxis, axes_of
from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of, turned
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import ChannelAffine, InverseRoot


@expands("LayerNormalization")
def layer_normalization(call: Call) -> Compose | None:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta`` over some axes."""
    layer, axes = call.operation, _axes(call)
    if axes is None or getattr(layer, "rms_scaling", False):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        form = LastAxis(parts, values[call.inputs[0]], axes)
        apart, before = centered(parts, form.rows), _before(layer.gamma, layer.beta)
        found = _normalized(parts, apart, layer.epsilon, before or form.inner("normalized"))
        return form.back(_scaled(parts, found, layer.gamma, layer.beta, form.inner("scaled")))

    return compose


@expands("RMSNormalization")
def rms_normalization(call: Call) -> Compose | None:
    """``scale * x / sqrt(mean of squares + epsilon)`` over some axes."""
    layer, axes = call.operation, _axes(call)
    if axes is None:
        return None

    def compose(parts: Parts, values: Values) -> Any:
        form = LastAxis(parts, values[call.inputs[0]], axes)
        found = _normalized(parts, form.rows, layer.epsilon, "normalized")
        return form.back(_scaled(parts, found, layer.scale, None, form.inner("scaled")))

    return compose


@expands("UnitNormalization")
def unit_normalization(call: Call) -> Compose | None:
    """``x / sqrt(sum of squares)`` over some axes."""
    axes = _axes(call)
    return None if axes is None else lambda parts, values: unit_length(parts, values[call.inputs[0]], axes)


def unit_length(parts: Parts, x: Any, axes: tuple[int, ...], epsilon: float = 1e-12) -> Any:
    """``x / sqrt(sum of squares + epsilon)`` over some axes."""
    form = LastAxis(parts, x, axes)
    return form.back(_normalized(parts, form.rows, epsilon, form.inner("normalized"), mean=False))


@expands("GroupNormalization")
def group_normalization(call: Call) -> Compose | None:
    """Of every group of channels over all positions: its values in a row are normalized as by a layer normalization."""
    layer, sizes = call.operation, sizes_of(call.tensors[0])
    if sizes is None or len(sizes) < 2 or layer.axis not in (-1, len(sizes)):
        return None
    *image, channels = sizes
    groups = channels if layer.groups == -1 else layer.groups
    pixels, each = math.prod(image), channels // groups
    if pixels * each > MOST_SUMMED or not _holds_squares(call):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        split = parts.named(ops.reshape(values[call.inputs[0]], (-1, pixels, groups, each)), "split")
        groupwise = parts.named(ops.transpose(split, (0, 2, 1, 3)), "turn")
        rows = parts.named(ops.reshape(groupwise, (-1, groups, pixels * each)), "rows")
        found = _normalized(parts, centered(parts, rows), layer.epsilon, "normalized")
        back = parts.named(ops.reshape(found, (-1, groups, pixels, each)), "unsplit")
        pixelwise = parts.named(ops.transpose(back, (0, 2, 1, 3)), "turn_back")
        joined = parts.named(ops.reshape(pixelwise, (-1, *sizes)), _before(layer.gamma, layer.beta, "image"))
        return _scaled(parts, joined, layer.gamma, layer.beta)

    return compose


def _axes(call: Call) -> tuple[int, ...] | None:
    """The axes over which a call normalizes; None where there is no form in integers."""
    sizes, axes = sizes_of(call.tensors[0]), axes_of(call.operation.axis, len(call.tensors[0].shape))
    if sizes is None or axes is None or math.prod(sizes[axis - 1] for axis in axes) > MOST_SUMMED:
        return None
    return axes if _holds_squares(call) else None


def _holds_squares(call: Call) -> bool:
    """Whether Keras computes in a type that holds sums of squares: float16 ends at 65,504."""
    return str(call.tensors[0].dtype) != "float16"


def centered(parts: Parts, x: Any) -> Any:
    """What differs from the mean of the last axis."""
    mean = parts.named(ops.mean(x, axis=-1, keepdims=True), "mean")
    return parts.named(ops.subtract(x, mean), "centered")


def sum_of_squares(parts: Parts, x: Any, keepdims: bool = True) -> Any:
    """Over the last axis, exact in int32."""
    *outer, size = (int(length) for length in x.shape[1:])
    row = parts.named(ops.reshape(x, (-1, *outer, 1, size)), "row")
    square = parts.named(ops.matmul(row, turned(parts, row, "column")), "square")
    return parts.named(ops.reshape(square, (-1, *outer, 1) if keepdims else (-1, *outer)), "sum")


def _normalized(parts: Parts, x: Any, epsilon: float, part: str, mean: bool = True) -> Any:
    """``x / sqrt(sum x^2 / K + epsilon)``; without `mean` K is 1. part: name of the last operation."""
    factor = 1 / int(x.shape[-1]) if mean else 1.0
    total = sum_of_squares(parts, x)
    root = parts.layer("inverse", lambda **options: InverseRoot(factor, epsilon, **options))
    return parts.named(ops.multiply(x, root(total)), part)


def _before(scale: Any, offset: Any, part: str = "normalized") -> str:
    """The name of what stands before scale and offset, "" where there are none and it is the last."""
    return "" if scale is None and offset is None else part


def _scaled(parts: Parts, x: Any, scale: Any, offset: Any, part: str = "") -> Any:
    """Scale and offset of each channel, or of each value of several axes, where there are any."""
    if scale is None and offset is None:
        return x
    found = {"scale": scale, "offset": offset}
    layer = parts.layer(
        part,
        lambda **options: ChannelAffine(scale is not None, offset is not None, **options),
        {name: array(variable).reshape(-1) for name, variable in found.items() if variable is not None},
    )
    return layer(x)


@expands("LayerScale")
def layer_scale(call: Call) -> Compose | None:
    """The factor of each channel that ConvNeXt's blocks end with."""
    gamma = call.operation.gamma
    return lambda parts, values: _scaled(parts, values[call.inputs[0]], gamma, None)
