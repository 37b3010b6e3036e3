"""Sigmoid and tanh of 16-bit fixed point, as the gates of LiteRT's LSTM have them: a table of all 65536 codes.

A number in Qm.n is an int16 `raw` meaning `raw / 2**n` with m + n = 15. Source: gemmlowp `fixedpoint.h`, whose 32-bit forms are
in `softmax`; here every step is rounded to 16 bits, and some of them wrap.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.reference import softmax
from keras_lowbit.numerics import requantization as fp

LOW, HIGH = -(2**15), 2**15 - 1
_Q2_ONE = 1 << 13
_SUM_BITS = 3  # integer bits of what goes into a gate
_CLAMPED_FROM, _LEAST = 6, 32  # integer bits from which exp of less than -32 is 0


def _short(constant: int) -> int:
    """A constant of 32 bits in 16."""
    return int(fp.rounding_divide_by_power_of_two(constant, 16))


_EXP_MINUS_EIGHTH, _THIRD = _short(softmax.Q0_EXP_MINUS_EIGHTH), _short(softmax.Q0_THIRD)
_Q2_48_17, _Q2_MINUS_32_17 = _short(softmax.Q2_48_17), _short(softmax.Q2_MINUS_32_17)
_EXP_MINUS_POWER = {power: _short(constant) for power, constant in softmax.Q0_EXP_MINUS_POWER.items()}


def gate_table(gate: str) -> NDArray[np.int64]:
    """What a gate of an LSTM makes of what goes into it, Q3.12: its candidate is a tanh, the others sigmoids."""
    return tanh_table(_SUM_BITS) if gate == "candidate" else logistic_table()


@functools.cache
def logistic_table() -> NDArray[np.int64]:
    """`1 / (1 + exp(-x))` in Q0.15 for every x in Q3.12, from the lowest on."""
    x = np.arange(LOW, HIGH + 1)
    above = fp.saturating_left_shift(_newton_reciprocal(_exp_of_negative(-np.abs(x), 3)), 1, 16)
    return np.where(x == 0, 1 << 14, np.where(x > 0, above, HIGH - above))


@functools.cache
def tanh_table(integer_bits: int) -> NDArray[np.int64]:
    """`tanh(x)` in Q0.15 for every x of 0 to 6 integer bits, from the lowest on: `(1 - e) / (1 + e)` of `e = exp(-2 |x|)`."""
    x = np.arange(LOW, HIGH + 1)
    reciprocal = _newton_reciprocal(_exp_of_negative(-np.abs(x), integer_bits + 1))
    above = fp.saturating_left_shift(fp.wrap(reciprocal - _Q2_ONE, 16), 2, 16)
    return np.where(x == 0, 0, np.where(x > 0, above, -above))


def _times(a: fp.Ints, b: fp.Ints | int) -> fp.Ints:
    return fp.saturating_rounding_doubling_high_mul(a, b, 16)


def _exp_of_negative(x: fp.Ints, integer_bits: int) -> fp.Ints:
    """exp(x) in Q0.15 for x <= 0: a polynomial on [-1/4, 0), then a product per bit of the rest."""
    fraction = 15 - integer_bits
    quarter = 1 << (fraction - 2)
    rest = (x & (quarter - 1)) - quarter
    result = _exp_of_last_quarter(fp.saturating_left_shift(rest, integer_bits, 16))
    remainder = fp.wrap(rest - x, 16)
    for power, multiplier in _EXP_MINUS_POWER.items():
        if power < integer_bits:
            result = np.where(remainder & (1 << (fraction + power)), _times(result, multiplier), result)
    if integer_bits >= _CLAMPED_FROM:
        result = np.where(x < -(_LEAST << fraction), 0, result)
    return np.where(x == 0, HIGH, result)


def _exp_of_last_quarter(a: fp.Ints) -> fp.Ints:
    """exp(a) for a in [-1/4, 0), Q0.15: four terms of the series around -1/8."""
    x = a + (1 << 12)
    square = _times(x, x)
    cube, fourth = _times(square, x), _times(square, square)
    tail = _times(fp.rounding_divide_by_power_of_two(fourth, 2, 16) + cube, _THIRD) + square
    tail = fp.rounding_divide_by_power_of_two(tail, 1, 16)
    return np.minimum(_EXP_MINUS_EIGHTH + _times(x + tail, _EXP_MINUS_EIGHTH), HIGH)


def _newton_reciprocal(x: fp.Ints) -> fp.Ints:
    """`2 / (1 + x)` in Q2.13 for x in [0, 1): three Newton steps on half the denominator."""
    half = (x + HIGH + 1) >> 1
    guess = _Q2_48_17 + _times(half, _Q2_MINUS_32_17)
    for _ in range(3):
        error = _Q2_ONE - _times(half, guess)
        guess = fp.wrap(guess + fp.saturating_left_shift(_times(guess, error), 2, 16), 16)
    return guess
