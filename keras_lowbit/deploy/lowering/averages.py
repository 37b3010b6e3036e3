"""Averages: the exact sum is brought to the range behind it by one rounding.

Over whole axes that is LiteRT's MEAN. Over windows it is a depthwise convolution with equal weights, which are one over
the pixels of a window; where windows reach over the image's border and hold fewer pixels, each kind of window has its own
strip of the image. AVERAGE_POOL_2D rounds to the steps of its input: it serves where no range of its own stands behind.
"""

from typing import Any, NamedTuple

import numpy as np

from keras_lowbit.convert.analysis.operations import picks_pixels
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.graph.operations.windows import same_padding, windows
from keras_lowbit.deploy.lowering.data_movement import as_image, mover, pool
from keras_lowbit.deploy.lowering.registry import lowers
from keras_lowbit.deploy.lowering.state import Lowering, emits
from keras_lowbit.deploy.lowering.values import DeferredOp, FloatTensor
from keras_lowbit.keras_graph.calls import Call

# LiteRT multiplies a sum and then shifts it, and rounds both times. With ones the first rounding may be a quarter of a step; 6
# more bits in the sum make it a small part of one.
WEIGHT = 64


@lowers("GlobalAveragePooling1D", "GlobalAveragePooling2D")
def lower_global_average(state: Lowering, call: Call) -> bool:
    """The mean over all axes but batch and channels."""
    axes = [*range(1, len(call.tensors[0].shape) - 1)]
    return _defer(state, call, "mean", {"axes": axes, "keepdims": bool(call.operation.keepdims)})


@lowers("Mean")
def lower_mean(state: Lowering, call: Call) -> bool:
    """`keras.ops.mean` over any axes but the batch."""
    axis, rank = call.operation.axis, len(call.tensors[0].shape)
    axes = sorted(a % rank for a in ([axis] if isinstance(axis, int) else axis))
    return _defer(state, call, "mean", {"axes": axes, "keepdims": bool(call.operation.keepdims)})


@lowers("AveragePooling1D", "AveragePooling2D")
def lower_average_pool(state: Lowering, call: Call) -> bool:
    """Averages of windows; windows of one pixel only leave pixels out."""
    layer = call.operation
    if picks_pixels(layer):
        return mover(lambda state, call, tensor: pool(state, call, tensor, state.builder.average_pool2d))(state, call)
    window, strides = tuple(layer.pool_size), tuple(layer.strides)
    return _defer(state, call, "windows", {"window": window, "strides": strides, "padding": layer.padding})


def _defer(state: Lowering, call: Call, op: str, attributes: dict[str, Any]) -> bool:
    if isinstance(state.values[call.inputs[0]], FloatTensor):
        return False
    source = state.stored(call.inputs[0], call)
    return state.defer(call, op, source, attributes=attributes, fallback=state.builder.tensor(source.tensor).range)


class Strip(NamedTuple):
    """Windows along one axis that hold equally many pixels. start: first pixel of the first one."""

    start: int
    pixels: int
    number: int


def strips(size: int, window: int, stride: int, padding: str) -> list[Strip]:
    """All windows along an axis of `size` pixels, as few strips as possible."""
    before = same_padding(size, window, stride)[0] if padding == "same" else 0
    found: list[Strip] = []
    for i in range(windows(size, window, stride, padding)):
        start = i * stride - before
        first, end = max(start, 0), min(start + window, size)
        last = found[-1] if found else None
        if last is not None and (last.pixels, last.start + last.number * stride) == (end - first, first):
            found[-1] = last._replace(number=last.number + 1)
        else:
            found.append(Strip(first, end - first, 1))
    return found


@emits("windows")
def emit_windows(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """The averages of windows of an image, or of a signal as an image of one row."""
    (source,), builder, attributes, name = (
        deferred.inputs,
        state.builder,
        deferred.attributes,
        state.name(deferred.path),
    )
    window, strides, padding = attributes["window"], attributes["strides"], attributes["padding"]
    flat = len(window) == 1
    image = as_image(state, source, name) if flat else source
    inner = state.name(f"{name}/pool") if flat else name
    window, strides = (1,) * flat + window, (1,) * flat + strides
    if builder.tensor(source).range == grid:
        made = builder.average_pool2d(image, inner, window, strides, padding)
    else:
        sizes = state.static_shape(image)
        rows, columns = (strips(sizes[k], window[k], strides[k], padding) for k in (0, 1))
        made = _joined(state, image, (rows, columns), strides, grid, inner)
    return builder.reshape(made, name, state.static_shape(made)[1:]) if flat else made


def _joined(
    state: Lowering,
    image: str,
    found: tuple[list[Strip], list[Strip]],
    strides: tuple[int, ...],
    grid: Range,
    name: str,
) -> str:
    """Every kind of window, each computed by itself, in its place."""
    rows, columns = found
    bands = []
    for i, row in enumerate(rows):
        band = f"{name}/rows_{i}" if len(rows) > 1 else name
        parts = []
        for j, column in enumerate(columns):
            part = f"{band}/columns_{j}" if len(columns) > 1 else band
            parts.append(_averaged(state, image, (row, column), strides, grid, part))
        bands.append(parts[0] if len(parts) == 1 else state.builder.concatenation(parts, band, 2))
    return bands[0] if len(bands) == 1 else state.builder.concatenation(bands, name, 1)


def _averaged(
    state: Lowering, image: str, part: tuple[Strip, Strip], strides: tuple[int, ...], grid: Range, name: str
) -> str:
    """The windows of one kind: of the whole image its mean, else a convolution with equal weights."""
    builder, (*sizes, channels) = state.builder, state.static_shape(image)
    pixels = tuple(strip.pixels for strip in part)
    if pixels == tuple(sizes) and all(strip.number == 1 for strip in part):
        return builder.mean(image, grid, name, (1, 2), keepdims=True)
    begin = [strip.start for strip in part]
    end = [s.start + (s.number - 1) * stride + s.pixels for s, stride in zip(part, strides, strict=True)]
    if begin != [0, 0] or end != sizes:
        image = builder.strided_slice(image, f"{name}/strip", [*begin, 0], [*end, channels])
    equal = np.full((*pixels, channels, 1), WEIGHT, np.int8)
    scales = np.full(channels, 1 / (WEIGHT * np.prod(pixels)), np.float32)
    return builder.depthwise_conv2d(image, equal, scales, None, grid, name, strides)
