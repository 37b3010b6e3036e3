"""Sigmoid, tanh and softmax of int16 codes: LiteRT looks them up in tables of few entries and interpolates between two.

Source: LiteRT `kernels/internal/reference/integer_ops/{logistic,tanh}.h`, `reference/softmax.h`, `internal/common.h` (the
tables) and `kernels/activations.cc` (the factors), re-stated here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.reference.call import NodeCall, scale_of
from keras_lowbit.numerics import requantization as fp

_STEP = 24  # entries of the sigmoid's table for a difference of 1 in x
_POSITIONS = 3 * 2**12  # of x = 1, among 512 between two entries
_NEARLY_WHOLE = 1e-3  # of a scale's logarithm, which LiteRT then takes for a power of two
_STEPS = 512  # intervals of a table of 16-bit values, 128 codes each


def logistic(call: NodeCall) -> NDArray[np.int16]:
    """`1 / (1 + exp(-x))` in steps of 2**-15."""
    position = _positions(call, power=0)
    magnitude = np.abs(position)
    value = np.where(magnitude >> 9 >= 255, 0x7FFF << 10, _between(magnitude, 9))
    rounded = np.where(position >= 0, value + (1 << 9), (1 << 25) - value + (1 << 9) - 1)
    return (rounded >> 10).astype(np.int16)


def tanh(call: NodeCall) -> NDArray[np.int16]:
    """`2 / (1 + exp(-2 x)) - 1` in steps of 2**-15."""
    position = _positions(call, power=1)
    magnitude = np.abs(position)
    value = np.where(magnitude >> 8 >= 255, 0xFFFF << 8, _between(magnitude, 8))
    rounded = np.where(position >= 0, value - (1 << 23) + (1 << 7), (1 << 23) - value + (1 << 7) - 1)
    return (rounded >> 8).astype(np.int16)


def _positions(call: NodeCall, power: int) -> fp.Ints:
    """x in parts of an interval of the table. power: the largest of 2 by which a scale may be shifted in place of a product."""
    codes, scale = call.arrays[0].astype(np.int64), np.float64(scale_of(call.inputs[0]))
    exponent = int(fp.round_half_away(np.log2(np.float32(scale))))
    shift = 12 + exponent
    if abs(np.float32(np.log2(np.float32(scale)) - np.float32(exponent))) < _NEARLY_WHOLE and 0 <= shift <= power:
        return codes * (3 << shift)
    factor, shift = scale * _POSITIONS, 0
    while factor <= 32767.0 / 2.0 and shift <= 30:
        factor, shift = factor * 2.0, shift + 1
    return (codes * int(factor) + ((1 << shift) >> 1)) >> shift


def _between(magnitude: fp.Ints, bits: int) -> fp.Ints:
    """The sigmoid in parts of 2**-(16 + bits), between the two entries around a position. bits: of a part of an interval."""
    table = _sigmoid_table()
    place = np.minimum(magnitude >> bits, len(table) - 2)
    return (table[place] << bits) + (magnitude & ((1 << bits) - 1)) * (table[place + 1] - table[place])


@functools.cache
def _sigmoid_table() -> fp.Ints:
    """`sigmoid(i / 24)` in steps of 2**-16, each raised by half of what the chord to the next one misses in its middle."""
    at = np.arange(256) / _STEP
    exact, middle, after = (2.0**16 / (1 + np.exp(-x)) for x in (at, at + 0.5 / _STEP, at + 1 / _STEP))
    table = np.round(exact + (middle - (exact + after) / 2) / 2).astype(np.int64)
    table[-1] = 2**16 - 1
    return table


def softmax(call: NodeCall) -> NDArray[np.int16]:
    """`exp(x - max) / sum(exp(x - max))` on the last axis, in steps of 2**-15; below -10 the exponential is that of -10."""
    codes = call.arrays[0].astype(np.int64)
    factor = fp.quantize_multiplier(np.float64(scale_of(call.inputs[0])) / (10.0 / 65535.0))
    difference = fp.multiply_by_quantized_multiplier(codes - codes.max(axis=-1, keepdims=True), factor)
    exponential = _look_up(np.clip(difference + 32767, -32768, 32767), _exponential_table())
    total = exponential.sum(axis=-1, keepdims=True)
    headroom = 32 - np.frexp(total)[1].astype(np.int64)  # leading zero bits of an int32
    fraction = ((total << (headroom - 1)) + (1 << 13)) >> 14
    reciprocal = _look_up(np.clip(fraction - 3 * 2**15, -32768, 32767), _reciprocal_table())
    shift = 31 - headroom
    share = (exponential * reciprocal + (np.int64(1) << (shift - 1))) >> shift
    return np.clip(share, 0, 32767).astype(np.int16)


def _look_up(x: fp.Ints, table: fp.Ints) -> fp.Ints:
    """The value at a 16-bit x, between the two entries around it."""
    place = (x >> 7) + _STEPS // 2
    return table[place] + (((table[place + 1] - table[place]) * (x & 127) + 64) >> 7)


@functools.cache
def _exponential_table() -> fp.Ints:
    return _table(np.exp, 10.0 / 65535 * -65535, 0.0)


@functools.cache
def _reciprocal_table() -> fp.Ints:
    return _table(lambda x: 1.0 / (1.0 + x), 0.0, 1.0 / 65535 * 65535)


def _table(function: Callable[[np.ndarray], np.ndarray], first: float, last: float) -> fp.Ints:
    """A function of 512 equal intervals between two values of x, in steps of 2**-15.

    Each entry is lowered by half of what the chord to the next one exceeds the function in its middle.
    """
    step, round_ = (last - first) / _STEPS, fp.round_half_away
    at, scaling = first + np.arange(_STEPS + 1) * step, 65536 / (2.0 / 65535 * 32767 - 2.0 / 65535 * -32768)
    exact, middle = function(at) * scaling, function(at[:-1] + step / 2) * scaling
    entry = round_(exact)
    chord = round_((exact[1:] + entry[:-1]) / 2)
    entry[:-1] -= round_((chord - round_(middle)) / 2)
    return np.clip(entry, -32768, 32767).astype(np.int64)
