"""The parts of `verify` that look at one layer: its weights, and its outputs against Keras on equal inputs."""

import dataclasses
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import keras
import numpy as np

from keras_lowbit.data.batching import Progress
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.graph.tensors import Range
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.lowering.lower import Lowered
from keras_lowbit.deploy.lowering.values import LoweredLayer, Segment
from keras_lowbit.deploy.verification.noise import Noise
from keras_lowbit.layers.base import weights_standing_in
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.numerics.kernel_layouts import LAYOUTS, dilated
from keras_lowbit.numerics.requantization import CACHED

#: Steps from the nearest code at which a value is no code any more: half precision is off by 0.06.
BETWEEN_CODES = 0.1


@dataclasses.dataclass(frozen=True)
class LayerParity:
    """One stored tensor of a file, compared with Keras.

    name: of the tensor.   elements: how many were compared.   max_steps: largest difference in steps of its last bit.
    exact: share of equal elements.
    codes_equal: whether the file's weights and scales are the model's; None for a tensor without weights.
    op: the LiteRT operator that writes it.   delegated: whether XNNPACK runs that operator.
    snr_db: signal-to-noise ratio of the file's reals to Keras', see `OutputParity`; Keras' are clipped to the range first.
    unrounded: share of elements that Keras leaves between two codes: what the file rounds and Keras does not simulate.
    codes: type of the tensor.   row: its size along the last axis, that of a softmax.

    >>> written = klb.export_litert(quantized, "q.tflite")
    >>> max(layer.max_steps for layer in klb.verify(quantized, "q.tflite", images).layers) <= 1
    True
    """

    name: str
    elements: int
    max_steps: int
    exact: float
    codes_equal: bool | None
    op: str = ""
    delegated: bool | None = None
    snr_db: float = math.inf
    unrounded: float = 0.0
    codes: str = "int8"
    row: int = 1


def compare_layers(
    model: keras.Model,
    lowered: Lowered,
    file: LiteRTFile,
    tensors: Mapping[str, np.ndarray],
    taken: set[str],
    bar: Progress | None = None,
) -> list[LayerParity]:
    """Each stored tensor against what Keras makes of the file's own inputs of that layer.

    Layers whose weights were altered to fit int8 run with the altered ones.
    tensors: what the file stores, by name.   taken: tensors whose operators XNNPACK runs.
    bar: a progress bar that counts the layers.
    """
    weights, layers = _weights_equal(model, lowered, file), quantized_layers(model)
    altered = {layers[x.path]: x.weights.real for x in lowered.layers.values() if x.overflow is not None}
    found: list[Future[_Sums]] = []
    with weights_standing_in(altered), ThreadPoolExecutor(1) as adding_up:
        for segment in lowered.segments:
            expected = _replayed(lowered.graph, segment, tensors)
            wait(found[-1:])  # no more than two layers' outputs at a time
            found.append(adding_up.submit(_sums, lowered.graph, segment, expected, tensors))
            if bar is not None:
                bar.advance()
    return [
        _parity(segment.tensor, sums.result(), weights, file, taken)
        for segment, sums in zip(lowered.segments, found, strict=True)
    ]


def _parity(name: str, sums: "_Sums", weights: Mapping[str, bool], file: LiteRTFile, taken: set[str]) -> LayerParity:
    op, count = file.operator_of(name), max(sums.size, 1)
    return LayerParity(
        name,
        sums.size,
        sums.worst,
        exact=1 - sums.different / count,
        codes_equal=weights.get(name),
        op=op,
        delegated=name in taken if op else None,
        snr_db=sums.noise.snr_db,
        unrounded=sums.unrounded / count,
        codes=sums.codes,
        row=file.tensors[name].shape[-1] if file.tensors[name].shape else 1,
    )


def _real(graph: IntegerGraph, name: str, value: np.ndarray) -> np.ndarray:
    tensor = graph.tensors[name]
    if tensor.scale is None:
        return value
    real = value.astype(np.float32)
    real -= np.float32(tensor.zero_point)
    real *= tensor.scale
    return real


def _replayed(graph: IntegerGraph, segment: Segment, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """What Keras makes of the stored inputs of one layer, flat."""
    sources = segment.provenance.sources.values()
    reals = {name: keras.ops.convert_to_tensor(_real(graph, name, tensors[name])) for name in sources}
    return np.asarray(keras.ops.convert_to_numpy(segment.provenance.replay(reals, segment.key))).reshape(-1)


def _sums(graph: IntegerGraph, segment: Segment, expected: np.ndarray, tensors: Mapping[str, np.ndarray]) -> "_Sums":
    """What Keras expects of one stored tensor against what it holds."""
    got, sums = tensors[segment.tensor].reshape(-1), _Sums(graph.tensors[segment.tensor].range)
    if got.size != expected.size:
        raise ValueError(f"{segment.tensor!r} has {got.size:,} elements, Keras gives {expected.size:,}")
    for start in range(0, got.size, CACHED):
        sums.add(expected[start : start + CACHED], got[start : start + CACHED])
    return sums


class _Sums:
    """What one layer's elements add up to, in steps from zero; in pieces, whose intermediate arrays fit into a cache."""

    def __init__(self, grid: Range) -> None:
        self.scale, self.zero_point, self.noise = np.float32(grid.scale), grid.zero_point, Noise()
        self.limits = [code - grid.zero_point for code in grid.limits]
        self.codes, self.size = grid.dtype, 0
        self.worst, self.different, self.unrounded = 0, 0, 0

    def add(self, expected: np.ndarray, codes: np.ndarray) -> None:
        """Keras' reals and the file's codes."""
        wanted = expected.astype(np.float64) / self.scale
        np.clip(wanted, *self.limits, out=wanted)
        got, nearest = codes.astype(np.float64) - self.zero_point, np.round(wanted)
        steps = np.abs(got - nearest)
        self.size += got.size
        self.worst = max(self.worst, int(steps.max()))
        self.different += int(np.count_nonzero(steps))
        self.unrounded += int(np.count_nonzero(np.abs(wanted - nearest) > BETWEEN_CODES))
        self.noise.add(wanted, got)


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
            and _same_scales(kernel.scale, ours[f"{node}/kernel"].scale)
            and _same_scales(bias.scale, ours[f"{node}/bias"].scale)
            and np.array_equal(np.asarray(bias.codes), np.asarray(ours[f"{node}/bias"].data))
        )
    return found


def _same_scales(stored: np.ndarray, ours: np.ndarray | None) -> bool:
    """Whether a file has the scales of the graph: each of them, or one where all are equal."""
    scales = np.asarray(ours).reshape(-1)
    return stored.size in (1, scales.size) and bool((stored == scales).all())


def _same_codes(stored: np.ndarray | None, layer: LoweredLayer, keras_layer: Any, kind: str) -> bool:
    codes, layout, flushed = layer.weights.codes, LAYOUTS[kind], list(layer.flushed)
    if kind == "Conv2DTranspose":  # LiteRT's has no dilation
        codes = dilated(np.asarray(codes), keras_layer.dilation_rate)
    if stored is None or stored.size != codes.size:
        return False
    right = layout.by_output(codes * layout.per_output(layer.factors, codes.shape))
    channels = len(right)
    # A depthwise kernel has its channels last in the file, every other first.
    left = stored.reshape(-1, channels).T if layout.is_depthwise else stored.reshape(channels, -1)
    keep = np.setdiff1d(np.arange(channels), flushed)
    return bool(np.array_equal(left[keep], right[keep]) and not left[flushed].any())
