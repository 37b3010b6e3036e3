"""The masks that Keras hands on beside values while a model runs, as tensors of a copy."""

from __future__ import annotations

from typing import Any

from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.keras_graph.calls import Call

_MERGES = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


def mask_behind(call: Call, values: dict[int, Any], masks: dict[int, Any]) -> Any:
    """The mask of a call's result, None for none; `compute_mask` of a layer, or that of its first input.

    values, masks: of the copy, by key; nested models and bare operations hand none on.
    """
    layer, kind = call.operation, stock_kind(call.operation)
    if not call.is_layer or not call.inputs or kind == "?":
        return None
    if (kind == "Embedding" and layer.mask_zero) or kind == "Masking":
        return layer.compute_mask(values[call.inputs[0]])
    if not layer.supports_masking:
        return None
    given = [masks.get(key) for key in call.inputs]
    if kind in _MERGES and len(given) > 1:
        missing = any(mask is None for mask in given)
        return None if missing else layer.compute_mask([values[key] for key in call.inputs], given)
    return given[0]
