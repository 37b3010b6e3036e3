"""The parts of `verify` that look at one layer: its weights, its outputs against Keras, its codes against NumPy."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.lowering.int8_overflow import stored_weights
from keras_lowbit.deploy.lowering.lower import Lowered
from keras_lowbit.deploy.lowering.values import LoweredLayer, Segment, fixed_codes
from keras_lowbit.deploy.reference.interpreter import trace
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.numerics.kernel_layouts import LAYOUTS


@dataclasses.dataclass(frozen=True)
class LayerParity:
    """One stored tensor. max_steps: largest difference in steps of its last bit.   exact: share of equal elements.

    codes_equal: whether the file's weights and scales are the model's; None for a tensor without weights.
    op: the LiteRT operator that writes it.   delegated: whether XNNPACK runs that operator.
    """

    name: str
    elements: int
    max_steps: int
    exact: float
    codes_equal: bool | None
    op: str = ""
    delegated: bool | None = None


@dataclasses.dataclass(frozen=True)
class ReferenceParity:
    """The file on LiteRT's reference kernels against the NumPy reference, on every tensor of the graph.

    differing: tensor -> elements that differ (only tensors where some do).   elements: looked at in all.
    kernels: what LiteRT ran on; "built-in" where the reference kernels lack a float operation or would end
    the process (see `softmax_overflows`), and then nothing is claimed.
    """

    differing: dict[str, int]
    elements: int
    kernels: str

    @property
    def equal(self) -> bool | None:
        """Whether no element differs; None where LiteRT could not run on its reference kernels."""
        return None if self.kernels != "reference" else not self.differing


def softmax_overflows(graph: IntegerGraph, samples: list[np.ndarray]) -> bool:
    """Whether LiteRT's reference int8 softmax would end the process on these samples.

    It does where ``sum(exp(x - max))`` of a row reaches 512, which takes 512 classes at least. A margin of 2 keeps clear
    of the border, since a float operation or XNNPACK may shift a code.
    """
    wide = [
        n.inputs[0] for n in graph.nodes if n.op == "softmax" and (graph.tensors[n.inputs[0]].shape[-1] or 0) >= 500
    ]
    if not wide:
        return False
    values = trace(graph, dict(zip(graph.inputs, samples, strict=True)))
    for name in wide:
        codes = values[name].astype(np.float64)
        exponentials = np.exp((codes - codes.max(axis=-1, keepdims=True)) * np.float64(graph.tensors[name].range.scale))
        if float(exponentials.sum(axis=-1).max()) > 510:
            return True
    return False


def compare_reference(graph: IntegerGraph, runner: FileRunner, samples: list[np.ndarray]) -> ReferenceParity:
    """Every activation of the graph, as the file holds it (`as_written`), in the file and in NumPy."""
    names = {name for name, tensor in graph.tensors.items() if not tensor.is_constant}
    theirs = runner.all_tensors(samples, names)
    ours = trace(graph, dict(zip(graph.inputs, samples, strict=True)))
    differing = {}
    for name in ours:
        count = int(np.count_nonzero(ours[name] != theirs[name].reshape(ours[name].shape)))
        if count:
            differing[name] = count
    return ReferenceParity(differing, sum(array.size for array in ours.values()), runner.resolver)


def compare_layers(
    model: keras.Model,
    lowered: Lowered,
    file: LiteRTFile,
    runner: FileRunner,
    samples: list[np.ndarray],
    taken: set[str],
) -> list[LayerParity]:
    """Each stored tensor against what Keras makes of the file's own inputs of that layer.

    Layers whose weights were altered to fit int8 run with the altered ones.
    taken: tensors whose operators XNNPACK runs.
    """
    graph = lowered.graph
    needed = {name for segment in lowered.segments for name in segment.provenance.sources.values()}
    tensors = runner.all_tensors(samples, needed | {segment.tensor for segment in lowered.segments})
    reals = {name: _real(graph, name, value) for name, value in tensors.items()}
    weights = _weights_equal(model, lowered, file)
    altered = {layer.path: layer.weights for layer in lowered.layers.values() if layer.overflow is not None}
    layers = quantized_layers(model)
    found = []
    with stored_weights({layers[path]: stored for path, stored in altered.items()}):
        for segment in lowered.segments:
            op = file.operator_of(segment.tensor)
            size, worst, exact = _steps(graph, segment, tensors, reals)
            delegated = segment.tensor in taken if op else None
            found.append(LayerParity(segment.tensor, size, worst, exact, weights.get(segment.tensor), op, delegated))
    return found


def _real(graph: IntegerGraph, name: str, value: np.ndarray) -> np.ndarray:
    tensor = graph.tensors[name]
    if tensor.scale is None:
        return value
    return (value.astype(np.float32) - tensor.zero_point) * tensor.scale


def _steps(
    graph: IntegerGraph, segment: Segment, tensors: Mapping[str, np.ndarray], reals: Mapping[str, np.ndarray]
) -> tuple[int, int, float]:
    """Elements, largest difference in steps, share of equal elements."""
    sources = {name: keras.ops.convert_to_tensor(reals[name]) for name in segment.provenance.sources.values()}
    expected = keras.ops.convert_to_numpy(segment.provenance.replay(sources, segment.key))
    got, grid = tensors[segment.tensor], graph.tensors[segment.tensor].range
    difference = np.abs(fixed_codes(expected, grid).reshape(got.shape) - got.astype(np.int32))
    exact = float(np.mean(difference == 0)) if difference.size else 1.0
    return int(difference.size), int(difference.max(initial=0)), exact


def _weights_equal(model: keras.Model, lowered: Lowered, file: LiteRTFile) -> dict[str, bool]:
    """Node -> whether the file's codes are the model's, fitted to int8 and times the factors; scales, biases the graph's."""
    layers = quantized_layers(model)
    found = {}
    for layer in lowered.layers.values():
        keras_layer = layers[layer.path]
        kind = type(keras_layer).__name__.removeprefix("Quant")
        node = f"{layer.node}/conv" if kind == "Conv1D" else layer.node
        kernel, bias = file.tensors[f"{node}/kernel"], file.tensors[f"{node}/bias"]
        ours = lowered.graph.tensors
        found[layer.node] = bool(
            _same_codes(kernel.codes, layer, keras_layer, kind)
            and np.array_equal(kernel.scale, np.asarray(ours[f"{node}/kernel"].scale))
            and np.array_equal(bias.scale, np.asarray(ours[f"{node}/bias"].scale))
            and np.array_equal(np.asarray(bias.codes), np.asarray(ours[f"{node}/bias"].data))
        )
    return found


def _same_codes(stored: np.ndarray | None, layer: LoweredLayer, keras_layer: Any, kind: str) -> bool:
    codes, layout, flushed = layer.weights.codes, LAYOUTS[kind], list(layer.flushed)
    if stored is None or stored.size != codes.size:
        return False
    right = layout.by_output(codes * layout.per_output(layer.factors, codes.shape))
    channels = len(right)
    # A depthwise kernel has its channels last in the file, every other first.
    left = stored.reshape(-1, channels).T if layout.is_depthwise else stored.reshape(channels, -1)
    keep = np.setdiff1d(np.arange(channels), flushed)
    return bool(np.array_equal(left[keep], right[keep]) and not left[flushed].any())
