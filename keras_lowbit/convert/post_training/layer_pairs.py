"""Pairs of layers between which channels can be scaled: first layer, relu or nothing, second layer."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_lowbit import data as klb_data
from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import activation_name, stock_kind
from keras_lowbit.keras_graph.calls import Call, CallGraph, inputs_in_order

FIRST = ("Conv1D", "Conv2D", "DepthwiseConv2D", "Dense")
SECOND = ("Conv1D", "Conv2D", "DepthwiseConv2D", "Dense")
# Per channel, and scaling the channel scales the result: they may stand between.
_SCALES_THROUGH = (
    "Dropout SpatialDropout1D SpatialDropout2D Identity MaxPooling1D MaxPooling2D AveragePooling1D AveragePooling2D "
    "GlobalMaxPooling1D GlobalMaxPooling2D GlobalAveragePooling1D GlobalAveragePooling2D ZeroPadding1D ZeroPadding2D"
).split()


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two layers and what stands between: "linear", "relu" or "relu6"; `clip` is the call that has the activation."""

    first: Call
    second: Call
    activation: str
    clip: Call


def find_pairs(graph: CallGraph, first: tuple[str, ...] = FIRST) -> Iterator[Pair | tuple[Call, str]]:
    """Every layer of the kinds `first` in running order: its pair, or the reason why it is in none."""
    runs = Counter(id(call.operation) for call in graph.calls)
    for call in graph.calls:
        if stock_kind(call.operation) in first:
            found = _pair(graph, call, runs)
            yield found if isinstance(found, Pair) else (call, found)


def _pair(graph: CallGraph, first: Call, runs: Mapping[int, int]) -> Pair | str:
    if reason := _unfit(first, runs):
        return reason
    activation, clip, call = activation_name(first.operation), first, first
    while (reader := graph.only_consumer(call.outputs[0])) is not None:
        name, kind = _relu_name(reader), stock_kind(reader.operation)
        if kind in SECOND and _channels_last(reader):
            if reason := _unfit(reader, runs):
                return reason
            if activation not in ("linear", "relu", "relu6"):
                return f"its activation {activation!r} does not scale"
            if getattr(reader.operation, "groups", 1) > 1:
                return f"{reader.path} after it has groups"
            return Pair(first, reader, activation, clip)
        if name is not None and activation == "linear":
            activation, clip = name, reader
        elif kind not in _SCALES_THROUGH or not _channels_last(reader):
            return f"{reader.path} ({reader.kind}) stands between it and the next layer"
        call = reader
    return f"the output of {call.path} has several readers or leaves the model"


def _unfit(call: Call, runs: Mapping[int, int]) -> str | None:
    if isinstance(call.operation, klb_layers.QuantizedLayer):
        return f"{call.path} is quantized already"
    if runs[id(call.operation)] > 1:
        return f"{call.path} is shared: it runs {runs[id(call.operation)]} times"
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


def filter_ranges(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """``max |w|`` of each output channel."""
    axes = (0, 1) if stock_kind(layer) == "DepthwiseConv2D" else tuple(range(kernel.ndim - 1))
    return np.abs(kernel).max(axis=axes).reshape(-1)


def input_ranges(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """``max |w|`` over what multiplies each input channel."""
    axes = (0, 1, 3) if stock_kind(layer) == "DepthwiseConv2D" else (*range(kernel.ndim - 2), kernel.ndim - 1)
    return np.abs(kernel).max(axis=axes)


def scale_filters(layer: Any, weights: dict[str, np.ndarray], factor: np.ndarray) -> dict[str, np.ndarray]:
    """Weights and bias of each output channel times its factor."""
    kernel = weights["kernel"]
    per_filter = factor.reshape(kernel.shape[2:]) if stock_kind(layer) == "DepthwiseConv2D" else factor
    return {name: value * (per_filter if name == "kernel" else factor) for name, value in weights.items()}


def scale_inputs(weights: dict[str, np.ndarray], factor: np.ndarray) -> dict[str, np.ndarray]:
    """What multiplies each input channel, times the channel's factor."""
    return weights | {"kernel": weights["kernel"] * factor[:, None]}


def channel_maxima(
    model: keras.Model,
    graph: CallGraph,
    keys: list[int],
    data: Any,
    batch_size: int,
    steps: int | None,
    verbose: int | bool,
) -> dict[int, np.ndarray]:
    """The largest value of every channel (last axis) of some tensors over data, by the tensors' keys."""
    found: dict[int, np.ndarray] = {}

    def watch(key: int, value: Any) -> None:
        seen = keras.ops.convert_to_numpy(value)
        largest = seen.reshape(-1, seen.shape[-1]).max(axis=0)
        found[key] = np.maximum(found.get(key, largest), largest)

    bar = keras.utils.Progbar(klb_data.batch_count(data, batch_size, steps), verbose=1 if verbose else 0)
    for index, batch in enumerate(klb_data.batches(data, batch_size, steps)):
        run_calls(graph, inputs_in_order(model, batch), dict.fromkeys(keys, watch))
        bar.update(index + 1)
    return found


def run_calls(graph: CallGraph, inputs: list[Any], watch: Mapping[int, Callable[[int, Any], None]]) -> None:
    """Run the calls one by one at inference and show the tensors to be watched; a value lives until its last use."""
    values = {key: keras.ops.convert_to_tensor(value) for key, value in zip(graph.inputs, inputs, strict=True)}
    for call in graph.calls:
        results = dict(zip(call.outputs, call.run(values), strict=True))
        values |= results
        for key in results:
            if key in watch:
                watch[key](key, results[key])
        graph.release(call, values)
