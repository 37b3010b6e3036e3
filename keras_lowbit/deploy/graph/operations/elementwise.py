"""Operations code by code: arithmetic, rectifiers, tables, softmax, and the way between integers and floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from keras_lowbit.deploy.graph.operations.attributes import NUMBER
from keras_lowbit.deploy.graph.operations.operation import (
    FREE,
    Attributes,
    Builtin,
    Limit,
    Operation,
    Shape,
    Use,
    fixed,
    only_int16,
    output_scale,
    plain,
    scales,
    unchanged,
)

MOST_AXES = 4  # of two tensors that LiteRT adds or multiplies


def broadcast_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    """Of two operands; a constant has size 1 on the batch axis. ValueError if they do not fit."""
    first, second = shapes
    batched = [s for s in shapes if s and s[0] is None]
    rank = max(len(first), len(second))
    if not batched or rank > MOST_AXES or any(len(s) != rank for s in batched):
        raise ValueError(
            f"shapes {first} and {second} do not broadcast: activations need the same number of axes (at most {MOST_AXES}), "
            "and a constant at most as many"
        )
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    if any(s[0] not in (None, 1) for s in padded):
        raise ValueError(f"shapes {first} and {second} do not broadcast: a constant has size 1 on the batch axis")
    return (None, *(_broadcast(a, b, shapes) for a, b in zip(padded[0][1:], padded[1][1:], strict=True)))


def _broadcast(a: int | None, b: int | None, shapes: Sequence[Shape]) -> int:
    if a is None or b is None or (a != b and 1 not in (a, b)):
        raise ValueError(f"shapes {shapes[0]} and {shapes[1]} do not broadcast: axes of {a} and {b}")
    return b if a == 1 else a


def _sum_builtin(kind: str, options: str) -> Callable[[Use], Builtin]:
    """ADD and SUB. Of int16 codes they would shift where all three scales are powers of two, and not every pair of them."""
    return lambda use: Builtin(kind, 2, options, {"potScaleInt16": False} if use.codes == "int16" else {})


def _mul_builtin(use: Use) -> Builtin:
    first, second, out = (tensor.range.scale for tensor in (*use.inputs, use.outputs[0]))
    return Builtin("MUL", 3 if first * second / out >= 1 else 2, "MulOptions")


def _table_builtin(use: Use) -> list[Builtin]:
    """Codes as row numbers from 0 on, then a look-up: LiteRT has no operator on codes that takes a table."""
    offset = {"offset": [-use.inputs[0].range.limits[0]]}
    return [
        Builtin("CAST", 1, "CastOptions", operands=(0,), result="code"),
        Builtin("ADD", 1, "AddOptions", constants=offset, operands=("code", "offset"), result="row"),
        Builtin("GATHER", 2, "GatherOptions", {"axis": 0}, operands=(1, "row")),
    ]


def _check_table(use: Use) -> None:
    (codes, table), output = use.inputs, use.outputs[0]
    low, high = codes.range.limits
    shape = (high - low + 1,)
    if codes.is_constant or not table.is_constant or table.shape != shape or table.range != output.range:
        raise ValueError(
            f"{use.where} reads {codes.name!r} by the table {table.name!r} of shape {table.shape}: expected a computed "
            f"tensor, and a constant of shape {shape} in the range of {output.name!r}, for the codes {low} to {high} in order"
        )


def _leaky_relu_builtin(use: Use) -> Builtin:
    return Builtin("LEAKY_RELU", 1, "LeakyReluOptions", {"alpha": use.attributes["alpha"]})


def _check_softmax(use: Use) -> None:
    """Below this scale LiteRT's kernel ends the process."""
    if use.codes == "int8" and scales(use)[0] <= 2.0**-26:
        raise ValueError(
            f"{use.where} reads {use.inputs[0].name!r} of scale {scales(use)[0]:.3g}: LiteRT needs more than {2.0**-26:.3g}. "
            "Calibrate the input again; a range this narrow has one value only"
        )


# Beyond it LiteRT's kernel ends the process (add, sub), refuses (hard_swish), or its upper bound overflows (relu6).
_SUM_FACTOR = Limit("largest input scale / output scale", lambda use: max(scales(use)) / output_scale(use), 2.0**19)
_SUM_FACTOR_16 = only_int16(_SUM_FACTOR._replace(below=2.0**14))
# Beyond it the product of a code and its factor leaves int32.
_LOOKED_UP = only_int16(Limit("input scale", lambda use: scales(use)[0], 5.0))
_HARD_SWISH_FACTOR = Limit("input scale / output scale", lambda use: scales(use)[0] / output_scale(use), 128.0)
SIX_STEPS = Limit("6 / output scale", lambda use: 6 / output_scale(use), 2.0**31 - 1)

# LiteRT's multipliers are integers and a shift by at most 31.
_MOST = 2.0**31 - 1
_FACTOR = Limit("input scale / output scale", lambda use: max(scales(use), default=0.0) / output_scale(use), _MOST)
_SLOPE = Limit(
    "alpha * input scale / output scale",
    lambda use: abs(use.attributes["alpha"]) * scales(use)[0] / output_scale(use),
    _MOST,
)
_PRODUCT = Limit("input scales / output scale", lambda use: math.prod(scales(use)) / output_scale(use), _MOST)

_PAIR: dict[str, Any] = {"inputs": 2, "range": FREE, "fuses_activation": True}
_SUM: dict[str, Any] = {**_PAIR, "limits": (_SUM_FACTOR, _SUM_FACTOR_16)}
_UNIT_RANGE = fixed(1 / 256, -128, 2.0**-15)  # of [0, 1)

ADD = Operation("add", broadcast_shape, _sum_builtin("ADD", "AddOptions"), int16=3, **_SUM)
SUB = Operation("sub", broadcast_shape, _sum_builtin("SUB", "SubOptions"), int16=5, **_SUM)
MUL = Operation("mul", broadcast_shape, _mul_builtin, int16=4, limits=(_PRODUCT,), **_PAIR)
_EXTREMUM: dict[str, Any] = {"inputs": 2, "int16": 4}
MAXIMUM = Operation("maximum", broadcast_shape, plain("MAXIMUM", 2, "MaximumMinimumOptions"), **_EXTREMUM)
MINIMUM = Operation("minimum", broadcast_shape, plain("MINIMUM", 2, "MaximumMinimumOptions"), **_EXTREMUM)
RELU = Operation("relu", unchanged, plain("RELU", 2), range=FREE, int16=3, limits=(_FACTOR,))
RELU6 = Operation("relu6", unchanged, plain("RELU6", 2), range=FREE, int16=3, limits=(_FACTOR, SIX_STEPS))
LEAKY_RELU = Operation(
    "leaky_relu", unchanged, _leaky_relu_builtin, range=FREE, takes={"alpha": NUMBER}, int16=2, limits=(_FACTOR, _SLOPE)
)
HARD_SWISH = Operation(
    "hard_swish", unchanged, plain("HARD_SWISH", 1, "HardSwishOptions"), range=FREE, limits=(_HARD_SWISH_FACTOR,)
)
TABLE = Operation("table", unchanged, _table_builtin, inputs=2, range=FREE, int16=4, check=_check_table)
_TABLES_16: dict[str, Any] = {"int16": 3, "limits": (_LOOKED_UP,)}
SOFTMAX = Operation(
    "softmax",
    unchanged,
    plain("SOFTMAX", 2, "SoftmaxOptions", beta=1.0),
    range=_UNIT_RANGE,
    check=_check_softmax,
    **_TABLES_16,
)
LOGISTIC = Operation("logistic", unchanged, plain("LOGISTIC", 2), range=_UNIT_RANGE, **_TABLES_16)
TANH = Operation("tanh", unchanged, plain("TANH", 2), range=fixed(1 / 128, 0, 2.0**-15), **_TABLES_16)
QUANTIZE = Operation(
    "quantize",
    unchanged,
    plain("QUANTIZE", 1, "QuantizeOptions"),
    range=FREE,
    reads=("int8", "float32"),
    int16=2,
    converts=True,
    limits=(_FACTOR,),
)
DEQUANTIZE = Operation(
    "dequantize", unchanged, plain("DEQUANTIZE", 2, "DequantizeOptions"), range=FREE, writes=("float32",), int16=3
)
