"""Integer layers by definition, in NumPy: sums tap by tap, epilogues number by number. The oracle of the ops."""

import numpy as np

from keras_lowbit.numerics import requantization as fp
from keras_lowbit.ops import Requantize, Rescale


def edges(size, window, stride, dilation, padding):
    """Pads in front and behind of one axis under "SAME" or "VALID"."""
    reach = (window - 1) * dilation + 1
    if padding == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def convolve(images, kernel, zero_point, strides=(1, 1), padding="VALID", dilations=(1, 1), groups=1):
    """int64 sums of a convolution, tap by tap."""
    rows, columns, inputs, outputs = kernel.shape
    if isinstance(padding, str):
        padding = [edges(images.shape[k + 1], kernel.shape[k], strides[k], dilations[k], padding) for k in (0, 1)]
    x = np.pad(images.astype(np.int64), ((0, 0), *padding, (0, 0)), constant_values=zero_point) - zero_point
    size = [(x.shape[k + 1] - (kernel.shape[k] - 1) * dilations[k] - 1) // strides[k] + 1 for k in (0, 1)]
    result = np.zeros((len(x), *size, outputs), np.int64)
    each = outputs // groups
    for r, c, group, i, j in np.ndindex(*size, groups, rows, columns):
        mine, theirs = slice(group * each, (group + 1) * each), slice(group * inputs, (group + 1) * inputs)
        pixel = x[:, r * strides[0] + i * dilations[0], c * strides[1] + j * dilations[1], theirs]
        result[:, r, c, mine] += pixel @ kernel[i, j, :, mine].astype(np.int64)
    return result


def finish(total, bias=None, output=None, residual=None):
    """What the epilogue makes of int64 sums: int32, float32, or int8 with a residual addition."""
    total = fp.wrap(total + (0 if bias is None else np.asarray(bias, np.int64)))
    if output is None:
        return total.astype(np.int32)
    if isinstance(output, Rescale):
        return np.clip(total.astype(np.float32) * np.float32(output.scale), np.float32(output.low), output.high)
    codes = np.clip(fp.wrap(_scaled(total, output) + output.zero_point), output.low, output.high)
    return codes.astype(np.int8) if residual is None else _added(codes, output.zero_point, residual)


def _scaled(total, output: Requantize):
    if output.factor is None:
        return fp.multiply_by_quantized_multiplier(total, _factor(output.multiplier, output.shift))
    real = fp.round_half_away(total * np.asarray(output.factor, np.float64))
    return np.where(np.abs(real) < 2.0**31, real, -(2.0**31)).astype(np.int64)


def _added(codes, zero_point, add):
    own = fp.multiply_by_quantized_multiplier((codes - zero_point) << 20, _factor(*add.first))
    other = np.asarray(add.codes, np.int64) - add.zero_point
    total = fp.wrap(own + fp.multiply_by_quantized_multiplier(other << 20, _factor(*add.second)))
    return fp.requantize(total, _factor(*add.output), add.output_zero_point, (add.low, add.high))


def _factor(multiplier, shift):
    return fp.Multiplier(np.asarray(multiplier, np.int64), np.asarray(shift, np.int64))


def pool(x, window, strides, pads, code, low, high):
    """The largest code of each window, pixel by pixel."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=code)
    size = [(x.shape[k + 1] - window[k]) // strides[k] + 1 for k in (0, 1)]
    y = np.empty((x.shape[0], *size, x.shape[3]), np.int8)
    for i, j in np.ndindex(*size):
        top, left = i * strides[0], j * strides[1]
        y[:, i, j] = x[:, top : top + window[0], left : left + window[1]].max((1, 2))
    return np.clip(y, low, high)
