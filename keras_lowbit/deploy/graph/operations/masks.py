"""Operations on masks and whole numbers, which are values and have no range, and the choice between codes by a mask."""

from __future__ import annotations

from collections.abc import Sequence

from keras_lowbit.deploy.graph.operations.attributes import WHOLE, one_of
from keras_lowbit.deploy.graph.operations.elementwise import broadcast_shape
from keras_lowbit.deploy.graph.operations.operation import FREE, Attributes, Builtin, Operation, Shape, Use, unchanged

_COMPARISONS = {
    "equal": "Equal",
    "not_equal": "NotEqual",
    "greater": "Greater",
    "greater_equal": "GreaterEqual",
    "less": "Less",
    "less_equal": "LessEqual",
}
COMPARISONS = tuple(_COMPARISONS)


def _compare_builtin(use: Use) -> Builtin:
    kind = use.attributes["kind"]
    constants = {"number": use.attributes["number"]}
    return Builtin(kind.upper(), 1, f"{_COMPARISONS[kind]}Options", constants=constants)


def _where_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    mask, *parts = shapes
    shape = mask
    for part in parts:
        shape = broadcast_shape(attributes, (shape, part))
    return shape


def _check_where(use: Use) -> None:
    mask, *parts = use.inputs
    if mask.dtype != "bool" or mask.is_constant or any(part.scale is None for part in parts):
        kinds = ", ".join(f"{tensor.name!r} of {tensor.dtype}" for tensor in use.inputs)
        raise ValueError(f"{use.where} reads {kinds}: expected a computed mask (bool), then codes and codes")


COMPARE = Operation(
    "compare",
    unchanged,
    _compare_builtin,
    range=FREE,
    reads=("int32",),
    writes=("bool",),
    takes={"kind": one_of(*COMPARISONS), "number": WHOLE},
)
LOGICAL_AND, LOGICAL_OR = (
    Operation(
        name,
        broadcast_shape,
        lambda use: Builtin(use.node.op.upper(), 1, f"Logical{use.node.op.removeprefix('logical_').title()}Options"),
        inputs=2,
        range=FREE,
        reads=("bool",),
        writes=("bool",),
    )
    for name in ("logical_and", "logical_or")
)
LOGICAL_NOT = Operation(
    "logical_not",
    unchanged,
    lambda use: Builtin("LOGICAL_NOT", 1, "LogicalNotOptions"),
    range=FREE,
    reads=("bool",),
    writes=("bool",),
)
WHERE = Operation(
    "where",
    _where_shape,
    lambda use: Builtin("SELECT_V2", 1, "SelectV2Options"),
    inputs=3,
    reads=("bool", "int8"),
    int16=1,
    check=_check_where,
)
