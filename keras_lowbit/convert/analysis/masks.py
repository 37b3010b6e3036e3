"""Which calls make masks and whole numbers of such, exactly and without a range, and which choose between reals by a mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_lowbit.convert.analysis.functions import starts_with_tensor
from keras_lowbit.convert.analysis.supported import unsupported_reason
from keras_lowbit.keras_graph.calls import Call

COMPARISONS = {
    "Equal": "equal",
    "NotEqual": "not_equal",
    "Greater": "greater",
    "GreaterEqual": "greater_equal",
    "Less": "less",
    "LessEqual": "less_equal",
}
LOGIC = {"LogicalAnd": "and", "LogicalOr": "or", "LogicalNot": "not"}
MOVES = ("Reshape", "Squeeze", "ExpandDims", "GetItem", "Transpose")
_MOST_AXES = 4  # of masks that LiteRT joins
_HIDES = -1e4  # a number so low beside scores that a softmax makes nothing of it


def has_form(call: Call, kind: str) -> bool:
    """Whether a call of masks or whole numbers has a form in integers. kind: the class name of its operation."""
    reads, makes = ({str(tensor.dtype) for tensor in side} for side in (call.tensors, call.results))
    if kind == "Cast":
        return (reads, makes) == ({"int32"}, {"bool"})
    if kind in COMPARISONS:
        constants = [value for value in call.constants() if value is not None]
        whole = len(constants) == 1 and np.size(constants[0]) == 1 and float(np.asarray(constants[0])).is_integer()
        return reads == {"int32"} and len(call.inputs) == 1 and whole and starts_with_tensor(call)
    if kind in LOGIC:
        ranks = {len(tensor.shape) for tensor in call.tensors}
        plain = len(call.inputs) == (1 if kind == "LogicalNot" else 2) and len(ranks) == 1
        return reads == {"bool"} and plain and max(ranks) <= _MOST_AXES
    moved = kind in MOVES and reads == makes and reads in ({"bool"}, {"int32"}) and len(call.results) == 1
    return moved and unsupported_reason(call, kind) is None


def reals_of(call: Call) -> list[int]:
    """Keys of the inputs that are reals."""
    return [key for key, tensor in zip(call.inputs, call.tensors, strict=True) if "float" in str(tensor.dtype)]


def choice_of(call: Call) -> tuple[Any, Any] | None:
    """What a `where` takes where its mask is true, and elsewhere: keys of tensors, or numbers; None for another form of it."""
    given = [*call.arguments.args, *call.arguments.kwargs.values()]
    keys = {id(tensor): key for tensor, key in zip(call.tensors, call.inputs, strict=True)}
    if len(given) != 3 or id(given[0]) not in keys or str(given[0].dtype) != "bool":
        return None
    found = tuple(keys.get(id(value), value) if id(value) in keys else _number(value) for value in given[1:])
    return None if None in found else found  # type: ignore[return-value]


def _number(value: Any) -> float | None:
    return float(np.asarray(value)) if isinstance(value, int | float | np.number) or np.ndim(value) == 0 else None


def hides(call: Call) -> bool:
    """Whether a `where` keeps reals where its mask is true, and has a very low number elsewhere."""
    found = choice_of(call)
    return found is not None and isinstance(found[1], float) and found[1] <= _HIDES and found[0] in reals_of(call)
