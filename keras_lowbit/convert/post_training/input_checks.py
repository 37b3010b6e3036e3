"""What `calibrate` and `verify` say about data that do not fit a model's inputs: another scale, features lost in one step."""

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import activation_name, stock_kind
from keras_lowbit.convert.analysis.pixels import BRIGHTEST
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of, inputs_in_order, run_calls
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import KeepFloat, QuantActivation
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.quantizers import ActivationRange
from keras_lowbit.quantizers.base import WIDE

LEAST_STEPS = 2.0  # a feature that spans less of its input's range is lost
_LEAST_ROWS = 8
_FAR = 20.0  # times the spread that trained statistics have; pixels in place of their share of 255 have 100 to 255
_HARDLY_RESCALED = 1.0 / 127.0  # what is left of inputs in -1..1 by a Rescaling that expects pixels


class FeatureSpans:
    """Smallest and largest value of every entry of an input's last axis."""

    def __init__(self) -> None:
        self.rows = 0
        self.low: Any = np.inf
        self.high: Any = -np.inf

    def see(self, values: np.ndarray) -> None:
        """Take in one batch, samples first."""
        rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
        self.rows += len(rows)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))

    def lost(self, step: float) -> list[int]:
        """The entries that vary, but by less than `LEAST_STEPS` steps; of few samples that may be chance."""
        if self.rows < _LEAST_ROWS:
            return []
        spans = np.atleast_1d(self.high - self.low)
        return list(map(int, np.flatnonzero((spans > 0) & (spans < LEAST_STEPS * step))))


def lost_features(name: str, spans: FeatureSpans, low: float, high: float, bits: int = 8) -> str | None:
    """The sentence about features of an input that its range [low, high] cannot tell apart; None if there are none."""
    step = max(-low, high) / 32767.0 if bits == WIDE else (max(high, 0.0) - min(low, 0.0)) / (2.0**bits - 1)
    lost = spans.lost(step)
    if not lost or len(lost) == np.size(spans.low):
        return None
    shown = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
    return (
        f"The features {shown} of the input {name!r} vary by less than {LEAST_STEPS:g} steps of its {bits}-bit range "
        f"[{low:.4g}, {high:.4g}] (one step is {step:.4g}): int{bits} hardly sees them. Leave the front of the model in float, "
        f"quantize_model(model, skip=[{name!r}, NAMES OF THE LAYERS THAT SCALE IT]), or scale the features before the model"
        f"{', or give activations 16 bits (activations=16 in the recipe)' if bits != WIDE else ''}."
    )


def input_hosts(model: keras.Model) -> dict[int, str]:
    """Id of the state layer of the range right behind each input that has one -> the input's name."""
    graph = _graph_of(model)
    return (
        {}
        if graph is None
        else {
            id(call.operation.output_host): str(graph.tensors[call.inputs[0]].name)
            for call in graph.calls
            if _is_range(call) and call.inputs[0] in graph.inputs
        }
    )


def _graph_of(model: keras.Model) -> CallGraph | None:
    """The model's calls; None for a subclassed model, of which nothing is known."""
    try:
        return calls_of(model, inline=True)
    except TypeError:
        return None


def _is_range(call: Call) -> bool:
    return isinstance(call.operation, QuantActivation) and activation_name(call.operation) == "linear"


def warn_of_other_scale(model: keras.Model, batch: Any, hosts: list[QuantizerHost]) -> None:
    """A UserWarning if a batch lies far outside what the first layers expect.

    That is known from the statistics of the first batch norm or Normalization, a Rescaling of an input or its range.
    hosts: the state layers of the ranges, which pass values on meanwhile.
    """
    graph = _graph_of(model)
    looked_at = [] if graph is None else list(_expecting(graph))
    if graph is None or not looked_at:
        return
    values = _values(model, graph, batch, hosts, {call.inputs[0] for call in looked_at})
    for call in looked_at:
        said = _SAYS.get(stock_kind(call.operation), _normalized)(call, values)
        if said:
            warnings.warn(
                f"The calibration data do not fit {call.path!r}: {said}. Prepare them as the training data were; ranges "
                "found on other data are wrong.",
                stacklevel=4,
            )
            return


def _expecting(graph: CallGraph) -> Iterator[Call]:
    for call in graph.calls:
        kind = stock_kind(call.operation)
        if _is_range(call) and call.inputs[0] in graph.inputs and _is_of_pixels(call.operation.output_host.quantizer):
            yield call
        if kind == "Rescaling" and _is_input(graph, call.inputs[0]):
            yield call
        if kind in ("BatchNormalization", "Normalization"):
            yield call
            return


def _is_of_pixels(quantizer: Any) -> bool:
    """Whether a range is that of pixels, which `quantize_model` gives models that prepare them."""
    return isinstance(quantizer, ActivationRange) and (quantizer.minimum, quantizer.maximum) == (0.0, BRIGHTEST)


def _is_input(graph: CallGraph, key: int) -> bool:
    """Whether a tensor is an input of the model, or that behind its range."""
    call = graph.producers.get(key)
    while call is not None and (_is_range(call) or isinstance(call.operation, KeepFloat)):
        key = call.inputs[0]
        call = graph.producers.get(key)
    return key in graph.inputs


def _values(
    model: keras.Model, graph: CallGraph, batch: Any, hosts: list[QuantizerHost], wanted: set[int]
) -> dict[int, np.ndarray]:
    last = max(place for place, call in enumerate(graph.calls) if not wanted.isdisjoint(call.inputs))
    arrays = inputs_in_order(model, batch)
    values = {key: keras.ops.convert_to_tensor(x) for key, x in zip(graph.inputs, arrays, strict=True)}
    try:
        for host in hosts:
            host.watch = _pass
        run_calls(graph.calls[:last], [values], keep=wanted)
    finally:
        for host in hosts:
            host.watch = None
    return {key: np.asarray(keras.ops.convert_to_numpy(values[key]), np.float64) for key in wanted}


def _pass(real: Any) -> None:
    """A range that is watched hands its values on in float."""


def _rescaled(call: Call, values: dict[int, np.ndarray]) -> str | None:
    scale, found = np.max(np.abs(call.operation.scale)), values[call.inputs[0]]
    largest = float(np.abs(found).max(initial=0.0))
    if not 0 < largest * scale < _HARDLY_RESCALED:
        return None
    return (
        f"it multiplies its input by {float(scale):.4g}, and the largest value is {largest:.4g} (0 to 255 in place of 0 to "
        "1 may be meant)"
    )


def _out_of_range(call: Call, values: dict[int, np.ndarray]) -> str | None:
    """What lies outside the range of pixels."""
    quantizer, found = call.operation.output_host.quantizer, values[call.inputs[0]]
    low, high = (float(end) for end in quantizer.ends({}))
    least, most = float(found.min(initial=low)), float(found.max(initial=high))
    if max(low - least, most - high) <= (high - low) / 255.0:
        return None
    return (
        f"its range is {low:g} to {high:g} beforehand, as of pixels that the model prepares itself, and the data reach from "
        f"{least:.4g} to {most:.4g} (an input that holds no pixels can be left in float: quantize_model(skip=[its name]))"
    )


def _normalized(call: Call, values: dict[int, np.ndarray]) -> str | None:
    """What the spread around the expected mean is, in expected deviations, where it is far from one."""
    layer, found = call.operation, values[call.inputs[0]]
    batch_norm = stock_kind(layer) == "BatchNormalization"
    mean, variance = (layer.moving_mean, layer.moving_variance) if batch_norm else (layer.mean, layer.variance)
    mean, variance = (np.asarray(to_numpy(part), np.float64) for part in (mean, variance))
    axis = layer.axis if batch_norm else -1
    if axis not in (-1, found.ndim - 1) or np.size(found) == 0 or (np.all(mean == 0) and np.all(variance == 1)):
        return None  # statistics of another axis, or untrained ones
    mean, variance = mean.reshape(-1), variance.reshape(-1)
    deviation = float(np.sqrt(np.mean(np.square(found - mean)) / max(float(np.mean(variance)), 1e-12)))
    spread = float(np.sqrt(np.mean(found.reshape(-1, found.shape[-1]).var(0)) / max(float(np.mean(variance)), 1e-12)))
    if deviation <= _FAR and (spread >= 1 / _FAR / 2 or spread == 0):
        return None
    return (
        f"the values that reach it lie {deviation:.3g} of its own standard deviations around the mean it has learnt and vary "
        f"by {spread:.3g} of them (1 is usual)"
    )


_SAYS = {"Rescaling": _rescaled, "QuantActivation": _out_of_range}
