"""The reference LSTM: LiteRT's integer kernel step by step.

Source: LiteRT `kernels/lstm_eval.cc` (`LstmStepInteger8x8_16`) and `kernels/internal/reference/portable_tensor_utils.cc`, which
its reference resolver and, on x86, its default one both run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.graph.operations.recurrent import GATES, Factors, factors
from keras_lowbit.deploy.reference.call import NodeCall, kernel
from keras_lowbit.deploy.reference.fixed_point_16 import HIGH, LOW, gate_table, tanh_table
from keras_lowbit.numerics import requantization as fp


@kernel("lstm")
def lstm(call: NodeCall) -> NDArray[np.int8]:
    """`c = f c + i g`, `h = o tanh(c)` of gates in Q0.15 and a cell of 16 bits, from a state of zeros; every h."""
    _, kernel_codes, recurrent, bias = (array.astype(np.int64) for array in call.arrays)
    x, scaled, zero_point = call.centered(), factors(call.inputs, call.output), call.output.zero_point
    entering = [
        _saturated(fp.multiply_by_quantized_multiplier(x @ codes.T + added, factor))
        for codes, added, factor in zip(kernel_codes, bias, scaled.inputs, strict=True)
    ]
    hidden = np.zeros((len(x), kernel_codes.shape[1]), np.int64)  # less the zero point
    cell, found = np.zeros_like(hidden), []
    for step in range(x.shape[1]):
        gates = _gates([total[:, step] for total in entering], hidden, recurrent, scaled)
        cell, product = _next_cell(gates, cell, call.attributes["cell_bits"])
        codes = call.as_codes(fp.multiply_by_quantized_multiplier(product, scaled.hidden) + zero_point)
        found.append(codes)
        hidden = codes.astype(np.int64) - zero_point
    return np.stack(found, axis=1)


def _gates(entering: list[Any], hidden: fp.Ints, recurrent: fp.Ints, scaled: Factors) -> list[fp.Ints]:
    """The gates in, forget, candidate and out of one step."""
    found = []
    for gate, total, codes, factor in zip(GATES, entering, recurrent, scaled.states, strict=True):
        known = fp.multiply_by_quantized_multiplier(hidden @ codes.T, factor)
        found.append(gate_table(gate)[_saturated(total + known) - LOW])
    return found


def _next_cell(gates: list[fp.Ints], cell: fp.Ints, cell_bits: int) -> tuple[fp.Ints, fp.Ints]:
    """The cell behind a step, and the product of its tanh with the out gate, in Q0.30."""
    entered, forget, candidate, out = gates
    kept = fp.rounding_divide_by_power_of_two(forget * cell, 15)
    added = fp.rounding_divide_by_power_of_two(entered * candidate, 15 + cell_bits)
    cell = _saturated(kept + added)
    return cell, out * tanh_table(cell_bits)[cell - LOW]


def _saturated(x: fp.Ints) -> fp.Ints:
    return np.clip(x, LOW, HIGH)
