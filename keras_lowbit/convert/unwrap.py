"""Layers whose wrapper does something in training alone, without it."""

from __future__ import annotations

from typing import Any

import keras

from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.keras_graph.calls import Call, all_calls, is_graph_model
from keras_lowbit.keras_graph.comparison import check_outputs
from keras_lowbit.keras_graph.copies import Copies, clone_model, copy_variables, unbuilt_copy


def without_wrappers(model: keras.Model) -> keras.Model:
    """A copy in which the layer inside a `SpectralNormalization` stands for it, under its name; the model itself without one.

    The kernel is what training has left, normalized in each of its steps; that of the copy is not normalized any more.
    ValueError if the copy computes something else.
    """
    found = [path for path, call in all_calls(model) if _wraps(call)]
    if not found:
        return model
    copy = _copied(model, Copies())
    check_outputs(model, copy, found)
    return copy


def _wraps(call: Call) -> bool:
    return stock_kind(call.operation) == "SpectralNormalization" and call.arguments.kwargs.get("training") is not True


def _copied(model: Any, copies: Copies) -> keras.Model:
    def emit(call: Call, values: dict[int, Any]) -> list[Any]:
        if is_graph_model(call.operation):
            return call.run(values, copies.get(call.operation, lambda: _copied(call.operation, copies)))
        if not _wraps(call):
            return copies.call(call, values)[0]
        inner = copies.get(call.operation, lambda: _inner(call.operation, values[call.inputs[0]]))
        return [inner(values[call.inputs[0]])]

    return clone_model(model, emit)


def _inner(wrapper: Any, x: Any) -> Any:
    """A copy of the layer inside, with its weights, under the wrapper's name."""
    layer = unbuilt_copy(wrapper.layer)
    layer.name = wrapper.name
    layer(x)
    copy_variables(wrapper.layer, layer)
    layer.trainable = wrapper.trainable and wrapper.layer.trainable
    return layer
