"""Reference kernels that work code by code: arithmetic, rectifiers, hard swish, tables, quantize, dequantize.

The factors are formed as LiteRT forms them, in float32 or in double: the last bit of a factor decides ties. Those of mul
and the rectifiers depend on its release: `NodeCall.scales`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.reference import interpolated
from keras_lowbit.deploy.reference.call import NodeCall, kernel, scale_of
from keras_lowbit.numerics import requantization as fp


@kernel("add")
def add(call: NodeCall) -> NDArray[Any]:
    """Both inputs on the grid `2 * max(s_1, s_2) / 2**20`, of int16 codes `/ 2**15`, their sum requantised."""
    return _sum(call, 1)


@kernel("sub")
def sub(call: NodeCall) -> NDArray[Any]:
    """Both inputs on the grid of their sum, their difference requantised."""
    return _sum(call, -1)


def _sum(call: NodeCall, sign: int) -> NDArray[Any]:
    first, second = (np.float64(scale_of(t)) for t in call.inputs)
    grid = 2 * max(first, second)
    finer = _FINER[call.output.dtype]
    back = grid / (2.0**finer * np.float64(scale_of(call.output)))
    if back >= 1:
        raise ValueError(
            f"an input scale of {first:g} and {second:g} is 2**{finer - 1} or more times the output "
            f"scale {scale_of(call.output):g}, which LiteRT refuses: widen the output's range"
        )
    terms = [_on_finer_grid(call, i, s / grid) for i, s in enumerate((first, second))]
    return call.requantized(terms[0] + sign * terms[1], fp.quantize_multiplier(back))


_FINER = {"int8": 20, "int16": 15}  # bits


def _on_finer_grid(call: NodeCall, index: int, ratio: np.float64) -> NDArray[np.int32]:
    """An input on the grid of a sum, 2**20 or 2**15 times as fine: below 2**30, looked up for each code."""
    codes, finer = call.codes(index), _FINER[call.output.dtype]
    scaled = (codes - call.inputs[index].zero_point) * 2**finer
    table = fp.multiply_by_quantized_multiplier(scaled, fp.quantize_multiplier(ratio))
    return table.astype(np.int32)[call.arrays[index].astype(np.int64) - codes[0]]


@kernel("mul")
def mul(call: NodeCall) -> NDArray[Any]:
    """The product of the centred codes times `s_1 * s_2 / s_out`."""
    first, second, target = call.scales()
    product = call.centered(0) * call.centered(1)
    return call.requantized(product, fp.quantize_multiplier(first * second / target))


@kernel("maximum")
def maximum(call: NodeCall) -> NDArray[Any]:
    """The larger code: both inputs and the output have one range."""
    return np.maximum(*call.arrays)


@kernel("minimum")
def minimum(call: NodeCall) -> NDArray[Any]:
    """The smaller code."""
    return np.minimum(*call.arrays)


@kernel("relu")
def relu(call: NodeCall) -> NDArray[Any]:
    """Requantised by `s_in / s_out`, never below the output's zero point."""
    return _rectify(call, "relu")


@kernel("relu6")
def relu6(call: NodeCall) -> NDArray[Any]:
    """As relu, and never above real 6."""
    return _rectify(call, "relu6")


def _rectify(call: NodeCall, name: str) -> NDArray[Any]:
    source, target = call.scales()
    factor = fp.quantize_multiplier(source / target)
    limits = fp.activation_range(name, *call.output.range[:2], call.output.range.limits)
    return call.requantized(call.centered(), factor, limits)


@kernel("leaky_relu")
def leaky_relu(call: NodeCall) -> NDArray[Any]:
    """Two factors, `s_in / s_out` from real 0 on and `s_in * alpha / s_out` below; alpha is a float32."""
    source, target = call.scales()
    slope = source * call.factor(np.float32(call.attributes["alpha"])) / target
    x, zero_point = call.centered(), call.output.zero_point
    above = call.requantized(x, fp.quantize_multiplier(source / target))
    below = fp.multiply_by_quantized_multiplier(x, fp.quantize_multiplier(abs(slope)))
    below = call.as_codes(zero_point + (below if slope >= 0 else -below))
    return np.where(x >= 0, above, below)


@kernel("hard_swish")
def hard_swish(call: NodeCall) -> NDArray[np.int8]:
    """`x * clip(x + 3, 0, 6) / 6` in 16-bit fixed point: x on a 2**7 finer grid, the gate in Q0.15."""
    fine = np.float32(1 / 128) * scale_of(call.inputs[0])
    out_factor = fp.quantize_multiplier(fine / scale_of(call.output))
    gate_factor = fp.quantize_multiplier(fine / np.float32(3 / 32768))
    if out_factor.shift > 0:
        raise ValueError(
            f"the output scale is {scale_of(call.output):g}; expected more than 1/128 of the "
            f"input scale {scale_of(call.inputs[0]):g}: give the output a wider range"
        )
    x = fp.wrap(call.centered() * 2**7, 16)
    value = fp.saturating_rounding_doubling_high_mul(x, _to_int16(out_factor.multiplier), 16)
    gate = _hard_swish_gate(x, gate_factor)
    product = fp.divide_toward_zero(gate * value, 2**15)
    code = fp.rounding_divide_by_power_of_two(product, -out_factor.shift, 16) + call.output.zero_point
    return np.clip(fp.wrap(code, 16), fp.QMIN, fp.QMAX).astype(np.int8)


def _hard_swish_gate(x: fp.Ints, factor: fp.Multiplier) -> fp.Ints:
    """`(x / 3 + 1) / 2` clipped to [0, 1), in Q0.15; x in 16 bits."""
    shift = int(factor.shift)
    gate = _clip16(x * 2 ** (shift - 1)) if shift > 0 else x
    gate = fp.saturating_rounding_doubling_high_mul(gate, _to_int16(factor.multiplier), 16)
    if shift > 0:
        gate = _clip16(gate * 2)
    elif shift < 0:
        gate = fp.rounding_divide_by_power_of_two(gate, -shift, 16)
    return (gate + 2**15) >> 1


def _clip16(x: fp.Ints) -> fp.Ints:
    return np.clip(x, -(2**15), 2**15 - 1)


def _to_int16(multiplier: fp.Ints) -> fp.Ints:
    """A 31-bit multiplier with 15 bits, rounded."""
    return np.minimum((multiplier + 2**15) >> 16, 2**15 - 1)


@kernel("logistic")
def logistic(call: NodeCall) -> NDArray[Any]:
    """A table of 256 codes from float32 `1 / (1 + exp(-x))`; of int16 codes see `interpolated`."""
    if call.output.dtype == "int16":
        return interpolated.logistic(call)
    return _table(call, lambda x: np.float32(1) / (np.float32(1) + _in_double(np.exp, -x)))


@kernel("tanh")
def tanh(call: NodeCall) -> NDArray[Any]:
    """A table of 256 codes from float32 `tanh(x)`; of int16 codes see `interpolated`."""
    if call.output.dtype == "int16":
        return interpolated.tanh(call)
    return _table(call, lambda x: _in_double(np.tanh, x))


@kernel("table")
def table(call: NodeCall) -> np.ndarray:
    """The entry of each code."""
    return call.arrays[1][call.arrays[0].astype(np.int64) - call.inputs[0].range.limits[0]]


def _table(call: NodeCall, function: Callable[[np.ndarray], np.ndarray]) -> NDArray[np.int8]:
    """All 256 codes through a float32 function, then a look-up."""
    codes = np.arange(fp.QMIN, fp.QMAX + 1)
    real = scale_of(call.inputs[0]) * (codes - call.inputs[0].zero_point).astype(np.float32)
    inverse = np.float32(1) / scale_of(call.output)
    steps = fp.round_half_away(function(real) * inverse) + np.float32(call.output.zero_point)
    table = np.clip(steps, fp.QMIN, fp.QMAX).astype(np.int8)
    return table[call.arrays[0].astype(np.int64) + 128]


def _in_double(function: Callable, x: np.ndarray) -> NDArray[np.float32]:
    """The float32 nearest to the true value; a C library's float function gives it up to the last bit."""
    with np.errstate(over="ignore", under="ignore"):
        return function(x.astype(np.float64)).astype(np.float32)


@kernel("quantize")
def quantize(call: NodeCall) -> NDArray[Any]:
    """float32 to codes: `round_half_away(x / scale) + zero_point` in float32; codes to codes: requantised."""
    if call.inputs[0].scale is None:
        return fp.quantize_real(call.arrays[0], scale_of(call.output), call.output.zero_point, call.output.range.limits)
    real = np.float64(scale_of(call.inputs[0])) / np.float64(scale_of(call.output))
    return call.requantized(call.centered(), fp.quantize_multiplier(real))


@kernel("dequantize")
def dequantize(call: NodeCall) -> NDArray[np.float32]:
    """`scale * (code - zero_point)` in float32."""
    return scale_of(call.inputs[0]) * call.centered().astype(np.float32)
