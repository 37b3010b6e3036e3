"""Channels-first models as channels-last ones: turned where they begin and end, the same weights inside.

LiteRT's kernels are channels-last. A value of a channels-first layer is kept with its channels last for as long as those that
read it can take it so; any other call reads it turned back.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.analysis.functions import OPERATIONS
from keras_lowbit.convert.analysis.operations import activation_name, stock_kind
from keras_lowbit.convert.analysis.supported import DROPOUTS
from keras_lowbit.keras_graph.calls import Call, all_calls, calls_of, fresh_name, functional_of, is_graph_model
from keras_lowbit.keras_graph.comparison import check_outputs
from keras_lowbit.keras_graph.copies import Copies, copy_variables, live_config, model_like
from keras_lowbit.layers import QuantizedLayer

_POINTWISE = {
    *"Add Subtract Multiply Average Maximum Minimum Activation ReLU LeakyReLU ELU Identity Relu Relu6 LeakyRelu".split(),
    *"Sigmoid Silu Tanh HardSigmoid HardSilu".split(),
    *DROPOUTS,
    *OPERATIONS,
}
_MIXES = ("softmax", "log_softmax", "?")  # activation functions that know an axis, or may
_OF_CHANNELS = ("BatchNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "Softmax")
_RANKS = (3, 4, 5)  # of signals, images and volumes


def channels_last(model: keras.Model) -> keras.Model:
    """A copy that computes the same with channels last, its inputs and outputs as they were; the model itself if nothing in it
    has its channels first.

    ValueError if the copy computes something else.
    """
    first = [path for path, call in all_calls(model) if _is_first(call)]
    if not first:
        return model
    copy = _Walk(model, Copies()).copied()
    check_outputs(model, copy, first)
    return copy


def _is_first(call: Call) -> bool:
    """Whether a call is that of a stock layer on signals, images or volumes whose channels are first."""
    layer = call.operation
    stock = stock_kind(layer) != "?" and not isinstance(layer, QuantizedLayer)
    if not stock or getattr(layer, "data_format", None) != "channels_first" or len(call.inputs) != 1:
        return False
    return len(call.tensors[0].shape) in _RANKS and len(call.results) == 1


class _Walk:
    """One model of the nest on its way. last: keys of the values that have their channels last in the copy."""

    def __init__(self, model: Any, copies: Copies) -> None:
        self.model, self.copies, self.graph = model, copies, calls_of(model)
        self.last: set[int] = set()
        self._turned: dict[tuple[int, bool], Any] = {}
        self._names = {call.name for call in self.graph.calls}

    def copied(self) -> keras.Model:
        """The copy."""
        inputs = [
            keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history.operation.name)
            for tensor in functional_of(self.model).inputs
        ]
        outputs = self.graph.run(inputs, self._emit)
        ends = zip(self.graph.outputs, outputs, strict=True)
        return model_like(self.model, inputs, [self._plain(key, value) for key, value in ends])

    def _emit(self, call: Call, values: dict[int, Any]) -> list[Any]:
        if (changes := self._changes(call)) is not None:
            found = self._changed(call, {key: self._channels_last(key, values[key]) for key in call.inputs}, changes)
            if len(call.results[0].shape) == len(call.tensors[0].shape):
                self.last.add(call.outputs[0])
            return found
        plain = {key: self._plain(key, values[key]) for key in call.inputs}
        if is_graph_model(call.operation):
            return call.run(plain, self.copies.get(call.operation, lambda: _Walk(call.operation, self.copies).copied()))
        return self.copies.call(call, plain)[0]

    def _changes(self, call: Call) -> dict[str, Any] | None:
        """What is another in the configuration of a call that has its channels last; None for one that has not."""
        kind, layer = stock_kind(call.operation), call.operation
        if _is_first(call):
            return {"data_format": "channels_last"}
        if len(call.results) != 1 or not self.last.intersection(call.inputs):
            of_images = kind == "BatchNormalization" and layer.axis == 1 and len(call.tensors[0].shape) == 4
            return {"axis": -1} if of_images else None
        rank = len(call.results[0].shape)
        if any(len(tensor.shape) != rank for tensor in call.tensors):
            return None
        if kind in _POINTWISE and activation_name(layer) not in _MIXES:
            return {} if all(np.size(value) == 1 for value in call.constants()) else None
        if kind in _OF_CHANNELS and _axis(layer) == 1:
            return {"axis": -1}
        if kind == "Concatenate" and call.is_layer and layer.axis % rank:
            return {"axis": rank - 1 if layer.axis % rank == 1 else layer.axis % rank - 1}
        return None

    def _changed(self, call: Call, values: dict[int, Any], changes: dict[str, Any]) -> list[Any]:
        """The results of the copy of a call's operation with changes in its configuration."""
        layer, copy = call.operation, self.copies.made(call.operation)
        if not changes:
            return self.copies.call(call, values)[0]
        if copy is None:
            copy = self.copies.get(layer, lambda: type(layer).from_config(live_config(layer) | changes))
            results = call.run(values, copy)
            copy_variables(layer, copy)
            return results
        return call.run(values, copy)

    def _channels_last(self, key: int, value: Any) -> Any:
        rank = len(value.shape)
        return value if key in self.last else self._turn(key, value, (0, *range(2, rank), 1), "channels_last")

    def _plain(self, key: int, value: Any) -> Any:
        """The value with its axes as in the model."""
        rank = len(value.shape)
        return (
            self._turn(key, value, (0, rank - 1, *range(1, rank - 1)), "channels_first") if key in self.last else value
        )

    def _turn(self, key: int, value: Any, axes: tuple[int, ...], what: str) -> Any:
        place = key, key in self.last
        if place not in self._turned:
            name = fresh_name(f"{value._keras_history.operation.name}_{what}", self._names)
            self._names.add(name)
            self._turned[place] = ops.transpose(value, axes)
            self._turned[place]._keras_history.operation.name = name
        return self._turned[place]


def _axis(layer: Any) -> int | None:
    axis = getattr(layer, "axis", None)
    return axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis if isinstance(axis, int) else None
