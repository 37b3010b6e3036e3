"""Pairs of layers between which channels can be scaled: first layer, relu or nothing, second layer."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import activation_name, stock_kind
from keras_lowbit.convert.reports.conversion import Refused
from keras_lowbit.keras_graph.calls import Call, CallGraph, inputs_in_order
from keras_lowbit.numerics.kernel_layouts import LAYOUTS

Weights = dict[str, np.ndarray]
FIRST = ("Conv1D", "Conv2D", "DepthwiseConv2D", "Dense")
SECOND = ("Conv1D", "Conv2D", "DepthwiseConv2D", "Dense")
# Per channel, and scaling the channel scales the result: they may stand between.
_SCALES_THROUGH = (
    "Dropout SpatialDropout1D SpatialDropout2D Identity MaxPooling1D MaxPooling2D AveragePooling1D AveragePooling2D "
    "GlobalMaxPooling1D GlobalMaxPooling2D GlobalAveragePooling1D GlobalAveragePooling2D ZeroPadding1D ZeroPadding2D"
).split()


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two layers and what stands between: "linear", "relu" or "relu6"; `relu` is the call that has the activation."""

    first: Call
    second: Call
    activation: str
    relu: Call

    @property
    def layers(self) -> tuple[Any, Any]:
        """The two layers."""
        return self.first.operation, self.second.operation


def find_pairs(graph: CallGraph, first: tuple[str, ...] = FIRST) -> Iterator[tuple[Call, Pair | Refused]]:
    """Every layer of the kinds `first` in running order, with its pair or the reason why it is in none."""
    for call in graph.calls:
        if stock_kind(call.operation) in first:
            yield call, _pair(graph, call)


def _pair(graph: CallGraph, first: Call) -> Pair | Refused:
    if reason := _unfit(graph, first):
        return Refused(reason)
    activation, relu, call = activation_name(first.operation), first, first
    while (reader := graph.only_consumer(call.outputs[0])) is not None:
        name, kind = _relu_name(reader), stock_kind(reader.operation)
        if kind in SECOND and _channels_last(reader):
            reason = _unfit_second(graph, reader, activation)
            return Pair(first, reader, activation, relu) if reason is None else Refused(reason)
        if name is not None and activation == "linear":
            activation, relu = name, reader
        elif kind not in _SCALES_THROUGH or not _channels_last(reader):
            return Refused(f"{reader.path} ({reader.kind}) stands between it and the next layer")
        call = reader
    return Refused(f"the output of {call.path} has several readers or leaves the model")


def _unfit_second(graph: CallGraph, second: Call, activation: str) -> str | None:
    """Why a layer behind an activation cannot be the second of a pair; None if it can."""
    if reason := _unfit(graph, second):
        return reason
    if activation not in ("linear", "relu", "relu6"):
        return f"its activation {activation!r} does not scale"
    return f"{second.path} after it has groups" if getattr(second.operation, "groups", 1) > 1 else None


def _unfit(graph: CallGraph, call: Call) -> str | None:
    """Why a layer can be in no pair; None if it can."""
    if isinstance(call.operation, klb_layers.QuantizedLayer):
        return f"{call.path} is quantized already"
    if graph.uses(call.operation) > 1:
        return f"{call.path} is shared: it runs {graph.uses(call.operation)} times"
    return None if _channels_last(call) else f"{call.path} is channels_first"


def _relu_name(call: Call) -> str | None:
    """ "relu" or "relu6" for an operation that is just that, None for others."""
    operation, kind = call.operation, stock_kind(call.operation)
    if kind == "ReLU" and not operation.threshold and not operation.negative_slope:
        return {None: "relu", 6.0: "relu6"}.get(operation.max_value)
    if kind in ("Relu", "Relu6"):
        return kind.lower()
    name = activation_name(operation) if kind == "Activation" else ""
    return name if name in ("relu", "relu6") else None


def _channels_last(call: Call) -> bool:
    return getattr(call.operation, "data_format", "channels_last") == "channels_last"


def output_maxima(layer: Any, weights: Weights) -> np.ndarray:
    """``max |w|`` of each output channel."""
    return LAYOUTS[stock_kind(layer)].output_maxima(weights["kernel"])


def input_maxima(layer: Any, weights: Weights) -> np.ndarray:
    """``max |w|`` over what multiplies each input channel."""
    return LAYOUTS[stock_kind(layer)].input_maxima(weights["kernel"])


def scale_outputs(layer: Any, weights: Weights, factor: np.ndarray) -> Weights:
    """Weights and bias of each output channel times its factor."""
    per_output = LAYOUTS[stock_kind(layer)].per_output(factor, weights["kernel"].shape)
    return {name: value * (per_output if name == "kernel" else factor) for name, value in weights.items()}


def scale_inputs(layer: Any, weights: Weights, factor: np.ndarray) -> Weights:
    """What multiplies each input channel, times the channel's factor."""
    kernel = weights["kernel"]
    return weights | {"kernel": kernel * LAYOUTS[stock_kind(layer)].per_input(factor, kernel.shape)}


def channel_maxima(
    model: keras.Model, graph: CallGraph, keys: list[int], batches: Iterable[Any]
) -> dict[int, np.ndarray]:
    """The largest value of every channel (last axis) of some tensors over data, by the tensors' keys."""
    found: dict[int, np.ndarray] = {}

    def look(call: Call, values: dict[int, Any]) -> list[Any]:
        results = call.run(values)
        for key, value in zip(call.outputs, results, strict=True):
            if key in keys:
                seen = keras.ops.convert_to_numpy(value)
                largest = seen.reshape(-1, seen.shape[-1]).max(axis=0)
                found[key] = np.maximum(found.get(key, largest), largest)
        return results

    if keys:
        for batch in batches:
            graph.run(map(keras.ops.convert_to_tensor, inputs_in_order(model, batch)), look)
    return found
