"""The reference softmax: exponentials and a reciprocal in 32-bit fixed point.

A number in Qm.n is an int32 `raw` meaning `raw / 2**n` with m + n = 31. Source: gemmlowp `fixedpoint.h`
(constants and the order of the roundings) and LiteRT `kernels/internal/reference/softmax.h`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.reference import interpolated
from keras_lowbit.deploy.reference.call import NodeCall, kernel, scale_of
from keras_lowbit.numerics import requantization as fp

_INPUT_BITS, SUM_BITS = 5, 12
Q0_EXP_MINUS_EIGHTH = 1895147668  # exp(-1/8)
Q0_THIRD = 715827883  # 1/3
Q0_EXP_MINUS_POWER = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}  # exp(-2**k)
Q2_48_17, Q2_MINUS_32_17, Q2_ONE = 1515870810, -1010580540, 1 << 29


@kernel("softmax")
def softmax(call: NodeCall) -> NDArray[Any]:
    """`exp(x - max) / sum(exp(x - max))` on the last axis; output scale 1/256, zero point -128.

    ValueError if the input scale is 2**-26 or less: LiteRT ends the process there. It also does where the sum of
    the exponentials reaches 512 (512 equal logits do); this function goes on with the same arithmetic. Of int16 codes see
    `interpolated`.
    """
    if call.output.dtype == "int16":
        return interpolated.softmax(call)
    codes = call.arrays[0].astype(np.int64)
    difference = codes - codes.max(axis=-1, keepdims=True)
    exponential, terms = exponentials(difference, np.float64(scale_of(call.inputs[0])))
    reciprocal, exponent = _reciprocal(terms.sum(axis=-1, keepdims=True))
    share = fp.saturating_rounding_doubling_high_mul(reciprocal, exponential)
    share = fp.rounding_divide_by_power_of_two(share, exponent + 31 - 8, bits=63)
    return np.clip(share - 128, fp.QMIN, fp.QMAX).astype(np.int8)


def exponentials(difference: fp.Ints, scale: np.float64) -> tuple[fp.Ints, fp.Ints]:
    """`exp(scale * difference)` in Q0.31, and as a term of the sum (Q12.19), for differences of codes, 0 and below.

    Both are 0 where the difference is too large to count.
    """
    real = min(scale * 2.0 ** (31 - _INPUT_BITS), 2.0**31 - 1)
    if real <= 1:
        raise ValueError(f"the input scale is {scale:g}; expected more than {2.0**-26:g}: calibrate again")
    factor = fp.quantize_multiplier(real)
    smallest = -(((2**_INPUT_BITS - 1) * 2 ** (31 - _INPUT_BITS)) >> int(factor.shift))
    counted = difference >= smallest
    scaled = fp.multiply_by_quantized_multiplier(np.where(counted, difference, 0), factor)
    exponential = np.where(counted, exp_of_negative(scaled), 0)
    return exponential, fp.rounding_divide_by_power_of_two(exponential, SUM_BITS)


def exp_of_negative(x: fp.Ints, input_bits: int = _INPUT_BITS) -> fp.Ints:
    """exp(x) in Q0.31 for x <= 0 in Q5.26: a polynomial on [-1/4, 0), then a product per bit of the rest.

    input_bits: integer bits of x, up to 5.
    """
    fraction = 31 - input_bits
    quarter = 1 << (fraction - 2)
    rest = (x & (quarter - 1)) - quarter
    result = _exp_of_last_quarter(fp.saturating_left_shift(rest, input_bits))
    remainder = fp.wrap(rest - x)
    for power, multiplier in Q0_EXP_MINUS_POWER.items():
        if power >= input_bits:
            break
        product = fp.saturating_rounding_doubling_high_mul(result, multiplier)
        result = np.where(remainder & (1 << (fraction + power)), product, result)
    return np.where(x == 0, fp.INT32_MAX, result)


def _exp_of_last_quarter(a: fp.Ints) -> fp.Ints:
    """exp(a) for a in [-1/4, 0), Q0.31: four terms of the series around -1/8."""
    times = fp.saturating_rounding_doubling_high_mul
    x = a + (1 << 28)
    square = times(x, x)
    cube, fourth = times(square, x), times(square, square)
    tail = times(fp.rounding_divide_by_power_of_two(fourth, 2) + cube, Q0_THIRD) + square
    tail = fp.rounding_divide_by_power_of_two(tail, 1)
    return fp.wrap(Q0_EXP_MINUS_EIGHTH + times(Q0_EXP_MINUS_EIGHTH, x + tail))


def _reciprocal(total: fp.Ints) -> tuple[fp.Ints, fp.Ints]:
    """(r, e) with `1 / total = r * 2**-e`, r in Q0.31; total > 0 with 19 fraction bits."""
    headroom = 32 - np.frexp(total)[1].astype(np.int64)  # leading zero bits of an int32
    leading = (total << np.maximum(headroom, 0)) >> np.maximum(-headroom, 0)
    return one_over_one_plus(leading - 2**31), SUM_BITS - headroom


def one_over_one_plus(x: fp.Ints) -> fp.Ints:
    """`1 / (1 + x)` in Q0.31 for x in [0, 1)."""
    return fp.saturating_left_shift(newton_reciprocal(x), 1)


def newton_reciprocal(x: fp.Ints) -> fp.Ints:
    """`2 / (1 + x)` in Q2.29 for x in [0, 1): three Newton steps on half the denominator."""
    times = fp.saturating_rounding_doubling_high_mul
    half = (x + fp.INT32_MAX + 1) >> 1
    guess = Q2_48_17 + times(half, Q2_MINUS_32_17)
    for _ in range(3):
        error = Q2_ONE - times(half, guess)
        guess = fp.wrap(guess + fp.saturating_left_shift(times(guess, error), 2))
    return guess
