"""verify: is the file what the Keras model is? Layer by layer, on the file's own tensors.

Each stored tensor of the file is compared with what Keras makes of the file's own inputs of that layer, in steps of the
last bit, so that errors of earlier layers do not add up. End to end they do: there the distribution is reported.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_lowbit import data as klb_data
from keras_lowbit.convert.report import table
from keras_lowbit.convert.weights import kernel_codes, quantized_layers
from keras_lowbit.deploy.fold import along
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.litert_read import LiteRTFile
from keras_lowbit.deploy.lower import Lowered, lower_model
from keras_lowbit.deploy.run_file import FileRunner
from keras_lowbit.deploy.values import Segment, fixed_codes

# File layouts of the kernels, as permutations of the Keras layouts.
_LAYOUTS = {
    "Conv1D": (2, 0, 1),
    "Conv2D": (3, 0, 1, 2),
    "DepthwiseConv2D": (0, 1, 2, 3),
    "Conv2DTranspose": (2, 0, 1, 3),
    "Dense": (1, 0),
}


@dataclasses.dataclass(frozen=True)
class LayerParity:
    """One stored tensor. max_steps: largest difference in steps of its last bit.   exact: share of equal elements.

    codes_equal: whether the file's weights and scales are the model's; None for a tensor without weights.
    """

    name: str
    elements: int
    max_steps: int
    exact: float
    codes_equal: bool | None


@dataclasses.dataclass(frozen=True)
class Parity:
    """The verdict of `verify`; prints as a table by layer.

    max_layer_steps: largest difference of any layer on equal inputs.   exact_fraction: share of equal elements over all
    layers.   max_output_steps: largest difference at the model's outputs, end to end.   output_steps: how many output
    elements differ by 0, 1, 2, ... steps.   top1_agreement: share of samples on which file and Keras agree on the
    largest output, None for models without classes.
    """

    layers: tuple[LayerParity, ...]
    output_steps: tuple[int, ...]
    top1_agreement: float | None
    samples: int
    size_bytes: int

    @property
    def max_layer_steps(self) -> int:
        """Largest difference of any layer, in steps."""
        return max((layer.max_steps for layer in self.layers), default=0)

    @property
    def max_output_steps(self) -> int:
        """Largest difference at the outputs, end to end, in steps."""
        return len(self.output_steps) - 1

    @property
    def exact_fraction(self) -> float:
        """Share (0..1) of elements over all layers that are equal."""
        total = sum(layer.elements for layer in self.layers)
        return sum(layer.exact * layer.elements for layer in self.layers) / total if total else 1.0

    @property
    def codes_equal(self) -> bool:
        """Whether every weight and scale in the file is the model's."""
        return all(layer.codes_equal is not False for layer in self.layers)

    @property
    def ok(self) -> bool:
        """Weights equal, and every layer within one step."""
        return self.codes_equal and self.max_layer_steps <= 1

    def to_json(self) -> str:
        """All figures as JSON."""
        fields = {**dataclasses.asdict(self), "max_layer_steps": self.max_layer_steps, "ok": self.ok}
        return json.dumps({**fields, "exact_fraction": self.exact_fraction}, indent=2)

    def __str__(self) -> str:
        rows = [(row.name, row.codes_equal, row.elements, row.max_steps, 100 * row.exact) for row in self.layers]
        shares = ", ".join(f"{steps}: {count:,}" for steps, count in enumerate(self.output_steps))
        agreement = "no classes" if self.top1_agreement is None else f"{self.top1_agreement:.4f}"
        return "\n".join(
            (
                table(("layer", "weights equal", "elements", "max steps", "% exact"), rows),
                f"layers: {'ok' if self.ok else 'NOT OK'}, at most {self.max_layer_steps} step(s), "
                f"{100 * self.exact_fraction:.3f} % of elements equal",
                f"end to end on {self.samples} samples: elements by steps {{{shares}}}, top-1 agreement {agreement}",
                f"file: {self.size_bytes:,} bytes",
            )
        )


def verify(
    model: keras.Model,
    path: str | os.PathLike[str],
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    layer_samples: int = 4,
) -> Parity:
    """Compare a .tflite file that `export_litert` wrote with the model it came from.

    Layer by layer on the first `layer_samples` samples, run on LiteRT's reference kernels; end to end on all of `data`,
    run as a phone would (XNNPACK delegate).
    data: as for `calibrate`.   batch_size: for arrays.   steps: batches to look at.
    Raises FileNotFoundError or ValueError for a missing or foreign file, or one of another model.
    """
    file = LiteRTFile(path)
    lowered = lower_model(model, _input_shapes(model, file))
    _check_same_graph(lowered.graph, file, path)
    inputs = [_flat(batch) for batch in klb_data.batches(data, batch_size, steps)]
    layers = _layers(model, lowered, file, path, _first(inputs, layer_samples))
    differences, agreements = _end_to_end(model, lowered, path, inputs)
    counts = np.bincount(differences) if differences.size else np.zeros(1, np.int64)
    agreement = float(np.mean(agreements)) if agreements else None
    samples = sum(len(batch[0]) for batch in inputs)
    return Parity(tuple(layers), tuple(int(n) for n in counts), agreement, samples, file.size)


def _flat(batch: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float32) for leaf in keras.tree.flatten(batch)]


def _first(batches: list[list[np.ndarray]], count: int) -> list[np.ndarray]:
    joined = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    return [array[:count] for array in joined]


def _input_shapes(model: keras.Model, file: LiteRTFile) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for tensor in model.inputs:
        found = file.tensors.get(tensor.name)
        if found is not None:
            shapes[tensor.name] = found.shape[1:]
    return shapes


def _check_same_graph(graph: IntegerGraph, file: LiteRTFile, path: Any) -> None:
    missing = [name for node in graph.nodes for name in node.outputs if name not in file.tensors]
    if missing:
        raise ValueError(
            f"{os.fspath(path)!r} has no tensor {missing[0]!r}: it was not exported from this model as it is now. "
            "Export it again: keras_lowbit.export_litert(model, path)."
        )


def _layers(
    model: keras.Model, lowered: Lowered, file: LiteRTFile, path: Any, samples: list[np.ndarray]
) -> list[LayerParity]:
    graph = lowered.graph
    runner = FileRunner(path, reference=True)
    tensors = runner.all_tensors(samples, _needed(lowered))
    reals = {name: _real(graph, name, value) for name, value in tensors.items()}
    weights = _weights_equal(model, lowered, file)
    return [_layer(graph, segment, tensors, reals, weights.get(segment.tensor)) for segment in lowered.segments]


def _needed(lowered: Lowered) -> set[str]:
    sources = {name for segment in lowered.segments for name in segment.trail.sources.values()}
    return sources | {segment.tensor for segment in lowered.segments}


def _real(graph: IntegerGraph, name: str, value: np.ndarray) -> np.ndarray:
    tensor = graph.tensors[name]
    if tensor.scale is None:
        return value
    return (value.astype(np.float32) - tensor.zero_point) * tensor.scale


def _layer(
    graph: IntegerGraph,
    segment: Segment,
    tensors: Mapping[str, np.ndarray],
    reals: Mapping[str, np.ndarray],
    codes_equal: bool | None,
) -> LayerParity:
    values = segment.trail.replay(
        {name: keras.ops.convert_to_tensor(reals[name]) for name in segment.trail.sources.values()}
    )
    wanted = keras.ops.convert_to_numpy(values[segment.key])
    got, grid = tensors[segment.tensor], graph.tensors[segment.tensor].range
    difference = np.abs(fixed_codes(wanted, grid).reshape(got.shape) - got.astype(np.int32))
    exact = float(np.mean(difference == 0)) if difference.size else 1.0
    return LayerParity(segment.tensor, int(difference.size), int(difference.max(initial=0)), exact, codes_equal)


def _weights_equal(model: keras.Model, lowered: Lowered, file: LiteRTFile) -> dict[str, bool]:
    """Node name -> whether the file's codes, times the recorded factors, are the model's, and the scales the graph's."""
    found = {}
    layers = quantized_layers(model)
    for layer in lowered.layers.values():
        keras_layer = layers[layer.path]
        kind = type(keras_layer).__name__.removeprefix("Quant")
        node = layer.node + "/conv" if kind == "Conv1D" else layer.node
        name = f"{node}/kernel"
        codes = kernel_codes(keras_layer).codes
        codes = codes * along(layer.factors, codes, keras_layer.filter_axes)
        flushed = list(layer.flushed)
        codes = np.transpose(codes, _LAYOUTS[kind])
        stored = file.tensors[name]
        same = _same_codes(stored.codes, codes, flushed, kind)
        found[layer.node] = same and np.array_equal(stored.scale, np.asarray(lowered.graph.tensors[name].scale))
    return found


def _same_codes(stored: np.ndarray | None, codes: np.ndarray, flushed: list[int], kind: str) -> bool:
    if stored is None or stored.size != codes.size:
        return False
    channels = codes.shape[0] if kind != "DepthwiseConv2D" else int(np.prod(codes.shape[2:]))
    by_channel = (channels, -1) if kind != "DepthwiseConv2D" else (-1, channels)
    left, right = stored.reshape(by_channel), codes.reshape(by_channel)
    if kind == "DepthwiseConv2D":
        left, right = left.T, right.T
    keep = np.setdiff1d(np.arange(channels), flushed)
    return bool(np.array_equal(left[keep], right[keep]) and not left[flushed].any())


def _end_to_end(
    model: keras.Model, lowered: Lowered, path: Any, batches: list[list[np.ndarray]]
) -> tuple[np.ndarray, list[float]]:
    runner = FileRunner(path, reference=False)
    differences: list[np.ndarray] = []
    agreements: list[float] = []
    for batch in batches:
        wanted = _predict(model, batch)
        for name, real, got in zip(lowered.graph.outputs, wanted, runner.run(batch), strict=True):
            tensor = lowered.graph.tensors[name]
            if tensor.dtype == "int8":
                grid = tensor.range
                difference = np.abs(fixed_codes(real, grid).reshape(got.shape) - fixed_codes(got, grid))
                differences.append(difference.reshape(-1))
            if real.ndim == 2 and real.shape[-1] > 1:
                agreements += list(real.argmax(-1) == got.reshape(real.shape).argmax(-1))
    return np.concatenate(differences) if differences else np.zeros(0, np.int64), agreements


def _predict(model: keras.Model, batch: list[np.ndarray]) -> list[np.ndarray]:
    structured = keras.tree.pack_sequence_as(model.input, batch)
    outputs = keras.tree.flatten(model.predict_on_batch(structured))
    return [np.asarray(output, np.float32) for output in outputs]
