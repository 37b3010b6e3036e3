"""verify: is the file what the Keras model is? Layer by layer, on the file's own tensors.

Each stored tensor of the file is compared with what Keras makes of the file's own inputs of that layer, in steps of the
last bit, so that errors of earlier layers do not add up. End to end they do: there the distribution is reported. Against
the NumPy reference of the integer graph there is no tolerance: every element of every tensor is equal, or it is wrong.
"""

import dataclasses
import json
from typing import Any

import keras
import numpy as np

from keras_lowbit import data as klb_data
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.delegate import DelegateCoverage, delegate_coverage
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.litert.weight_formats import with_dense_pointwise
from keras_lowbit.deploy.lowering.arguments import check_model, check_not_packed
from keras_lowbit.deploy.lowering.int8_overflow import Overflow, policy_of, sentence
from keras_lowbit.deploy.lowering.lower import lower_model
from keras_lowbit.deploy.lowering.values import fixed_codes
from keras_lowbit.deploy.verification.layers import (
    LayerParity,
    ReferenceParity,
    compare_layers,
    compare_reference,
    softmax_overflows,
)
from keras_lowbit.deploy.verification.structure import check_same_structure
from keras_lowbit.files import FilePath
from keras_lowbit.keras_graph.calls import functional_of, inputs_in_order
from keras_lowbit.tables import table

_EAGER_BATCHES = 4  # tracing a large model into a graph takes longer than so many batches without one

__all__ = ["LayerParity", "Parity", "ReferenceParity", "verify"]


@dataclasses.dataclass(frozen=True)
class Parity:
    """The verdict of `verify`; prints as a table by layer.

    layers: each stored tensor against Keras on equal inputs.   reference: the file against the NumPy reference.
    delegate: which operators XNNPACK runs.   output_steps: how many output elements differ from Keras by 0, 1, 2, ...
    steps, end to end.   top1_agreement: share of samples on which file and Keras agree on the largest output, None for
    models without classes.   samples: of the end-to-end comparison.   overflows: layers whose weights export altered to
    fit int8. Alone they are compared with the altered weights, to equality; end to end, with the model as it was trained.
    """

    layers: tuple[LayerParity, ...]
    output_steps: tuple[int, ...]
    top1_agreement: float | None
    samples: int
    size_bytes: int
    reference: ReferenceParity | None = None
    delegate: DelegateCoverage | None = None
    overflows: dict[str, Overflow] = dataclasses.field(default_factory=dict)

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
        """Whether every weight, bias and scale in the file is the model's."""
        return all(layer.codes_equal is not False for layer in self.layers)

    @property
    def reference_equal(self) -> bool | None:
        """Whether the file on LiteRT's reference kernels equals the NumPy reference on every element of every tensor.

        None where LiteRT's reference kernels lack an operation of a float subgraph, or would end the process: their int8
        softmax does where the exponentials of one row add up to 512 (an untrained network of 1000 classes).
        """
        return None if self.reference is None else self.reference.equal

    @property
    def ok(self) -> bool:
        """Weights equal, every layer within one step of Keras, no element different from the NumPy reference."""
        return self.codes_equal and self.max_layer_steps <= 1 and self.reference_equal is not False

    def to_json(self) -> str:
        """All figures as JSON."""
        derived = ("ok", "codes_equal", "reference_equal", "max_layer_steps", "max_output_steps", "exact_fraction")
        fields = {**{name: getattr(self, name) for name in derived}, **dataclasses.asdict(self)}
        if self.delegate is not None:
            fields["delegate"] |= {
                "operators": self.delegate.operators,
                "left_by_operator": self.delegate.left_by_operator,
            }
        return json.dumps(fields, indent=2)

    def __str__(self) -> str:
        heads = ("layer", "operator", "XNNPACK", "weights equal", "elements", "max steps", "% exact")
        rows = [
            (row.name, row.op, row.delegated, row.codes_equal, row.elements, row.max_steps, 100 * row.exact)
            for row in self.layers
        ]
        shares = ", ".join(f"{steps}: {count:,}" for steps, count in enumerate(self.output_steps))
        agreement = "no classes" if self.top1_agreement is None else f"{self.top1_agreement:.4f}"
        lines = [
            table(heads, rows),
            f"layers: {'ok' if self.ok else 'NOT OK'}, at most {self.max_layer_steps} step(s) from Keras, "
            f"{100 * self.exact_fraction:.3f} % of elements equal",
            *([self._reference_line(self.reference)] if self.reference is not None else []),
            f"end to end on {self.samples} samples: elements by steps {{{shares}}}, top-1 agreement {agreement}",
            *([f"layers compared with their weights as stored: {sentence(self.overflows)}"] if self.overflows else []),
            *([str(self.delegate)] if self.delegate is not None else []),
            f"file: {self.size_bytes:,} bytes",
        ]
        return "\n".join(lines)

    @staticmethod
    def _reference_line(found: ReferenceParity) -> str:
        if found.equal is None:
            return "NumPy reference: not compared, LiteRT's reference kernels cannot run this file on this data"
        worst = ", ".join(f"{name}: {count:,}" for name, count in list(found.differing.items())[:5])
        return (
            f"NumPy reference: {sum(found.differing.values()):,} of {found.elements:,} elements differ from LiteRT's "
            f"reference kernels{f' ({worst})' if worst else ''}"
        )


def verify(
    model: keras.Model,
    path: FilePath,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    layer_samples: int = 4,
    reference_samples: int = 1,
) -> Parity:
    """Compare a .tflite file that `export_litert` wrote with the model it came from.

    Layer by layer on the first `layer_samples` samples, run on LiteRT's reference kernels; against the NumPy reference,
    every tensor, on the first `reference_samples` (it is slow) and at least one batch of the file's size, the last sample
    repeated where there are too few; end to end on all of `data`, run on the XNNPACK delegate, as on a device.
    data: as for `calibrate`.   batch_size: for arrays.   steps: batches to look at.
    Raises FileNotFoundError or ValueError for a missing, damaged or foreign file, or one of another model; ValueError for
    numbers of samples below 1.
    """
    check_model(model, "verify")
    check_not_packed(model, "verify")
    _check_samples(layer_samples=layer_samples, reference_samples=reference_samples)
    file = LiteRTFile(path)
    policy = policy_of(litert.read_metadata(path))
    lowered = lower_model(model, _input_shapes(model, file), _batch_size(file), overflow=policy)
    formats = check_same_structure(lowered.graph, file, path)
    inputs = [_flat(model, batch) for batch in klb_data.batches(data, batch_size, steps)]
    spare = softmax_overflows(lowered.graph, _first(inputs, max(layer_samples, reference_samples), _batch_size(file)))
    runner, coverage = FileRunner(path, reference=True, spare_reference=spare), delegate_coverage(path)
    layers = compare_layers(model, lowered, file, runner, _first(inputs, layer_samples), set(coverage.taken))
    written = with_dense_pointwise(lowered.graph, formats)
    reference = compare_reference(written, runner, _first(inputs, reference_samples, runner.batch_size))
    differences, agreements = _end_to_end(model, lowered.graph, path, inputs)
    counts = np.bincount(differences) if differences.size else np.zeros(1, np.int64)
    agreement = float(np.mean(agreements)) if agreements else None
    samples = sum(len(batch[0]) for batch in inputs)
    steps_found = tuple(int(n) for n in counts)
    return Parity(tuple(layers), steps_found, agreement, samples, file.size, reference, coverage, lowered.overflows)


def _flat(model: keras.Model, batch: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float32) for leaf in inputs_in_order(model, batch)]


def _check_samples(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name}={count!r}: expected a whole number of at least 1.")


def _first(batches: list[list[np.ndarray]], count: int, multiple: int = 1) -> list[np.ndarray]:
    """The first `count` samples and as many more as make a multiple; the last one repeated where there are too few."""
    joined = [np.concatenate(parts)[: -(-count // multiple) * multiple] for parts in zip(*batches, strict=True)]
    return [np.concatenate([array, array[-1:].repeat(-len(array) % multiple, axis=0)]) for array in joined]


def _batch_size(file: LiteRTFile) -> int:
    shape = file.tensors[file.inputs[0]].shape if file.inputs else ()
    return shape[0] if shape and shape[0] > 0 else 1


def _input_shapes(model: keras.Model, file: LiteRTFile) -> dict[str, tuple[int, ...]]:
    """What the file chose for inputs of variable size."""
    variable = [t for t in model.inputs if None in t.shape[1:] and t.name in file.tensors]
    return {t.name: file.tensors[t.name].shape[1:] for t in variable if len(file.tensors[t.name].shape) == len(t.shape)}


def _end_to_end(
    model: keras.Model, graph: IntegerGraph, path: Any, batches: list[list[np.ndarray]]
) -> tuple[np.ndarray, list[float]]:
    """Steps between file and Keras of every output element, and whether the largest output is the same."""
    runner = FileRunner(path, reference=False)
    differences: list[np.ndarray] = []
    agreements: list[float] = []
    for batch in batches:
        expected = _predict(model, batch, traced=len(batches) > _EAGER_BATCHES)
        for name, real, got in zip(graph.outputs, expected, runner.run(batch), strict=True):
            tensor = graph.tensors[name]
            if tensor.dtype == "int8":
                grid = tensor.range
                difference = np.abs(fixed_codes(real, grid).reshape(got.shape) - fixed_codes(got, grid))
                differences.append(difference.reshape(-1))
            if real.ndim == 2 and real.shape[-1] > 1:
                agreements += list(real.argmax(-1) == got.reshape(real.shape).argmax(-1))
    return np.concatenate(differences) if differences else np.zeros(0, np.int64), agreements


def _predict(model: keras.Model, batch: list[np.ndarray], traced: bool) -> list[np.ndarray]:
    structured = keras.tree.pack_sequence_as(functional_of(model).input, batch)
    outputs = model.predict_on_batch(structured) if traced else model(structured, training=False)
    return [np.asarray(keras.ops.convert_to_numpy(output), np.float32) for output in keras.tree.flatten(outputs)]
