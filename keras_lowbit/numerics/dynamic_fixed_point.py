"""Dynamic fixed point: integers that share one power-of-two step, exponents by comparison and never by logarithm.

``x = codes * 2^E``. With P bits and ``Emax = floor(log2(max |x|))``: ``E = Emax - (P - 2)`` for signed tensors, whose codes
lie in ``+-(2^(P-1) - 1)``, and ``E = Emax - (P - 1)`` for non-negative ones, whose codes lie in ``0 .. 2^P - 1``. Part of the
range may stay unused: that is inherent to power-of-two steps. Mellempudi et al. 2017, arXiv:1701.08978 (format);
formulas as in Das et al. 2018, arXiv:1802.00930.
"""

from typing import Any

import numpy as np
from keras import ops

Tensor = Any

# Every normal power of two of float32. What lies below has no step of its own and takes the smallest.
_POWERS = np.ldexp(np.float32(1), np.arange(-126, 128)).astype(np.float32)


def floor_power(largest: Tensor) -> Tensor:
    """``2^floor(log2(largest))`` of positive finite values, 0 of 0, NaN of NaN; shape of `largest`."""
    powers = ops.convert_to_tensor(_POWERS)
    reached = ops.expand_dims(largest, -1) >= powers
    power = ops.max(ops.where(reached, powers, ops.zeros_like(powers)), axis=-1)
    power = ops.where(ops.logical_and(largest > 0, power <= 0), float(_POWERS[0]), power)
    return ops.where(ops.isnan(largest), largest, power)


def ceil_power(largest: Tensor) -> Tensor:
    """The smallest power of two that is not below `largest`; 0 of 0, NaN of NaN."""
    power = floor_power(largest)
    return ops.where(power < largest, 2.0 * power, power)


def shared_step(largest: Tensor, magnitude_bits: int) -> Tensor:
    """``2^E`` with ``E = floor(log2(largest)) - (magnitude_bits - 1)``; 1 (E = 0) where `largest` is 0.

    largest: max |x| of each group that shares an exponent.   magnitude_bits: P - 1 for signed tensors, P for others.
    """
    # Not below the smallest normal power: a denormal step would become 0 on hardware that flushes them.
    step = ops.maximum(floor_power(largest) * 2.0 ** (1 - magnitude_bits), float(_POWERS[0]))
    step = ops.where(largest > 0, step, ops.ones_like(step))
    return ops.where(ops.isnan(largest), largest, step)


def encode_shared(real: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    """``clip(round(real / step), lowest, highest)``, half to even; powers of two divide exactly."""
    return ops.clip(ops.round(real / step), lowest, highest)


def exponents(step: np.ndarray) -> np.ndarray:
    """E (int32) of steps ``2^E``, NumPy arrays."""
    mantissa, exponent = np.frexp(np.asarray(step, np.float32))
    if not np.all(mantissa == 0.5):
        raise ValueError(f"Steps must be powers of two, got {np.asarray(step).reshape(-1)[:5]}.")
    return (exponent - 1).astype(np.int32)
