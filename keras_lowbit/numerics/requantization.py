"""LiteRT's fixed-point arithmetic in NumPy: how a sum is brought back to codes.

A real factor m > 0 is held as `m = multiplier * 2**(shift - 31)` with multiplier in [2**30, 2**31). LiteRT's
reference kernels multiply in two steps, and each of them rounds (*double rounding*):

    high  = round_half_up(x * 2**max(shift, 0) * multiplier / 2**31)
    y     = round_half_away(high / 2**max(-shift, 0))

An int64 sum, which 16-bit activations need, is multiplied by the upper 15 bits of the multiplier and rounded once.

All functions take and give int64 arrays whose values are int32 (or int16) numbers, so nothing overflows by
accident; where LiteRT's own int32 would wrap, `wrap` says so. Source: gemmlowp `fixedpoint.h` and LiteRT
`kernels/internal/{common,quantization_util}.cc`, re-stated here, checked against Python's unbounded integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
QMIN, QMAX = -128, 127
CACHED = 2**15  # elements of an int64 array that a processor's cache holds several of


class Multiplier(NamedTuple):
    """A positive real factor: `multiplier * 2**(shift - 31)`; int64 arrays of one shape."""

    multiplier: Ints
    shift: Ints


def quantize_multiplier(real: ArrayLike) -> Multiplier:
    """`real` as an integer and a shift: `real ~ multiplier * 2**(shift - 31)`, 2**30 <= multiplier < 2**31.

    real: float64 >= 0, any shape: one factor per output channel or a single one. 0 and factors below 2**-32
    become 0, which is what LiteRT does with them. ValueError for NaN, infinity, and factors of 2**31 and more
    (LiteRT's shift is undefined there).
    """
    real = np.asarray(real, np.float64)
    if not np.isfinite(real).all():
        raise ValueError(
            f"a requantisation factor is {real[~np.isfinite(real)].ravel()[0]}; expected a "
            "finite number: check that every scale of the graph is finite and above 0"
        )
    fraction, exponent = np.frexp(real)
    fixed = round_half_away(fraction * 2.0**31).astype(np.int64)
    carry = fixed == 2**31
    fixed, shift = np.where(carry, 2**30, fixed), exponent.astype(np.int64) + carry
    if (shift > 31).any():
        raise ValueError(
            f"a requantisation factor (input scales / output scale) is {real.max():g}; LiteRT "
            "takes factors below 2**31: give the output a wider range"
        )
    flushed = (shift < -31) | (fixed == 0)
    return Multiplier(np.where(flushed, 0, fixed), np.where(flushed, 0, shift))


def wrap(x: ArrayLike, bits: int = 32) -> Ints:
    """Two's complement of `bits` bits: what a C integer of that width holds after overflowing."""
    half = 1 << (bits - 1)
    return ((np.asarray(x, np.int64) + half) & (2 * half - 1)) - half


def saturating_rounding_doubling_high_mul(a: ArrayLike, b: ArrayLike, bits: int = 32) -> Ints:
    """`round_half_up(a * b / 2**(bits - 1))`, but min * min gives max. For bits = 32 the Q0.31 product."""
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    high = (a * b + (1 << (bits - 2))) >> (bits - 1)
    return np.minimum(high, (1 << (bits - 1)) - 1)


def rounding_divide_by_power_of_two(x: ArrayLike, exponent: ArrayLike, bits: int = 32) -> Ints:
    """`round_half_away(x / 2**exponent)` for 0 <= exponent < bits.

    For exponents of `bits` and more (16-bit kernels meet them at extreme scales) the C code's mask wraps to
    -1: the result is then 1 or -1 instead of 0, and so it is here.
    """
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    mask = wrap((np.int64(1) << exponent) - 1, bits)
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def multiply_by_quantized_multiplier(x: ArrayLike, factor: Multiplier) -> Ints:
    """`x * factor`, rounded twice as LiteRT's reference kernels do; factor broadcasts against int32 x."""
    left, right = np.maximum(factor.shift, 0), np.maximum(-factor.shift, 0)
    high = saturating_rounding_doubling_high_mul(wrap(np.asarray(x, np.int64) << left), factor.multiplier)
    return rounding_divide_by_power_of_two(high, right)


def multiply_wide(x: ArrayLike, factor: Multiplier) -> Ints:
    """`round_half_up(x * factor)` of int64 sums below 2**47, with a multiplier of 15 bits: what LiteRT does with int64.

    The multiplier is off by up to 2**-15 of its size: a code of 32767 by a step. The result wraps like C's int32.
    """
    short = np.where(factor.multiplier < 0x7FFF0000, (factor.multiplier + (1 << 15)) >> 16, 0x7FFF)
    shift = 15 - factor.shift
    return wrap((np.asarray(x, np.int64) * short + (np.int64(1) << (shift - 1))) >> shift)


def saturating_left_shift(x: ArrayLike, exponent: int, bits: int = 32) -> Ints:
    """`x * 2**exponent` in `bits` bits; like gemmlowp it saturates beyond 2**(bits - 1 - exponent) - 1."""
    x = np.asarray(x, np.int64)
    threshold = (1 << (bits - 1 - exponent)) - 1
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return np.where(x > threshold, high, np.where(x < -threshold, low, x << exponent))


def round_half_away(x: ArrayLike) -> NDArray[np.floating]:
    """Nearest integer, halves away from zero, as C's `round` (0.49999999999999994 gives 0)."""
    x = np.asarray(x)
    # With 0.5 itself, 0.49999999999999994 would give 1. With the number below it, 0.5 still does: sums round to even.
    below_half = np.nextafter(x.dtype.type(0.5), x.dtype.type(0))
    return np.trunc(x + np.copysign(below_half, x))


def divide_toward_zero(x: ArrayLike, divisor: ArrayLike) -> Ints:
    """C's integer division: the quotient without its fraction. divisor > 0."""
    x = np.asarray(x, np.int64)
    return np.sign(x) * (np.abs(x) // divisor)


def activation_range(
    activation: str | None, scale: float, zero_point: int, codes: tuple[int, int] = (QMIN, QMAX)
) -> tuple[int, int]:
    """Lowest and highest code that a fused activation lets through, of `codes`.

    None: all of them. "relu": from the zero point. "relu6": also up to `zero_point + round(6 / scale)` in
    float32. ValueError for other names, and for a scale so small that 6 / scale exceeds int32 (LiteRT refuses
    it too).
    """
    if activation is None:
        return codes
    if activation not in ("relu", "relu6"):
        raise ValueError(
            f"fused activation {activation!r} is unknown; expected None, 'relu' or 'relu6': "
            "run other activations as nodes of their own"
        )
    low = max(codes[0], zero_point)
    if activation == "relu":
        return low, codes[1]
    steps = round_half_away(np.float32(6.0) / np.float32(scale))
    if not steps <= INT32_MAX:
        raise ValueError(
            f"relu6 with scale {scale:g} needs {steps:g} steps, more than int32 holds; "
            "expected a usual step such as 6/255: calibrate again"
        )
    return low, min(codes[1], zero_point + int(steps))


def requantize(
    total: ArrayLike, factor: Multiplier, zero_point: int, limits: tuple[int, int] = (QMIN, QMAX), dtype: str = "int8"
) -> NDArray[Any]:
    """Codes of an int32 sum: `clip(total * factor + zero_point, limits)`; channels on the last axis. dtype: of the codes."""
    left, right = np.maximum(factor.shift, 0), np.maximum(-factor.shift, 0)
    half, rounds = (np.int64(1) << right) >> 1, right > 0

    def codes(rows: np.ndarray) -> NDArray[Any]:
        # As `multiply_by_quantized_multiplier`, in place; halves go away from zero by one step less below it.
        x = rows if rows.dtype == np.int32 and not left.any() else wrap(np.asarray(rows, np.int64) << left)
        high = np.multiply(x, factor.multiplier, dtype=np.int64)
        high += 1 << 30
        high >>= 31
        below = high >> 63
        high += half
        high += below if rounds.all() else below * rounds
        high >>= right
        shifted = high.astype(np.int32)
        shifted += np.int32(zero_point)  # overflows as C's
        return np.clip(shifted, *limits).astype(dtype)

    found = by_rows(codes, np.atleast_1d(total))
    return found if np.ndim(total) else found.reshape(found.shape[found.size == 1 :])


def by_rows(function: Callable[[np.ndarray], NDArray[Any]], total: np.ndarray) -> NDArray[Any]:
    """`function(total)` [..., channels], for some of its rows at a time, whose intermediate arrays fit into a cache."""
    if total.size <= CACHED:
        return function(total)
    rows = total.reshape(-1, total.shape[-1])
    count = max(CACHED // rows.shape[1], 1)
    return np.concatenate([function(rows[i : i + count]) for i in range(0, len(rows), count)]).reshape(total.shape)


def quantize_real(
    real: np.ndarray, scale: np.float32, zero_point: int, limits: tuple[int, int] = (QMIN, QMAX)
) -> NDArray[Any]:
    """Codes of real numbers, as LiteRT's QUANTIZE; clipped to `limits`. int8, int16 for wider limits. ValueError for NaN."""
    real = np.asarray(real, np.float32)
    if np.isnan(real).any():
        raise ValueError(
            f"{int(np.isnan(real).sum())} of {real.size} values are NaN; expected real "
            "numbers: look for a division by zero or a missing value before this point"
        )
    with np.errstate(over="ignore"):
        steps = round_half_away(np.clip(real / np.float32(scale), np.float32(-1e6), np.float32(1e6)))
    return np.clip(steps + zero_point, *limits).astype(np.int8 if limits == (QMIN, QMAX) else np.int16)
