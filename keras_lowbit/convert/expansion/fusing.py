"""LSTM layers as LiteRT's own: one layer of this library each, with the quantizers that the recipe gives it."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_lowbit.convert.analysis.masks import reals_of
from keras_lowbit.convert.analysis.operations import is_wide, stock_kind
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.copies import merged_config
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.find import unquantized
from keras_lowbit.layers.recurrent import QuantLSTM, not_fused_because
from keras_lowbit.quantizers import Quantizer, Uniform, is_activation_quantizer
from keras_lowbit.recipes import Recipe

_BITS = 8  # of LiteRT's operator


@dataclasses.dataclass
class Fuser:
    """recipe: whose rules for dense layers give both kernels their quantizer, and whose activations the state.

    left: path of each LSTM that stays as it is -> why.   fused: paths of the others.
    """

    recipe: Recipe
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    fused: set[str] = dataclasses.field(default_factory=set)
    _made: dict[int, QuantLSTM] = dataclasses.field(default_factory=dict)

    def takes(self, call: Call, path: str) -> bool:
        """Whether a call becomes LiteRT's LSTM; noted where one does not."""
        if stock_kind(call.operation) != "LSTM":
            return False
        reason = self._reason(call, path)
        if reason is None:
            self.fused.add(path)
        else:
            self.left[path] = reason
        return reason is None

    def emit(self, call: Call, path: str, values: dict[int, Any]) -> Any:
        """What stands for the call."""
        key = id(call.operation)
        if key not in self._made:
            self._made[key] = self._layer(call, path)
        return self._made[key](values[call.inputs[0]])

    def stand_in(self, call: Call, values: dict[int, Any]) -> list[Any] | None:
        """The same, nothing quantized; None for other calls."""
        if (layer := self._made.get(id(call.operation))) is None:
            return None
        with unquantized(layer):
            return [layer(values[call.inputs[0]])]

    def _reason(self, call: Call, path: str) -> str | None:
        if len(reals_of(call)) > 1 or call.arguments.kwargs.get("initial_state") is not None:
            return "it is given its first state: LiteRT's LSTM begins with zeros"
        if call.arguments.kwargs.get("mask") is not None:
            return "it is called with a mask"
        if (reason := not_fused_because(call.operation)) is not None:
            return reason
        kernel, activations = self._kernel(call, path), self.recipe.activations
        if not isinstance(kernel, Uniform):
            return f"its kernels have {kernel or 'no quantizer'}: LiteRT's LSTM has weights of up to {_BITS} bits ('uniform')"
        if not is_activation_quantizer(activations) or is_wide(activations):
            return f"the recipe's activations are {activations}: LiteRT's LSTM has {_BITS} bits"
        return None

    def _kernel(self, call: Call, path: str) -> Quantizer | None:
        return self.recipe.kernel_quantizer(call.name, path, "dense")

    def _layer(self, call: Call, path: str) -> QuantLSTM:
        stock, activations = call.operation, self.recipe.activations
        changes = {"kernel_quantizer": self._kernel(call, path), "output_quantizer": activations.with_bits(_BITS)}
        layer = QuantLSTM.from_config({**merged_config(stock), **changes})
        layer.build(tuple(call.tensors[0].shape))
        for own, given in zip(layer.cell.weights, stock.cell.weights, strict=True):
            own.assign(to_numpy(given))
        layer.trainable = stock.trainable
        return layer
