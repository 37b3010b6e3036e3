"""Reference kernels that sum: convolutions, dense layers, pooling, mean.

Activations are NHWC, kernels have Keras layouts. Sums are int32, or int64 where the bias is, exact as in `exact_sums`, before
they become codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.graph import Tensor
from keras_lowbit.deploy.graph.operations.windows import same_padding
from keras_lowbit.deploy.reference import exact_sums
from keras_lowbit.deploy.reference.call import NodeCall, kernel, scale_of
from keras_lowbit.numerics import requantization as fp


@kernel("conv2d")
def conv2d(call: NodeCall) -> NDArray[Any]:
    """`sum_{i,j,c} (x - z) * w + bias`, requantised per channel. kernel [KH, KW, IC/groups, OC]."""
    image, kernel = _padded(call, _centered(call), call.arrays[1].shape), call.arrays[1]
    strides, dilation = _steps(call)
    return _requantize_sum(call, exact_sums.conv2d(image, kernel, strides, dilation, call.attributes.get("groups", 1)))


@kernel("depthwise_conv2d")
def depthwise_conv2d(call: NodeCall) -> NDArray[Any]:
    """Each input channel c with its own windows; output channel `c * DM + m`. kernel [KH, KW, C, DM]."""
    image, kernel = _padded(call, _centered(call), call.arrays[1].shape), call.arrays[1]
    return _requantize_sum(call, exact_sums.depthwise(image, kernel, *_steps(call)))


@kernel("transpose_conv")
def transpose_conv(call: NodeCall) -> NDArray[Any]:
    """Every input pixel adds `(x - z) * w` into a window of the output. kernel [KH, KW, OC, IC]."""
    kernel, image = call.arrays[1], _centered(call)
    (batch, *size, _), strides = image.shape, call.attributes["strides"]
    out_size, window = call.attributes["output_shape"], kernel.shape[:2]
    before = [max((size[k] - 1) * strides[k] + window[k] - out_size[k], 0) // 2 for k in (0, 1)]
    full = [max((size[k] - 1) * strides[k] + window[k], before[k] + out_size[k]) for k in (0, 1)]
    total = np.zeros((batch, *full, kernel.shape[2]), exact_sums.sum_type(image))
    for i, j in np.ndindex(*window):
        rows = slice(i, i + (size[0] - 1) * strides[0] + 1, strides[0])
        columns = slice(j, j + (size[1] - 1) * strides[1] + 1, strides[1])
        total[:, rows, columns] += exact_sums.matmul(image, kernel[i, j].T)
    inside = tuple(slice(b, b + o) for b, o in zip(before, out_size, strict=True))
    return _requantize_sum(call, total[:, *inside])


@kernel("fully_connected")
def fully_connected(call: NodeCall) -> NDArray[Any]:
    """`round_half_away(sum_c (x - z) * w * factor) + zero_point` on the last axis. kernel [IC, OC].

    LiteRT's *reference* kernel multiplies a dense layer's sum by the factor in double and rounds once; its
    convolutions use fixed point and round twice. So a 1x1 convolution and the same layer as FULLY_CONNECTED
    may differ by one step where the true value is all but half a step.
    """
    factor, zero_point, limits = effective_scale(call), call.output.zero_point, call.limits()

    def once(rows: np.ndarray) -> NDArray[Any]:
        scaled = fp.round_half_away(rows * factor)
        codes = np.where(np.abs(scaled) < 2.0**31, scaled, fp.INT32_MIN).astype(np.int64)
        return np.clip(fp.wrap(codes + zero_point), *limits).astype(call.output.dtype)

    return fp.by_rows(once, _with_bias(call, exact_sums.matmul(_centered(call), call.arrays[1])))


@kernel("batch_matmul")
def batch_matmul(call: NodeCall) -> NDArray[Any]:
    """`sum_k (a - z_a) * (b - z_b)` for the last two axes, each transposed or not; requantised by `s_a * s_b / s_out`."""
    first, second = (
        np.swapaxes(_centered(call, index), -1, -2) if call.attributes[key] else _centered(call, index)
        for index, key in enumerate(("transpose_a", "transpose_b"))
    )
    total, factor = exact_sums.stacked(first, second), fp.quantize_multiplier(product_scale(call))
    return _requantized(call, total, factor)


def product_scale(call: NodeCall) -> np.float64:
    """`s_a * s_b / s_out`, the product of the scales in float32, as LiteRT has it."""
    first, second = map(scale_of, call.inputs)
    return np.float64(first * second) / np.float64(scale_of(call.output))


@kernel("max_pool2d")
def max_pool2d(call: NodeCall) -> NDArray[Any]:
    """Largest code of each window; padding never wins."""
    image = call.arrays[0].astype(np.int64)
    window = (*call.attributes["pool_size"], image.shape[3])
    lowest, _ = call.output.range.limits
    best = np.maximum.reduce([tap for _, _, tap in _taps(call, image, window, fill=lowest)])
    return np.clip(best, *call.limits()).astype(call.output.dtype)


@kernel("average_pool2d")
def average_pool2d(call: NodeCall) -> NDArray[Any]:
    """Mean of the codes inside the image, halves away from zero; the zero point plays no part in it."""
    image = call.arrays[0].astype(np.int64)
    window = (*call.attributes["pool_size"], image.shape[3])
    total = sum(tap for _, _, tap in _taps(call, image, window))
    count = np.asarray(sum(tap for _, _, tap in _taps(call, np.ones_like(image[:1, :, :, :1]), window)))
    mean = fp.divide_toward_zero(total + np.where(np.asarray(total) > 0, count // 2, -(count // 2)), count)
    return np.clip(mean, *call.limits()).astype(call.output.dtype)


@kernel("mean")
def mean(call: NodeCall) -> NDArray[Any]:
    """Mean over `axes`: the factor `s_in / (s_out * count)` is formed in integers, then one requantisation.

    LiteRT divides the 31-bit multiplier of `s_in / s_out` by the count, after a shift by floor(log2(count)).
    """
    axes = tuple(call.attributes["axes"])
    total = call.centered().sum(axis=axes, keepdims=True)
    if not call.attributes["keepdims"]:
        total = total.squeeze(axes)
    count = int(np.prod([call.arrays[0].shape[a] for a in axes]))
    return call.requantized(total, mean_factor(call, count))


@kernel("reduce_max")
def reduce_max(call: NodeCall) -> NDArray[Any]:
    """The largest code over `axes`."""
    return _extremum(call, np.max)


@kernel("reduce_min")
def reduce_min(call: NodeCall) -> NDArray[Any]:
    """The smallest code over `axes`."""
    return _extremum(call, np.min)


def _extremum(call: NodeCall, of: Callable[..., np.ndarray]) -> NDArray[Any]:
    return of(call.arrays[0], axis=tuple(call.attributes["axes"]), keepdims=call.attributes["keepdims"])


def mean_factor(call: NodeCall, count: int) -> fp.Multiplier:
    """`s_in / (s_out * count)`, the division by the count done in integers."""
    ratio = fp.quantize_multiplier(np.float64(scale_of(call.inputs[0])) / np.float64(scale_of(call.output)))
    left = min(count.bit_length() - 1, 32, 31 + int(ratio.shift))
    return fp.Multiplier(np.asarray((int(ratio.multiplier) << left) // count), ratio.shift - left)


def _taps(call: NodeCall, image: np.ndarray, kernel_shape: tuple[int, ...], fill: int = 0) -> Iterator[tuple]:
    """For each kernel position (i, j): the pixels that it meets, one per output pixel."""
    size = (kernel_shape[0], kernel_shape[1])
    met = exact_sums.windows(_padded(call, image, kernel_shape, fill), size, *_steps(call))
    for i, j in np.ndindex(*size):
        yield i, j, met[:, :, :, i, j]


def _padded(call: NodeCall, image: np.ndarray, kernel_shape: tuple[int, ...], fill: int = 0) -> np.ndarray:
    """The image with what padding "same" puts around it."""
    if call.attributes["padding"] != "same":
        return image
    strides, dilation = _steps(call)
    pads = [same_padding(image.shape[k + 1], kernel_shape[k], strides[k], dilation[k]) for k in (0, 1)]
    return np.pad(image, ((0, 0), *pads, (0, 0)), constant_values=fill)


def _steps(call: NodeCall) -> tuple[exact_sums.Pair, exact_sums.Pair]:
    """Strides and dilation."""
    return tuple(call.attributes["strides"]), tuple(call.attributes.get("dilation", (1, 1)))


def _centered(call: NodeCall, index: int = 0) -> NDArray[np.floating]:
    """`code - zero_point` of an input, whole numbers: float32 for int8, float64 for int16."""
    kind: Any = np.float32 if call.inputs[index].dtype == "int8" else np.float64
    return call.arrays[index].astype(kind) - kind(call.inputs[index].zero_point)


def _requantize_sum(call: NodeCall, total: exact_sums.Sums) -> NDArray[Any]:
    return _requantized(call, _with_bias(call, total), fp.quantize_multiplier(effective_scale(call)))


def _requantized(call: NodeCall, total: exact_sums.Sums, factor: fp.Multiplier) -> NDArray[Any]:
    """Codes of the output, in LiteRT's arithmetic for the type of the sums."""
    if total.dtype == np.int32:
        return call.requantized(total, factor)
    return np.clip(fp.multiply_wide(total, factor), *call.limits()).astype(call.output.dtype)


def _with_bias(call: NodeCall, total: exact_sums.Sums) -> exact_sums.Sums:
    """The sums plus the biases, in the type of the biases; int32 overflows as LiteRT's does."""
    return total.astype(call.arrays[2].dtype, copy=False) + call.arrays[2] if len(call.arrays) > 2 else total


def effective_scale(call: NodeCall) -> NDArray[np.float64]:
    """`s_in * s_w[c] / s_out`, each float32 scale widened to double first, as LiteRT has it."""
    weights: Tensor = call.inputs[1]
    scales = np.asarray(weights.scale, np.float64)
    return np.float64(scale_of(call.inputs[0])) * scales / np.float64(scale_of(call.output))
