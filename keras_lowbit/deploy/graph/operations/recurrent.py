"""LiteRT's LSTM in integers: all steps of a layer in one operator, with 8-bit inputs, weights and results and a 16-bit cell.

The operator reads the state of the run before from two variable tensors. Here they are written in front of it, with zeros, so
that equal inputs give equal results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.graph.operations.attributes import whole
from keras_lowbit.deploy.graph.operations.operation import (
    FREE,
    Attributes,
    Builtin,
    Operation,
    Placed,
    Shape,
    Use,
    need_rank,
)
from keras_lowbit.deploy.graph.tensors import Tensor
from keras_lowbit.numerics.requantization import INT32_MAX, Multiplier, quantize_multiplier

GATES = ("in", "forget", "candidate", "out")  # in the order of Keras and of LiteRT
SUM_STEP = 2.0**-12  # of what goes into a gate: int16 codes of -8 to 8
MOST_CELL_BITS = 6  # of LiteRT's tanh: it leaves out a cell that reaches farther than 64
_TANH = 4  # of LiteRT's ActivationFunctionType


class Factors(NamedTuple):
    """inputs, states: of the sums of each gate.   hidden: of the product that is the result."""

    inputs: list[Multiplier]
    states: list[Multiplier]
    hidden: Multiplier


def cell_step(attributes: Attributes) -> float:
    """One step of the cell's int16 codes."""
    return 2.0 ** (attributes["cell_bits"] - 15)


def factors(inputs: Sequence[Tensor], output: Tensor) -> Factors:
    """What LiteRT multiplies sums and products by, formed in float32 as there. inputs: of the node."""
    real, kernel, recurrent = (np.float32(tensor.scale) for tensor in inputs[:3])
    hidden = np.float32(output.range.scale)

    def each(scales: Any, scale: np.float32) -> list[Multiplier]:
        return [quantize_multiplier(np.float64(np.float32(own * scale) / np.float32(SUM_STEP))) for own in scales]

    made = np.float32(2.0**-15 / np.float64(hidden) * 2.0**-15)
    return Factors(each(kernel, real), each(recurrent, hidden), quantize_multiplier(np.float64(made)))


def _lstm_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    sequence, kernel, recurrent, bias = shapes
    need_rank(sequence, 3, "lstm input [batch, steps, features]")
    need_rank(kernel, 3, "lstm kernel [4, units, features]")
    units = kernel[1]
    if kernel != (4, units, sequence[2]) or recurrent != (4, units, units) or bias != (4, units):
        raise ValueError(
            f"kernel {kernel}, recurrent kernel {recurrent} and bias {bias} do not fit {sequence[2]} features: expected "
            f"(4, units, {sequence[2]}), (4, units, units) and (4, units)"
        )
    return (*sequence[:2], units)


def _check_lstm(use: Use) -> None:
    """Constants of one scale for each gate, a bias in the steps of the input's sums, and sums that int32 holds."""
    real, *constants = use.inputs
    (kernel, scales), (recurrent, _), (bias, steps) = (_weights(use, tensor) for tensor in constants)
    expected = np.float32(real.range.scale) * scales
    if not np.array_equal(steps, expected):
        raise ValueError(f"{use.where} has the bias scales {steps}: expected those of the inputs' sums, {expected}")
    if (most := use.attributes["cell_bits"]) > MOST_CELL_BITS:
        raise ValueError(f"{use.where} has a cell of +-2**{most}: LiteRT takes up to 2**{MOST_CELL_BITS}")
    found = factors(use.inputs, use.outputs[0])
    _check_sums(use, kernel, bias, real, found.inputs)
    _check_sums(use, recurrent, np.zeros_like(bias), use.outputs[0], found.states)


def _weights(use: Use, tensor: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes and scales of a constant."""
    if tensor.data is None or tensor.scale is None or tensor.scale.shape != (len(GATES),) or tensor.zero_point:
        raise ValueError(
            f"{use.where} reads {tensor.name!r}: expected a constant of {len(GATES)} scales, one for each gate, and zero "
            "point 0"
        )
    return tensor.data.astype(np.int64), tensor.scale


def _check_sums(use: Use, kernel: Any, bias: Any, read: Tensor, scaled: list[Multiplier]) -> None:
    """ValueError unless int32 holds every sum, shifted by its factor. read: what the kernel multiplies."""
    reach = max(abs(code - read.zero_point) for code in read.range.limits)
    for gate, codes, added, factor in zip(GATES, np.abs(kernel), np.abs(bias), scaled, strict=True):
        largest = int((codes.sum(1) * reach + added).max()) << max(int(factor.shift), 0)
        if largest > INT32_MAX:
            raise ValueError(
                f"{use.where}: the sums of {read.name!r} for its {gate} gate could reach {largest:,}, beyond int32: give "
                f"{read.name!r} a narrower range"
            )


def _lstm_builtin(use: Use) -> list[Builtin]:
    placed = _constants(use) | _states(use)
    first = Builtin(
        "STRIDED_SLICE",
        2,
        "StridedSliceOptions",
        {"beginMask": 1, "endMask": 1, "shrinkAxisMask": 2},
        {"begin": [0, 0, 0], "end": [0, 1, 1], "strides": [1, 1, 1]},
        (0, "begin", "end", "strides"),
        result="first",
        placed=placed,
    )
    kernels = (f"{part}_{gate}" for part in ("kernel", "recurrent") for gate in GATES)
    biases = (f"bias_{gate}" for gate in GATES)
    absent = (None,) * 3  # peepholes, then a projection, then a normalization
    operands = (0, *kernels, *absent, *biases, None, None, "hidden", "cell", *absent, None)
    options = {"fusedActivationFunction": _TANH, "cellClip": 0.0, "projClip": 0.0, "timeMajor": False}
    return [
        first,
        Builtin("MUL", 2, "MulOptions", operands=("first", "zeros"), result="hidden"),
        Builtin("QUANTIZE", 2, "QuantizeOptions", operands=("hidden",), result="cell"),
        Builtin(
            "UNIDIRECTIONAL_SEQUENCE_LSTM",
            1,
            "UnidirectionalSequenceLSTMOptions",
            options,
            operands=operands,
            intermediates=(*(f"sum_{gate}" for gate in GATES), "product"),
        ),
    ]


def _constants(use: Use) -> dict[str, Placed]:
    """The weights gate by gate, and zeros."""
    found = {}
    for part, tensor in zip(("kernel", "recurrent", "bias"), use.inputs[1:], strict=True):
        for gate, codes, scale in zip(GATES, tensor.data, tensor.scale, strict=True):  # type: ignore[arg-type]
            found[f"{part}_{gate}"] = Placed(codes.shape, tensor.dtype, float(scale), 0, codes)
    units, hidden = use.outputs[0].shape[-1] or 0, use.outputs[0].range
    return found | {"zeros": Placed((1, units), "int8", hidden.scale, 0, np.zeros((1, units), np.int8))}


def _states(use: Use) -> dict[str, Placed]:
    """The state, what it is made of, and the grids between the parts of a step."""
    batch, (real, output) = use.batch_size, (use.inputs[0].range, use.outputs[0].range)
    units = use.outputs[0].shape[-1]
    sums = {f"sum_{gate}": Placed((0,), "float32") for gate in GATES}
    return {
        "first": Placed((batch, 1), "int8", real.scale, real.zero_point),
        "hidden": Placed((batch, units), "int8", output.scale, output.zero_point, is_variable=True),
        "cell": Placed((batch, units), "int16", cell_step(use.attributes), 0, is_variable=True),
        **sums,
        "product": Placed((0,), "int8", output.scale, output.zero_point),
    }


LSTM = Operation(
    "lstm",
    _lstm_shape,
    _lstm_builtin,
    inputs=4,
    range=FREE,
    takes={"cell_bits": whole(0)},
    parameters=(("int8",), ("int8",), ("int32",)),
    check=_check_lstm,
)
