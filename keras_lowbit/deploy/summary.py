"""summary: bits, parameters, bytes, multiply-accumulates and multiplications left of every layer, and the file's size."""

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import KINDS, stock_kind
from keras_lowbit.deploy.export import FileContent, file_content
from keras_lowbit.deploy.litert.reader import constant_bytes
from keras_lowbit.deploy.lowering.arguments import check_model
from keras_lowbit.deploy.lowering.lower import LOWERING
from keras_lowbit.deploy.lowering.ranges import StandInRanges
from keras_lowbit.deploy.multiplications import filter_size, multiplications_left
from keras_lowbit.deploy.packed.layers import PackedLayer
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of
from keras_lowbit.layers import QuantActivation, QuantizedLayer, QuantLSTM
from keras_lowbit.tables import table

_HEADERS = (
    *("layer", "class", "weight bits", "act. bits", "parameters", "bytes in file", "MACs", "% mult. removed"),
    "bytes in memory",
)


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer with weights.

    path: of the layer in the model.   layer: its class.
    weight_bits, activation_bits: 32 where float.   parameters: all weights of the layer.   file_bytes: of the layer's
    constants in the .tflite file (kernel in the format it has there, bias, what a float operation holds; nothing for a batch
    norm that went into them; equal ones are stored once, and count for the first layer); None where there is no file.
    macs: multiply-accumulates for one sample, None where a size is variable.   multiplications: what its weights leave of
    them; a sum of +-x has none, each scale is one.   memory_bytes: of the arrays of a layer from `pack`, else None.

    >>> row = klb.summary(ternary).layers[0]
    >>> row.path, row.weight_bits, row.activation_bits
    ('first', 2, 8.0)
    """

    path: str
    layer: str
    weight_bits: float
    activation_bits: float
    parameters: int
    file_bytes: int | None
    macs: int | None
    multiplications: int | None = None
    memory_bytes: int | None = None

    @property
    def multiplications_removed(self) -> float | None:
        """Share (0 to 1) of the layer's multiplications that its weights make additions; None where macs is None or 0."""
        return None if not self.macs or self.multiplications is None else 1.0 - self.multiplications / self.macs


@dataclasses.dataclass(frozen=True)
class Summary:
    """All layers with weights, and totals; prints as a table.

    model: its name.   layers: a `LayerSummary` for each layer with weights.
    file_bytes: of the file that `export_litert` writes with `arguments`; None if it writes none, and `no_file_because`.
    is_estimate: whether ranges that have seen no data are stood in for: it is then some bytes off, and export refuses.
    smaller_files: bytes of the file with other `weights`, where that makes it smaller.

    >>> found = klb.summary(quantized)
    >>> found.macs == sum(layer.macs for layer in found.layers)
    True
    """

    model: str
    layers: tuple[LayerSummary, ...]
    file_bytes: int | None
    no_file_because: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_estimate: bool = False
    smaller_files: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """All weights of the layers listed."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def overhead_bytes(self) -> int | None:
        """What the file holds beside the layers' constants: scales, operators, names, metadata; None without a file."""
        return (
            None if self.file_bytes is None else self.file_bytes - sum(layer.file_bytes or 0 for layer in self.layers)
        )

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
        rows = [_row(layer) for layer in self.layers]
        rows.append(("scales, operators, names, metadata", "", None, None, None, self.overhead_bytes, None, None, None))
        removed = _percent(self.multiplications_removed)
        rows.append(("total", "", None, None, self.parameters, self.file_bytes, self.macs, removed, None))
        shown = slice(len(_HEADERS) if any(layer.memory_bytes is not None for layer in self.layers) else -1)
        body = table(_HEADERS[shown], [row[shown] for row in rows])
        return f"{self.model}\n{body}\nfloat32 weights: {4 * self.parameters:,} bytes; .tflite file: {self._file()}"

    def _file(self) -> str:
        if self.file_bytes is None:
            return f"none: {self.no_file_because}"
        call = ", ".join(
            ["model", "path", *(f"{name}={reprlib.repr(value)}" for name, value in self.arguments.items())]
        )
        smaller = "".join(f", {size:,} with weights={name!r}" for name, size in self.smaller_files.items())
        estimate = "about " * self.is_estimate
        until = " once it is calibrated" * self.is_estimate
        return f"{estimate}{self.file_bytes:,} bytes, as export_litert({call}) writes it{until}{smaller}"


def summary(model: keras.Model, **arguments: Any) -> Summary:
    """Weight and activation bits, parameters, bytes and MACs for each layer with weights, and the size of the .tflite file.

    Bytes are those of the file that `export_litert` writes with the same arguments, to the byte: it is made in memory. Ranges
    that have seen no data are stood in for; the size is then an estimate.
    model: Functional or Sequential, quantized or not, or from `pack`.   arguments: keyword arguments of `export_litert`.
    Returns a `Summary`: a row for each layer with weights, and totals; `print` it.
    Raises TypeError for arguments that it has not; where it would raise ValueError, there is no file and the summary says why.

    >>> size = klb.export_litert(ternary, "m.tflite", weights="int2", io="float32").size_bytes
    >>> klb.summary(ternary, weights="int2", io="float32").file_bytes == size
    True
    """
    check_model(model, "summary")
    made = _file_of(model, arguments)
    found = costs(model)
    if isinstance(made, str):
        return dataclasses.replace(found, no_file_because=made, arguments=arguments)
    file, is_estimate = made
    bytes_of = _bytes_by_layer(file, [layer.path for layer in found.layers])
    rows = (dataclasses.replace(layer, file_bytes=bytes_of[layer.path]) for layer in found.layers)
    smaller = _smaller_files(file, arguments)
    return Summary(model.name, tuple(rows), len(file.content), "", arguments, is_estimate, smaller)


def costs(model: keras.Model) -> Summary:
    """The part of `summary` that needs no file: quick also for a float model."""
    with LOWERING:
        return Summary(model.name, tuple(_rows(calls_of(model, inline=True))), None, "none was made")


def _rows(graph: CallGraph) -> list[LayerSummary]:
    """A row for each layer with weights, sizes in the file left out."""
    layers, seen = [], set()
    for call in graph.calls:
        if call.is_layer and call.operation.weights and call.path not in seen and _counts(call):
            seen.add(call.path)
            row = _packed_layer if isinstance(call.operation, PackedLayer) else _layer
            layers.append(row(call, _activation_bits(graph, call)))
    return layers


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _counts(call: Call) -> bool:
    return not isinstance(call.operation, QuantActivation)


def _layer(call: Call, activation_bits: float) -> LayerSummary:
    operation = call.operation
    if isinstance(operation, QuantLSTM):
        return _lstm(call, activation_bits)
    weights = _own_weights(operation)
    kernel = (
        int(np.prod(operation.kernel.shape)) if stock_kind(operation) in KINDS and hasattr(operation, "kernel") else 0
    )
    bits: float = 32
    if isinstance(operation, QuantizedLayer) and operation.kernel_quantizer is not None:
        bits = operation.kernel_quantizer.bits
    count = sum(int(np.prod(weight.shape)) for weight in weights)
    macs, left = _macs(call, kernel), 1.0
    if bits < 32:
        quantizer, shape = operation.kernel_quantizer, tuple(operation.kernel.shape)
        left = multiplications_left(quantizer, shape, operation.filter_axes) / filter_size(shape, operation.filter_axes)
    multiplications = None if macs is None else round(macs * left)
    kind = type(operation).__name__
    return LayerSummary(call.path, kind, bits, activation_bits, count, None, macs, multiplications)


def _lstm(call: Call, activation_bits: float) -> LayerSummary:
    """Both kernels multiply at every step."""
    layer, steps = call.operation, call.tensors[0].shape[1]
    bits = 32.0 if layer.kernel_quantizer is None else float(layer.kernel_quantizer.bits)
    kernel, recurrent = (int(np.prod(part.shape)) for part in (layer.cell.kernel, layer.cell.recurrent_kernel))
    count = sum(int(np.prod(weight.shape)) for weight in layer.cell.weights)
    macs = None if steps is None else steps * (kernel + recurrent)
    return LayerSummary(call.path, type(layer).__name__, bits, activation_bits, count, None, macs, macs)


def _packed_layer(call: Call, activation_bits: float) -> LayerSummary:
    """A layer from `pack`: bytes as they stand in memory, padding and sums included."""
    operation, layout = call.operation, call.operation.layout
    bits, kernel, filters = {"ternary": 2, "int8": 8}[layout.kind], math.prod(layout.window), layout.window[3]
    reals = filters * (2 if operation.use_bias else 1)  # the scales, and the bias
    arrays = math.prod(layout.data_shape) + math.prod(layout.scales_shape) + 4 * math.prod(layout.sums_shape)
    scales = layout.clusters * (math.prod(layout.window[:2]) if layout.per_tap else 1)
    macs, left = _macs(call, kernel), 1.0 if layout.kind == "int8" else scales / (kernel // filters)
    parameters = kernel + (filters if operation.use_bias else 0)
    multiplications = None if macs is None else round(macs * left)
    kind = type(operation).__name__
    memory = arrays + 4 * reals
    return LayerSummary(call.path, kind, bits, activation_bits, parameters, None, macs, multiplications, memory)


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


def _file_of(model: keras.Model, arguments: Mapping[str, Any]) -> tuple[FileContent, bool] | str:
    """The file, and whether some of its ranges are made up; or why there is none."""
    ranges = StandInRanges()
    try:
        return file_content(model, **arguments, range_of=ranges), ranges.made_up
    except ValueError as error:
        return str(error)


def _bytes_by_layer(file: FileContent, paths: Sequence[str]) -> dict[str, int]:
    """Path -> bytes of the constants that the file holds for it: tensors are named after the layer, or the node it became."""
    owners = {path: path for path in paths} | {layer.node: layer.path for layer in file.lowered.layers.values()}
    found = dict.fromkeys(paths, 0)
    for name, size in constant_bytes(file.content).items():
        owner = name
        while owner not in owners and "/" in owner:
            owner = owner.rpartition("/")[0]
        if owners.get(owner) in found:
            found[owners[owner]] += size
    return found


def _smaller_files(file: FileContent, arguments: Mapping[str, Any]) -> dict[str, int]:
    """Packed formats of the weights that make the file smaller -> its bytes; looked for where the weights are int8."""
    if arguments.get("weights", "int8") != "int8":
        return {}
    sizes = {kind: file.size_with(kind) for kind in ("int4", "int2")}
    return {kind: size for kind, size in sizes.items() if size < len(file.content)}


def _row(layer: LayerSummary) -> tuple[Any, ...]:
    cells = (layer.path, layer.layer, layer.weight_bits, layer.activation_bits, layer.parameters, layer.file_bytes)
    return (*cells, layer.macs, _percent(layer.multiplications_removed), layer.memory_bytes)
