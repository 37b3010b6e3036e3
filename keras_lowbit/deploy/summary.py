"""summary: bits, parameters, bytes, multiply-accumulates and multiplications left of every layer, and the file's size."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import KINDS, stock_kind
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.format_choice import Weights
from keras_lowbit.deploy.lowering.arguments import check_model, check_not_packed
from keras_lowbit.deploy.lowering.lower import lower_model
from keras_lowbit.deploy.lowering.ranges import StandInRanges
from keras_lowbit.deploy.multiplications import filter_size, multiplications_left, scale_bytes
from keras_lowbit.deploy.packed.layers import PackedLayer
from keras_lowbit.keras_graph.calls import Call, calls_of
from keras_lowbit.layers import QuantActivation, QuantizedLayer
from keras_lowbit.tables import table


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer with weights.

    weight_bits, activation_bits: 32 where float.   parameters: all weights of the layer.   kilobytes: of the kernel at
    `weight_bits`, the scales of its clusters, and the rest as float32, in units of 1000 bytes.   macs:
    multiply-accumulates for one sample, None where a size is variable.   multiplications: what its weights leave of
    them; a sum of +-x has none, each scale is one.
    """

    path: str
    layer: str
    weight_bits: float
    activation_bits: float
    parameters: int
    kilobytes: float
    macs: int | None
    multiplications: int | None = None

    @property
    def multiplications_removed(self) -> float | None:
        """Share (0 to 1) of the layer's multiplications that its weights make additions; None where macs is None or 0."""
        return None if not self.macs or self.multiplications is None else 1.0 - self.multiplications / self.macs


@dataclasses.dataclass(frozen=True)
class Summary:
    """All layers with weights, and totals; prints as a table. file_bytes: of the .tflite it gives, None if it cannot."""

    model: str
    layers: tuple[LayerSummary, ...]
    file_bytes: int | None
    no_file_because: str

    @property
    def parameters(self) -> int:
        """All weights of the layers listed."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def kilobytes(self) -> float:
        """Packed size of those weights, in units of 1000 bytes."""
        return sum(layer.kilobytes for layer in self.layers)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one sample; None where a size is variable."""
        counts = [layer.macs for layer in self.layers]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def multiplications_removed(self) -> float | None:
        """Share (0 to 1) of all multiplications that the weights make additions; None where a size is variable.

        Clusters of N KxK slices leave ``1 / (N K^2)`` of a layer's (Mellempudi et al. 2017), N single weights ``1 / N`` (FGQ).
        """
        if not self.macs:
            return None if self.macs is None else 0.0
        return 1.0 - sum(layer.multiplications or 0 for layer in self.layers) / self.macs

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [
            (*list(dataclasses.asdict(layer).values())[:-1], _percent(layer.multiplications_removed))
            for layer in self.layers
        ]
        removed = _percent(self.multiplications_removed)
        rows.append(("total", "", None, None, self.parameters, self.kilobytes, self.macs, removed))
        headers = ("layer", "class", "weight bits", "act. bits", "parameters", "kB", "MACs", "% mult. removed")
        body = table(headers, rows)
        size = f"{self.file_bytes:,} bytes" if self.file_bytes is not None else f"none: {self.no_file_because}"
        return f"{self.model}\n{body}\nfloat32 weights: {4 * self.parameters / 1000:,.1f} kB; .tflite file: {size}"


def summary(model: keras.Model, *, weights: Weights = "int8", input_shapes: Any = None) -> Summary:
    """Weight and activation bits, parameters, kB and MACs for each layer with weights, and the .tflite size.

    The size is that of the bytes `export_litert(model, weights=weights)` would write, found by writing them to memory
    (ranges not calibrated yet are stood in for: equal numbers are stored once, so they move it by some bytes).
    model: Functional or Sequential, quantized or not, or from `pack`.   input_shapes: for inputs of variable size, as in
    `export_litert`.
    """
    check_model(model, "summary")
    graph = calls_of(model, inline=True)
    layers, seen = [], set()
    for call in graph.calls:
        if call.is_layer and call.operation.weights and call.path not in seen and _counts(call):
            seen.add(call.path)
            row = _packed_layer if isinstance(call.operation, PackedLayer) else _layer
            layers.append(row(call, _activation_bits(graph, call)))
    size, reason = _file_bytes(model, weights, input_shapes)
    return Summary(model.name, tuple(layers), size, reason)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _counts(call: Call) -> bool:
    return not isinstance(call.operation, QuantActivation)


def _layer(call: Call, activation_bits: float) -> LayerSummary:
    operation = call.operation
    weights = _own_weights(operation)
    kernel = (
        int(np.prod(operation.kernel.shape)) if stock_kind(operation) in KINDS and hasattr(operation, "kernel") else 0
    )
    bits: float = 32
    if isinstance(operation, QuantizedLayer) and operation.kernel_quantizer is not None:
        bits = operation.kernel_quantizer.bits
    count = sum(int(np.prod(weight.shape)) for weight in weights)
    macs, scales, left = _macs(call, kernel), 0.0, 1.0
    if bits < 32:
        quantizer, shape = operation.kernel_quantizer, tuple(operation.kernel.shape)
        scales = scale_bytes(quantizer, shape, operation.filter_axes)
        left = multiplications_left(quantizer, shape, operation.filter_axes) / filter_size(shape, operation.filter_axes)
    kilobytes = (kernel * bits / 8 + scales + (count - kernel) * 4) / 1000
    multiplications = None if macs is None else round(macs * left)
    kind = type(operation).__name__
    return LayerSummary(call.path, kind, bits, activation_bits, count, kilobytes, macs, multiplications)


def _packed_layer(call: Call, activation_bits: float) -> LayerSummary:
    """A layer from `pack`: bytes as they stand in memory, padding and sums included."""
    operation, layout = call.operation, call.operation.layout
    bits, kernel, filters = {"ternary": 2, "int8": 8}[layout.kind], math.prod(layout.window), layout.window[3]
    reals = filters * (2 if operation.use_bias else 1)  # the scales, and the bias
    arrays = math.prod(layout.data_shape) + math.prod(layout.scales_shape) + 4 * math.prod(layout.sums_shape)
    kilobytes = (arrays + 4 * reals) / 1000
    scales = layout.clusters * (math.prod(layout.window[:2]) if layout.per_tap else 1)
    macs, left = _macs(call, kernel), 1.0 if layout.kind == "int8" else scales / (kernel // filters)
    parameters = kernel + (filters if operation.use_bias else 0)
    multiplications = None if macs is None else round(macs * left)
    kind = type(operation).__name__
    return LayerSummary(call.path, kind, bits, activation_bits, parameters, kilobytes, macs, multiplications)


def _own_weights(operation: Any) -> list[Any]:
    """The layer's weights without the state of its quantizers."""
    state = {
        id(variable)
        for name in ("kernel_host", "bias_host", "output_host")
        if getattr(operation, name, None) is not None
        for variable in getattr(operation, name).variables
    }
    return [weight for weight in operation.weights if id(weight) not in state]


def _has_kernel(operation: Any) -> bool:
    return stock_kind(operation) in KINDS or isinstance(operation, PackedLayer)


def _macs(call: Call, kernel: int) -> int | None:
    if not kernel:
        return 0
    kind, output = stock_kind(call.operation), call.results[0].shape[1:]
    spatial = call.tensors[0].shape[1:-1] if kind == "Conv2DTranspose" else output[:-1]
    if None in spatial:
        return None
    return kernel * int(np.prod(spatial, dtype=np.int64))


def _activation_bits(graph: Any, call: Call) -> float:
    """Bits of the range behind a layer: its own, or that of the first range its result flows into alone."""
    if getattr(call.operation, "output_range", None) is not None:  # a packed layer that gives int8 codes
        return 8
    own = getattr(call.operation, "output_host", None)
    if own is not None:
        return float(own.quantizer.bits)
    reader = graph.only_consumer(call.outputs[0])
    while reader is not None:
        if isinstance(reader.operation, QuantActivation):
            return float(reader.operation.output_host.quantizer.bits)
        if _has_kernel(reader.operation) or len(reader.inputs) > 1:
            return 32
        reader = graph.only_consumer(reader.outputs[0])
    return 32


def _file_bytes(model: keras.Model, weights: Weights, input_shapes: Any) -> tuple[int | None, str]:
    try:
        check_not_packed(model, "export_litert")
        graph = lower_model(model, input_shapes, range_of=StandInRanges()).graph
        return len(litert.to_bytes(graph, weights=weights)[0]), ""
    except ValueError as error:
        return None, str(error)
