"""Sigmoid and tanh as tflite-micro computes them: in 32-bit fixed point, where LiteRT looks up a rounded float.

The two give the same codes for nearly every range; where a value falls all but between two codes they may not. Source: LiteRT's
`kernels/internal/reference/integer_ops/{logistic,tanh}.h`, which tflite-micro still runs, and gemmlowp's `fixedpoint.h`.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.graph import Range, Tensor
from keras_lowbit.deploy.reference.call import NodeCall
from keras_lowbit.deploy.reference.elementwise import logistic, tanh
from keras_lowbit.deploy.reference.softmax import Q2_ONE, exp_of_negative, newton_reciprocal, one_over_one_plus
from keras_lowbit.numerics import requantization as fp

_INPUT_BITS = 4  # integer bits of what the function takes
_GRIDS = {"logistic": Range(1 / 256, -128), "tanh": Range(1 / 128, 0)}
_LITERT = {"logistic": logistic, "tanh": tanh}
ALL_CODES = np.arange(fp.QMIN, fp.QMAX + 1)


def tables(op: str, grid: Range) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The codes of -128 to 127 on a range, by LiteRT and by tflite-micro. op: "logistic" or "tanh"."""
    return _tables(op, float(grid.scale), grid.zero_point)


@functools.lru_cache(4096)
def _tables(op: str, scale: float, zero_point: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    given, made = (
        Tensor(name, (None, 256), "int8", np.array(grid.scale, np.float32), grid.zero_point)
        for name, grid in (("x", Range(scale, zero_point)), ("y", _GRIDS[op]))
    )
    litert = _LITERT[op](NodeCall({}, (ALL_CODES.astype(np.int8)[None],), (given,), (made,), np.float32))
    return litert[0], _fixed_point(op, scale, zero_point)


def _fixed_point(op: str, scale: float, zero_point: int) -> NDArray[np.int8]:
    fraction, shift = np.frexp(np.float64(np.float32(scale)) * 2.0 ** (31 - _INPUT_BITS))
    factor = fp.Multiplier(fp.round_half_away(fraction * 2.0**31).astype(np.int64), np.asarray(shift, np.int64))
    radius = int(np.floor((2**_INPUT_BITS - 1) * 2.0 ** (31 - _INPUT_BITS) / 2.0 ** int(shift)))
    x = ALL_CODES - zero_point
    inside = np.abs(x) < radius
    real = fp.multiply_by_quantized_multiplier(np.where(inside, x, 0), factor)
    codes = _logistic(real) if op == "logistic" else _tanh(real)
    return np.where(inside, codes, np.where(x < 0, fp.QMIN, fp.QMAX)).astype(np.int8)


def _logistic(x: fp.Ints) -> fp.Ints:
    above = one_over_one_plus(exp_of_negative(-np.abs(x), _INPUT_BITS))
    share = np.where(x > 0, above, np.where(x < 0, fp.INT32_MAX - above, 1 << 30))
    return np.clip(fp.rounding_divide_by_power_of_two(share, 31 - 8) - 128, fp.QMIN, fp.QMAX)


def _tanh(x: fp.Ints) -> fp.Ints:
    """`(1 - e) / (1 + e)` of `e = exp(-2 |x|)`: twice a number of 4 integer bits is the same one of 5."""
    above = fp.saturating_left_shift(newton_reciprocal(exp_of_negative(-np.abs(x), _INPUT_BITS + 1)) - Q2_ONE, 2)
    share = np.where(x > 0, above, np.where(x < 0, -above, 0))
    return np.clip(fp.rounding_divide_by_power_of_two(share, 31 - 7), fp.QMIN, fp.QMAX)
