"""Operations of `keras.ops` as the layers and compositions that have integers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.analysis.supported import MOST_SUMMED
from keras_lowbit.convert.expansion.arithmetic import log_of_sum
from keras_lowbit.convert.expansion.axes import LastAxis, axes_of
from keras_lowbit.convert.expansion.normalizations import sum_of_squares, unit_length
from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, expands, sizes_of
from keras_lowbit.keras_graph.calls import Call


@expands("MaxPool", "AveragePool")
def pool(call: Call) -> Compose | None:
    """The pool's layer."""
    operation, axes = call.operation, len(call.tensors[0].shape) - 2
    name = f"{call.kind.replace('Pool', 'Pooling')}{axes}D"
    if operation.data_format != "channels_last" or not hasattr(keras.layers, name) or axes == 3:
        return None
    strides = operation.pool_size if operation.strides is None else operation.strides

    def make(**options: Any) -> Any:
        return getattr(keras.layers, name)(operation.pool_size, strides, operation.padding, **options)

    return lambda parts, values: parts.layer("", make)(values[call.inputs[0]])


@expands("Conv", "DepthwiseConv")
def convolution(call: Call) -> Compose | None:
    """A convolution with a constant kernel: its layer, without a bias."""
    operation, constants = call.operation, [np.asarray(value) for value in call.constants() if np.ndim(value) > 2]
    axes = len(call.tensors[0].shape) - 2
    if len(call.inputs) != 1 or len(constants) != 1 or operation.data_format != "channels_last" or axes > 2:
        return None
    kernel, size = constants[0].astype(np.float32), constants[0].shape[:axes]
    how: dict[str, Any] = {"strides": operation.strides, "padding": operation.padding, "use_bias": False}
    how["dilation_rate"] = operation.dilation_rate
    if call.kind == "Conv":
        how |= {"filters": kernel.shape[-1], "groups": call.tensors[0].shape[-1] // kernel.shape[-2]}
    else:
        how["depth_multiplier"] = kernel.shape[-1]
    layer = getattr(keras.layers, f"{call.kind}{axes}D")

    def make(**options: Any) -> Any:
        return layer(kernel_size=size, **how, **options)

    return lambda parts, values: parts.layer("", make, {"kernel": kernel})(values[call.inputs[0]])


@expands("AverageOverAxes")
def average(call: Call) -> Compose | None:
    """A mean, if it has no weights."""
    axes, operation = axes_of(call.operation.axis, len(call.tensors[0].shape)), call.operation
    if len(call.inputs) != 1 or any(np.ndim(value) for value in call.constants()) or axes is None:
        return None
    return lambda parts, values: parts.named(ops.mean(values[call.inputs[0]], axis=operation.axis))


@expands("Normalize")
def normalize(call: Call) -> Compose | None:
    """``x / max(|x|, epsilon)`` over some axes: `UnitNormalization`."""
    axes, sizes = _summed(call), sizes_of(call.tensors[0])
    if axes is None or sizes is None or call.operation.order != 2:
        return None
    return lambda parts, values: unit_length(parts, values[call.inputs[0]], axes)


@expands("Norm")
def norm(call: Call) -> Compose | None:
    """``sqrt(sum x^2)`` over some axes: an exact sum, and its root."""
    axes, operation = _summed(call), call.operation
    if axes is None or operation.ord not in ((None, 2, 2.0) if len(axes) == 1 else (None, "fro")):
        return None

    def compose(parts: Parts, values: Values) -> Any:
        rows = LastAxis(parts, values[call.inputs[0]], axes).rows
        root = parts.named(ops.sqrt(sum_of_squares(parts, rows)), "root")
        return parts.named(ops.reshape(root, (-1, *call.results[0].shape[1:])))

    return compose


@expands("Logsumexp")
def log_of_sum_of_powers(call: Call) -> Compose | None:
    """``max(x) + log(sum(exp(x - max(x))))`` over some axes."""
    axes = _summed(call)
    if axes is None:
        return None

    def compose(parts: Parts, values: Values) -> Any:
        rows = LastAxis(parts, values[call.inputs[0]], axes).rows
        largest = parts.named(ops.max(rows, axis=-1, keepdims=True), "largest")
        level = log_of_sum(parts, parts.named(ops.subtract(rows, largest), "below"))
        found = parts.named(ops.add(largest, level), "found")
        return parts.named(ops.reshape(found, (-1, *call.results[0].shape[1:])))

    return compose


def _summed(call: Call) -> tuple[int, ...] | None:
    """The axes of a sum of squares or powers that int32 holds; None where there is no form in integers."""
    sizes, axis = sizes_of(call.tensors[0]), call.operation.axis
    axes = axes_of(axis, len(call.tensors[0].shape))
    if sizes is None or axes is None or str(call.tensors[0].dtype) == "float16":
        return None
    return axes if int(np.prod([sizes[axis - 1] for axis in axes])) <= MOST_SUMMED else None
