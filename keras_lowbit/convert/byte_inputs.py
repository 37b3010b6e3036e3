"""Inputs of type uint8 that are read as reals: cast in one place, so that one range of 0 to 255 stands behind them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_lowbit.convert.analysis.functions import DIVISIONS
from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of, fresh_name, functional_of, is_graph_model
from keras_lowbit.keras_graph.comparison import check_outputs
from keras_lowbit.keras_graph.copies import Copies, clone_model

_READS_REALS = ("Cast", "Rescaling", "Normalization", "Add", "Subtract", "Multiply", *DIVISIONS)


def cast_once(model: keras.Model) -> keras.Model:
    """A copy in which one cast to float32 stands behind each uint8 input that all readers take as reals; the model itself
    where there is nothing to do.

    ValueError if the copy computes something else.
    """
    graph = calls_of(model)
    found = [key for key in graph.inputs if _is_read_as_reals(graph, key)]
    if not found:
        return model
    copy = _copied(model, found, {call.name for call in graph.calls}, Copies())
    check_outputs(model, copy, [graph.tensors[key].name for key in found])
    return copy


def _is_read_as_reals(graph: CallGraph, key: int) -> bool:
    """Whether an input has bytes, all readers take them as reals, and not one cast alone does so already."""
    readers = graph.consumers(key)
    if str(graph.tensors[key].dtype) != "uint8" or not readers or key in graph.outputs:
        return False
    cast_already = len(readers) == 1 and stock_kind(readers[0].operation) == "Cast"
    return not cast_already and all(_reads_reals(call, key) for call in readers)


def _reads_reals(call: Call, key: int) -> bool:
    """Whether a call computes the same of an input in uint8 and in float32."""
    if is_graph_model(call.operation):
        places = zip(call.inputs, functional_of(call.operation).inputs, strict=True)
        return all("float" in str(inner.dtype) for source, inner in places if source == key)
    makes = {str(tensor.dtype) for tensor in call.results}
    if stock_kind(call.operation) == "Cast":
        return makes == {"float32"}
    return stock_kind(call.operation) in _READS_REALS and all("float" in kind for kind in makes)


def _copied(model: Any, inputs: list[int], names: set[str], copies: Copies) -> keras.Model:
    """The copy of a model. inputs: keys of those that are cast."""
    reals: dict[int, Any] = {}

    def real(key: int, value: Any) -> Any:
        if key not in reals:
            reals[key] = ops.cast(value, "float32")
            reals[key]._keras_history.operation.name = fresh_name(f"{value.name}_pixels", names)
        return reals[key]

    def emit(call: Call, values: dict[int, Any]) -> list[Any]:
        given = {key: real(key, values[key]) if key in inputs else values[key] for key in call.inputs}
        if stock_kind(call.operation) == "Cast" and call.inputs[0] in inputs:
            return list(given.values())
        if is_graph_model(call.operation):
            return call.run(given, copies.get(call.operation, lambda: _copied(call.operation, [], set(), copies)))
        return copies.call(call, given)[0]

    return clone_model(model, emit)
