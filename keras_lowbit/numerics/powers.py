"""Power-of-two grids: exact exponents by comparison, never through a logarithm.

``log2`` and ``2 ** n`` round differently on different backends; comparing with a table of exact powers does not.
"""

from typing import Any

import numpy as np
from keras import ops

Tensor = Any

# float32 holds these exactly; weights outside them are of no use to an 8-bit runtime.
_POWERS = np.exp2(np.arange(-100, 101)).astype(np.float32)


def top_power(largest: Tensor) -> Tensor:
    """``2^n1`` with ``n1 = floor(log2(4 s / 3))`` for ``s = largest`` > 0; 0 where it is 0, NaN where NaN. Shape of `largest`.

    Equivalent to the power with ``0.75 * 2^n1 <= s < 1.5 * 2^n1``, so that s itself maps to the top.
    Zhou et al. 2017, arXiv:1702.03044, eq. 2 and 3.
    """
    powers = ops.convert_to_tensor(_POWERS)
    reached = ops.expand_dims(largest, -1) >= 0.75 * powers
    power = ops.max(ops.where(reached, powers, ops.zeros_like(powers)), axis=-1)
    return ops.where(ops.isnan(largest), largest, power)  # hidden, a diverged training would look healthy


# The best top of trained kernels lies 0 to 3 octaves below that of the largest weight; 8 leave room for outliers.
_OCTAVES = 8


def least_error_power(real: Tensor, axes: tuple[int, ...], magnitudes: int) -> Tensor:
    """The top ``2^n1`` of least squared error, at or up to 7 octaves below that of ``max |real|`` over `axes` (kept as size 1).

    Weights above ``1.5 * 2^n1`` saturate. Of equal errors the larger top wins, so values on a grid keep it.
    """
    largest = top_power(ops.max(ops.abs(real), axis=axes, keepdims=True))
    # Exact, and squares do not overflow.
    relative = ops.abs(real) / ops.where(largest > 0, largest, ops.ones_like(largest))
    best, least = ops.ones_like(largest), ops.full_like(largest, float("inf"))
    for top in (2.0**-octave for octave in range(_OCTAVES)):
        residual = relative - _nearest(relative, top * 2.0 ** (1 - magnitudes), magnitudes)
        error = ops.sum(ops.square(residual), axis=axes, keepdims=True)
        best = ops.where(error < least, top, best)
        least = ops.minimum(error, least)
    return best * largest


def _nearest(size: Tensor, least: float, magnitudes: int) -> Tensor:
    """0 or ``least * 2^k`` nearest to each `size` >= 0, with the borders of `encode_powers`; 0 for NaN."""
    value = ops.where(size >= 0.5 * least, ops.full_like(size, least), ops.zeros_like(size))
    for power in (least * 2.0**exponent for exponent in range(1, magnitudes)):
        value = ops.where(size >= 0.75 * power, power, value)
    return value


def encode_powers(real: Tensor, scale: Tensor, magnitudes: int) -> Tensor:
    """Codes 0 and ``+-2^k``, k = 0 .. magnitudes - 1, nearest to ``real / scale``; shape of `real`.

    ``|real| / scale`` below 0.5 gives 0; the border to ``2^k``, k >= 1, is ``0.75 * 2^k`` (ties go up); beyond the
    largest magnitude the code saturates, where eq. 4 read literally would give 0. NaN stays NaN.
    Zhou et al. 2017, eq. 4.
    """
    safe = ops.where(scale > 0, scale, ops.ones_like(scale))
    size = ops.abs(real) / safe
    code = ops.cast(size >= 0.5, size.dtype)
    for exponent in range(1, magnitudes):
        code = ops.where(size >= 0.75 * 2.0**exponent, 2.0**exponent, code)
    signed = ops.where(real < 0, -code, code)
    code = ops.where(ops.logical_and(scale > 0, code > 0), signed, ops.zeros_like(code))
    return ops.where(ops.logical_or(ops.isnan(real), ops.isnan(scale)), ops.full_like(code, float("nan")), code)
