"""The compiled ops' signatures in plain TensorFlow: the fallback, equal to them in every integer.

Sums are formed in float32 where no partial sum can reach 2**24, else in float64: integers are exact there in any order.
That holds for TensorFlow's CPU kernels, so the sums are placed on the CPU (a GPU may use Winograd or TF32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowbit.ops.call_arguments import Padding
from keras_lowbit.ops.epilogue import LARGEST_SHIFT, Epilogue, Requantize, ResidualAdd
from keras_lowbit.ops.packing import (
    BLOCK_CHANNELS,
    BLOCK_ORDER,
    INT32_MAX,
    K_BLOCK,
    LARGEST_INPUT,
    PackedWeights,
)

EXACT_FLOAT32, EXACT_FLOAT64 = 2**24, 2**53
CPU = "/device:CPU:0"
_CODES = np.arange(-128, 128).astype(np.int8)
Pair = Sequence[int]


def conv2d(
    images: Any, packed: PackedWeights, zero_point: int, strides: Pair, padding: Padding, dilations: Pair
) -> tf.Tensor:
    """int32 sums [N, H', W', C'] of `(x - zero_point) * w`; padding holds the zero point."""
    kernel = kernel_of(packed, sum_dtype(packed.layout.largest_sum))
    edges = padding if isinstance(padding, str) else [[0, 0], *(list(p) for p in padding), [0, 0]]
    with tf.device(CPU):
        images, cut = _pad_to_min_size(tf.convert_to_tensor(images), kernel.shape, padding, dilations)
        centered = _centered(images, zero_point, kernel.dtype)
        return cut(_to_int32(tf.nn.conv2d(centered, kernel, list(strides), edges, dilations=list(dilations))))


def dense(inputs: Any, packed: PackedWeights, zero_point: int) -> tf.Tensor:
    """int32 sums [..., C'] of `(x - zero_point) * w` over the last axis."""
    kernel = kernel_of(packed, sum_dtype(packed.layout.largest_sum))
    with tf.device(CPU):
        return _to_int32(tf.tensordot(_centered(inputs, zero_point, kernel.dtype), kernel[0, 0], 1))


def depthwise_conv2d(
    images: Any, kernel: Any, zero_point: int, strides: Pair, padding: Padding, dilations: Pair
) -> tf.Tensor:
    """int32 sums [N, H', W', C * M] of each channel with its own M windows; kernel int8 [KH, KW, C, M].

    A sum of shifted products: TensorFlow's own depthwise convolution takes neither unequal strides nor strides together
    with dilations. Height and width of the images must be known.
    """
    rows, columns, channels, multiplier = kernel.shape
    images, cut = _pad_to_min_size(tf.convert_to_tensor(images), kernel.shape, padding, dilations, batch=0)
    edges = _explicit(images, kernel, strides, padding, dilations)
    centered = tf.pad(_centered(images, zero_point, tf.int32), edges)
    size = [(centered.shape[k + 1] - (n - 1) * dilations[k] - 1) // strides[k] for k, n in enumerate((rows, columns))]
    weights, total = tf.cast(kernel, tf.int32), 0
    for i, j in np.ndindex(rows, columns):
        top, left = i * dilations[0], j * dilations[1]
        bottom, right = top + size[0] * strides[0] + 1, left + size[1] * strides[1] + 1
        total += centered[:, top : bottom : strides[0], left : right : strides[1], :, None] * weights[i, j]
    return cut(tf.reshape(total, [-1, size[0] + 1, size[1] + 1, channels * multiplier]))


def transpose_conv2d(images: Any, kernel: Any, zero_point: int, strides: Pair, before: Pair, size: Pair) -> tf.Tensor:
    """int32 sums of a transposed convolution; kernel int8 [KH, KW, C', C].

    before: rows and columns of the full result that are cut off in front.   size: rows and columns that are kept.
    """
    rows, columns, _, inputs = kernel.shape
    dtype = sum_dtype(LARGEST_INPUT * 128 * rows * columns * inputs)
    images, cut = _pad_to_min_size(tf.convert_to_tensor(images), (1, 1), "VALID", (1, 1))
    spread = _zero_insert(_centered(images, zero_point, dtype), strides)
    ends = [max(before[k] + size[k] - spread.shape[k + 1] - (n - 1), 0) for k, n in enumerate((rows, columns))]
    around = [[n - 1, n - 1 + end] for n, end in zip((rows, columns), ends, strict=True)]
    turned = tf.transpose(tf.reverse(tf.cast(kernel, dtype), [0, 1]), [0, 1, 3, 2])
    with tf.device(CPU):
        full = cut(_to_int32(tf.nn.conv2d(tf.pad(spread, [[0, 0], *around, [0, 0]]), turned, 1, "VALID")))
    return full[:, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]


def add_bias(total: Any, bias: Any) -> tf.Tensor:
    """int32 `total + bias`, wrapping; bias None: the total as it is."""
    return total if bias is None else total + tf.cast(bias, tf.int32)


def apply_epilogue(output: Epilogue, total: Any, residual: ResidualAdd | None = None) -> tf.Tensor:
    """What follows an int32 total, its bias included: the total itself, int8 codes or reals, as `epilogue.check` lets it.

    ValueError where a residual is known to have another shape than the codes.
    """
    if output is None:
        return total
    if not isinstance(output, Requantize):
        return rescale(total, output.scale, output.low, output.high)
    limits = output.zero_point, output.low, output.high
    if output.factor is not None:
        codes = requantize_once(total, output.factor, *limits)
    else:
        codes = requantize(total, output.multiplier, output.shift, *limits)
    return codes if residual is None else add_residual(codes, output.zero_point, residual)


def add_residual(codes: tf.Tensor, zero_point: int, residual: ResidualAdd) -> tf.Tensor:
    """LiteRT's ADD of a layer's own int8 codes, with their zero point, and those of a residual."""
    other = tf.convert_to_tensor(residual.codes)
    if not codes.shape.is_compatible_with(other.shape):
        raise ValueError(f"the residual has shape {other.shape}; expected the output's, {codes.shape}")
    first = to_add_grid(codes, zero_point, residual.first)
    second = to_add_grid(other, residual.zero_point, residual.second)
    limits = residual.output_zero_point, residual.low, residual.high
    return requantize(wrap_int32(first + second), *residual.output, *limits)


def max_pool2d(
    images: Any, window: Pair, strides: Pair, padding: Padding, padding_code: int, low: int, high: int
) -> tf.Tensor:
    """The largest int8 code of each window, clipped; pixels outside the image count as `padding_code`."""
    images, cut = _pad_to_min_size(images, window, padding, (1, 1), batch=0)
    edges = _explicit(images, np.empty(window), strides, padding, (1, 1))
    padded = tf.pad(images, edges, constant_values=tf.constant(padding_code, tf.int8))
    with tf.device(CPU):
        codes = cut(tf.nn.max_pool2d(padded, list(window), list(strides), "VALID"))
    return codes if (low, high) == (-128, 127) else tf.clip_by_value(codes, tf.constant(low, tf.int8), high)


def requantize(total: Any, multiplier: Any, shift: Any, zero_point: int, low: int = -128, high: int = 127) -> tf.Tensor:
    """int8 codes `clip(round(round(total * multiplier / 2**31) * 2**shift) + zero_point)`: LiteRT's double rounding.

    total: int32.   multiplier, shift: integers, single or one for each channel. InvalidArgumentError for a tensor of shifts
    beyond -31 to 31; numbers are checked where they are given.
    """
    if isinstance(shift, tf.Tensor):
        tf.debugging.assert_less_equal(tf.abs(shift), LARGEST_SHIFT, "a shift is not from -31 to 31")
    return _codes(fixed_product(total, multiplier, shift), zero_point, low, high)


def requantize_once(total: Any, factor: Any, zero_point: int, low: int = -128, high: int = 127) -> tf.Tensor:
    """int8 codes `clip(round_half_away(total * factor) + zero_point)` in float64: LiteRT's dense layers.

    total: int32.   factor: float64, single or one for each channel.
    """
    scaled = round_half_away(tf.cast(total, tf.float64) * tf.cast(factor, tf.float64))
    fits = tf.abs(scaled) < 2.0**31
    return _codes(tf.cast(tf.where(fits, scaled, tf.constant(-(2.0**31), tf.float64)), tf.int64), zero_point, low, high)


def rescale(total: Any, scale: Any, low: float | None = None, high: float | None = None) -> tf.Tensor:
    """float32 `clip(float(total) * scale)`; scale float32, single or one for each channel."""
    real = tf.cast(total, tf.float32) * scale
    real = real if low is None else tf.maximum(real, tf.constant(low, tf.float32))
    return real if high is None else tf.minimum(real, tf.constant(high, tf.float32))


def quantize(real: Any, scale: Any, zero_point: Any) -> tf.Tensor:
    """int8 codes `round_half_away(x / scale) + zero_point` in float32, saturated; InvalidArgumentError for NaN."""
    real = tf.cast(real, tf.float32)
    count = tf.math.count_nonzero(tf.math.is_nan(real))
    with tf.control_dependencies([tf.debugging.assert_equal(count, tf.zeros_like(count), "the input has NaN values")]):
        # Not x / scale: the graph optimizer turns that into x * (1 / scale), which rounds differently.
        steps = tf.math.divide_no_nan(real, tf.cast(scale, tf.float32))
    return to_int8(round_half_away(tf.clip_by_value(steps, -1e6, 1e6)) + tf.cast(zero_point, tf.float32))


def round_half_away(x: tf.Tensor) -> tf.Tensor:
    """The nearest integer, halves away from zero."""
    whole = tf.where(x < 0, tf.math.ceil(x), tf.math.floor(x))
    return whole + tf.where(tf.abs(x - whole) >= 0.5, tf.sign(x), tf.zeros_like(x))


def fixed_product(x: Any, multiplier: Any, shift: Any) -> tf.Tensor:
    """int64 `x * multiplier * 2**(shift - 31)` of an int32 x, rounded twice as LiteRT's reference kernels do."""
    x, multiplier, shift = (tf.cast(value, tf.int64) for value in (x, multiplier, shift))
    shift = tf.broadcast_to(shift, tf.shape(x))
    shifted = wrap_int32(tf.bitwise.left_shift(x, tf.maximum(shift, 0)))
    return rounding_right_shift(saturating_high_mul(shifted, multiplier), tf.maximum(-shift, 0))


def to_add_grid(codes: Any, zero_point: int, factor: tuple[int, int]) -> tf.Tensor:
    """int64 `(code - zero_point) * 2**20 * factor`: an operand of LiteRT's ADD on the common grid."""
    return fixed_product((tf.cast(codes, tf.int32) - zero_point) * 2**20, *factor)


def saturating_high_mul(a: Any, b: Any) -> tf.Tensor:
    """`round_half_up(a * b / 2**31)` of int64 tensors that hold int32 numbers; min * min gives max."""
    product = a * b + (1 << 30)
    return tf.minimum(tf.bitwise.right_shift(product, tf.fill(tf.shape(product), tf.constant(31, tf.int64))), INT32_MAX)


def rounding_right_shift(x: tf.Tensor, exponent: Any) -> tf.Tensor:
    """`round_half_away(x / 2**exponent)` of int64 tensors, 0 <= exponent < 62."""
    exponent = tf.broadcast_to(tf.cast(exponent, tf.int64), tf.shape(x))
    mask = tf.bitwise.left_shift(tf.ones_like(x), exponent) - 1
    threshold = tf.bitwise.right_shift(mask, tf.ones_like(mask)) + tf.cast(x < 0, tf.int64)
    up = tf.bitwise.bitwise_and(x, mask) > threshold
    return tf.bitwise.right_shift(x, exponent) + tf.cast(up, tf.int64)


def to_int8(values: Any, low: int = -128, high: int = 127) -> tf.Tensor:
    """int8 `clip(values)` of whole numbers, which wrap where int32 does. Every tensor of codes is made here, by looking it up.

    Not by a cast: on AVX512 processors, what XLA of TensorFlow 2.21 compiles may store the last code of a row of 4 n + 1 with
    all bytes of the int32 or int64 that it was, over the codes of the next row, which another thread has written, or over
    memory behind the tensor. Bits that are masked or cast instead end in the same truncation.
    """
    place = tf.clip_by_value(tf.cast(values, tf.int32), low, high) + 128
    return tf.gather(tf.constant(_CODES), place)


def wrap_int32(x: tf.Tensor) -> tf.Tensor:
    """Two's complement of 32 bits, kept in int64."""
    return tf.cast(tf.cast(x, tf.int32), tf.int64)


def kernel_of(packed: PackedWeights, dtype: Any) -> tf.Tensor:
    """The integer weights `scale * code` of packed tensors, [rows, columns, input channels, output channels]."""
    layout = packed.layout
    fields = _fields(packed, dtype)  # [k-blocks, 4, blocks, 4, 16]
    by_k = tf.reshape(fields, [layout.k_blocks * K_BLOCK, layout.groups, -1])[..., : layout.group_outputs]
    codes = tf.reshape(tf.gather(by_k, layout.k_index()), layout.window)
    if not layout.cluster_size:
        return codes
    rows, columns, inputs, outputs = layout.window
    taps = [rows, columns] if layout.per_tap else [1, 1]
    scales = tf.reshape(packed.scales, [layout.groups, -1, layout.clusters, *taps, BLOCK_CHANNELS])
    scales = tf.reshape(tf.transpose(scales, [3, 4, 2, 0, 1, 5]), [*taps, layout.clusters, layout.groups, -1])
    scales = tf.reshape(scales[..., : layout.group_outputs], [*taps, layout.clusters, outputs])
    return codes * tf.cast(tf.gather(scales, np.arange(inputs) // layout.cluster, axis=2), dtype)


def sum_dtype(bound: int) -> tf.DType:
    """The float type in which integers up to `bound` are exact; ValueError from 2**53 on."""
    if bound >= EXACT_FLOAT64:
        raise ValueError(f"a window can sum to {bound}; expected less than 2**53: use fewer input channels")
    return tf.float32 if bound < EXACT_FLOAT32 else tf.float64


def _fields(packed: PackedWeights, dtype: Any) -> tf.Tensor:
    """Codes of packed bytes, [k-blocks, 4 steps, blocks, 4 fields, 16 channels]."""
    data, kind = tf.convert_to_tensor(packed.data), packed.layout.kind
    shape = [-1, packed.layout.k_blocks, *BLOCK_ORDER[kind]]
    if kind == "int8":
        return tf.cast(tf.transpose(tf.reshape(tf.bitcast(data, tf.int8), shape), [1, 4, 0, 2, 3]), dtype)
    shifted = tf.bitwise.right_shift(data[..., None], tf.constant([0, 2, 4, 6], tf.uint8))
    fields = tf.reshape(tf.bitwise.bitwise_and(shifted, tf.constant(3, tf.uint8)), shape)
    return tf.cast(tf.transpose(fields, [1, 3, 0, 4, 2]), dtype) - 1


def _to_int32(total: tf.Tensor) -> tf.Tensor:
    """Exact integers in a float tensor as int32; beyond int32 they wrap, as a C accumulator does."""
    return tf.cast(total if total.dtype == tf.float32 else tf.cast(total, tf.int64), tf.int32)


def _centered(images: Any, zero_point: Any, dtype: Any) -> tf.Tensor:
    return tf.cast(images, dtype) - tf.cast(zero_point, dtype)


def _pad_to_min_size(
    images: tf.Tensor, window: Pair, padding: Padding, dilations: Pair, batch: int = 1
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Images padded for at least one window in at least `batch` of them, and what cuts its result off again.

    Where a window does not fit, or the batch is empty, TensorFlow raises or gives images of another size. Codes, not what is
    made of them: a pad right in front of a convolution is merged into it, and then neither fits again.
    """
    least = [batch]
    for k in (0, 1):
        pads = 0 if isinstance(padding, str) else sum(padding[k])
        least.append(1 if padding == "SAME" else max((window[k] - 1) * dilations[k] + 1 - pads, 1))
    missing = [_missing(images, axis, size) for axis, size in enumerate(least)]
    if not any(isinstance(n, tf.Tensor) or n for n in missing):
        return images, lambda result: result

    def cut(result: tf.Tensor) -> tf.Tensor:
        batch, rows, columns = (_end(result, axis, n) for axis, n in enumerate(missing))
        return result[:batch, :rows, :columns]

    return tf.pad(images, [*([0, n] for n in missing), [0, 0]]), cut


def _missing(images: tf.Tensor, axis: int, least: int) -> Any:
    """How many more an axis needs: a number, or a tensor where only running tells."""
    size = images.shape[axis]
    if size is None and least > 0:
        return tf.maximum(least - tf.shape(images)[axis], 0)
    return max(least - (size or 0), 0)


def _end(result: tf.Tensor, axis: int, missing: Any) -> Any:
    """Where an axis of the result ends: at its end where nothing was missing, else at its start."""
    if isinstance(missing, int):
        return 0 if missing else None
    return tf.where(missing > 0, 0, tf.shape(result)[axis])


def _explicit(images: Any, kernel: Any, strides: Pair, padding: Padding, dilations: Pair) -> list[list[int]]:
    """Paddings of every axis as numbers."""
    if not isinstance(padding, str):
        return [[0, 0], *(list(pair) for pair in padding), [0, 0]]
    pairs = [[0, 0], [0, 0]]
    if padding == "SAME":
        for k in (0, 1):
            size, reach = int(images.shape[k + 1]), (kernel.shape[k] - 1) * dilations[k] + 1
            total = max((-(-size // strides[k]) - 1) * strides[k] + reach - size, 0)
            pairs[k] = [total // 2, total - total // 2]
    return [[0, 0], *pairs, [0, 0]]


def _zero_insert(images: tf.Tensor, strides: Pair) -> tf.Tensor:
    """`stride - 1` zeros between the pixels of each axis."""
    _, height, width, channels = images.shape
    edges = [[0, 0], [0, 0], [0, strides[0] - 1], [0, 0], [0, strides[1] - 1], [0, 0]]
    wide = tf.reshape(
        tf.pad(images[:, :, None, :, None], edges), [-1, height * strides[0], width * strides[1], channels]
    )
    return wide[:, : (height - 1) * strides[0] + 1, : (width - 1) * strides[1] + 1]


def _codes(scaled: tf.Tensor, zero_point: int, low: int, high: int) -> tf.Tensor:
    return to_int8(scaled + zero_point, low, high)
