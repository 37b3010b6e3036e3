"""End to end, batch by batch: the file's outputs against the quantized Keras model, a float reference and labels.

Without a file the Keras model alone is compared. Nothing is kept of a batch but sums: data may be as large as they like.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import activation_name
from keras_lowbit.data import labelled_batches
from keras_lowbit.deploy.graph import Range, Tensor
from keras_lowbit.deploy.graph.operations import OPERATIONS
from keras_lowbit.deploy.graph.tensors import CODES
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.lowering.values import fixed_codes
from keras_lowbit.deploy.verification.noise import Noise
from keras_lowbit.deploy.verification.scores import Score, Scorer, labels_by_output
from keras_lowbit.keras_graph.calls import calls_of, functional_of, inputs_in_order, is_graph_model

Array = np.ndarray

_EAGER_BATCHES = 4  # tracing a large model into a graph takes longer than so many batches without one


@dataclasses.dataclass(frozen=True)
class OutputParity:
    """One output of the model, end to end on all samples.

    steps: how many of its elements differ from Keras by 0, 1, 2, ... steps; empty for a float output.
    snr_db: signal-to-noise ratio of the file to the quantized Keras model, ``10 log10(sum(keras^2) / sum((keras - file)^2))``.
    reference_snr_db, keras_reference_snr_db: of the file, and of the quantized Keras model, to the float reference.
    top1_agreement, reference_top1_agreement: share of samples on which the file has the same largest element as the quantized
    Keras model, as the reference; of class numbers, the same number (there the ratios to the reference are None); None without
    classes.   keras_reference_top1_agreement: of the quantized Keras model with the reference.   score: against labels.
    Fields about what was not given are None.
    """

    name: str
    steps: tuple[int, ...]
    snr_db: float | None
    reference_snr_db: float | None = None
    keras_reference_snr_db: float | None = None
    top1_agreement: float | None = None
    reference_top1_agreement: float | None = None
    score: Score | None = None
    keras_reference_top1_agreement: float | None = None

    def __str__(self) -> str:
        parts = (
            [f"output {self.name!r}"]
            if self.snr_db is None
            else [f"output {self.name!r}: {self.snr_db:.1f} dB to Keras"]
        )
        if self.reference_snr_db is not None and self.keras_reference_snr_db is not None:
            parts.append(
                f"{self.reference_snr_db:.1f} dB to the reference (Keras {self.keras_reference_snr_db:.1f} dB)"
            )
        if self.reference_top1_agreement is not None:
            parts.append(f"top-1 agreement with the reference {self.reference_top1_agreement:.4f}")
        return ", ".join([*parts, *([str(self.score)] if self.score is not None else [])])


class _Agreement:
    """How often two arrays [n, classes] have the same largest element; two arrays of class numbers, the same element."""

    def __init__(self) -> None:
        self.equal, self.count = 0, 0

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        if wanted.dtype.kind in "iu":
            self.equal += int(np.count_nonzero(wanted == got.reshape(wanted.shape)))
            self.count += wanted.size
        elif wanted.ndim == 2 and wanted.shape[-1] > 1:
            self.equal += int(np.count_nonzero(wanted.argmax(-1) == got.reshape(wanted.shape).argmax(-1)))
            self.count += len(wanted)

    @property
    def share(self) -> float | None:
        return self.equal / self.count if self.count else None


@dataclasses.dataclass(frozen=True)
class Described:
    """What is known of an output beforehand. grid: of its codes in the file; None without a file, or where it is float there.

    shares: whether its values are shares of 1.
    """

    name: str
    grid: Range | None = None
    shares: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> "Described":
        """The output that a tensor of the graph is."""
        grid = tensor.range if tensor.dtype in CODES else None
        return cls(tensor.name, grid, grid is not None and grid == OPERATIONS["logistic"].fixed_range(grid.dtype))


class _Output:
    """The running sums of one output."""

    def __init__(self, about: Described) -> None:
        self.about = about
        lowest, highest = (1, 0) if about.grid is None else about.grid.limits
        self.steps = np.zeros(highest + 1 - lowest, np.int64)
        self.noise, self.reference, self.keras_reference = Noise(), Noise(), Noise()
        self.agreement, self.reference_agreement, self.keras_agreement = _Agreement(), _Agreement(), _Agreement()
        self.has_file, self.has_reference = False, False
        self.scorer = Scorer(about.name, probabilities=about.shares)

    def add(self, real: Array, got: Array | None, wanted: Array | None, labels: Array | None) -> None:
        """A batch of Keras' outputs, the file's, the reference's, and its labels."""
        outputs = {"keras": real}
        if got is not None:
            outputs["file"] = got = got.reshape(real.shape)
            self._add_file(real, got)
        if wanted is not None:
            outputs["reference"] = wanted
            self._add_reference(real, got, wanted)
        if labels is not None:
            self.scorer.add(labels, outputs)

    def _add_file(self, real: Array, got: Array) -> None:
        self.has_file = True
        if self.about.grid is not None:
            difference = np.abs(fixed_codes(real, self.about.grid) - fixed_codes(got, self.about.grid))
            self.steps += np.bincount(difference.reshape(-1), minlength=self.steps.size)
        self.noise.add(real, got)
        self.agreement.add(real, got)

    def _add_reference(self, real: Array, got: Array | None, wanted: Array) -> None:
        self.has_reference = wanted.dtype.kind not in "iu"
        self.keras_reference.add(wanted, real)
        self.keras_agreement.add(wanted, real)
        if got is not None:
            self.reference.add(wanted, got)
            self.reference_agreement.add(wanted, got)

    def result(self) -> OutputParity:
        counts = np.trim_zeros(self.steps, "b") if self.steps.any() else self.steps[:1]
        return OutputParity(
            self.about.name,
            tuple(int(n) for n in counts),
            self.noise.snr_db if self.has_file else None,
            self.reference.snr_db if self.has_reference and self.has_file else None,
            self.keras_reference.snr_db if self.has_reference else None,
            self.agreement.share,
            self.reference_agreement.share,
            self.scorer.result(),
            self.keras_agreement.share,
        )


class EndToEnd:
    """Runs file, quantized Keras model and reference on every batch it is given.

    outputs: one for each of the model, in order.   runner: of the file, or None.   reference: the float model, or None.
    strict: whether labels that do not fit are an error; else `labels_note` says so.
    """

    def __init__(
        self,
        model: keras.Model,
        outputs: Iterable[Described],
        runner: FileRunner | None,
        reference: Any,
        strict: bool = True,
    ) -> None:
        self.model, self.runner, self.strict = model, runner, strict
        self.predict = Predictor(model)
        self.reference = None if reference is None else Predictor(reference)
        self._sums = [_Output(about) for about in outputs]
        self.samples, self.labels_note = 0, ""

    def add(self, batch: list[np.ndarray], labels: Any) -> None:
        """One batch of inputs in the model's order, and its labels or None."""
        reals, found = self._run(batch)
        wanted = self._wanted(batch, reals)
        for output, real, got, reference, own in zip(
            self._sums, reals, found, wanted, self._labels(labels), strict=True
        ):
            try:
                output.add(real, got, reference, own)
            except ValueError as error:
                self._no_labels(error)
        self.samples += len(batch[0])

    @property
    def outputs(self) -> tuple[OutputParity, ...]:
        """Every output."""
        return tuple(output.result() for output in self._sums)

    def _run(self, batch: list[np.ndarray]) -> tuple[list[np.ndarray], Sequence[np.ndarray | None]]:
        """The outputs of the Keras model, and of the file."""
        if self.runner is None:
            reals = self.predict(batch)
            return reals, [None] * len(reals)
        with ThreadPoolExecutor(1) as meanwhile:  # LiteRT takes one processor
            running = meanwhile.submit(self.runner.run, batch)
            try:
                reals = self.predict(batch)
            finally:
                found = running.result()  # what the file does not take is said first
        return reals, found

    def _wanted(self, batch: list[np.ndarray], reals: list[np.ndarray]) -> Iterable[np.ndarray | None]:
        if self.reference is None:
            return [None] * len(reals)
        wanted = self.reference(batch)
        shapes = [[array.shape for array in arrays] for arrays in (reals, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"reference= gives outputs of shapes {shapes[1]}, the model {shapes[0]}. Give the float model that it was "
                "made from."
            )
        return wanted

    def _labels(self, labels: Any) -> list[np.ndarray | None]:
        if labels is None or self.labels_note:
            return [None] * len(self._sums)
        try:
            return labels_by_output(self.model, labels)
        except ValueError as error:
            self._no_labels(error)
            return [None] * len(self._sums)

    def _no_labels(self, error: ValueError) -> None:
        if self.strict:
            raise error
        self.labels_note = str(error)


def compare_keras(
    model: keras.Model,
    data: Any,
    reference: Any = None,
    labels: Any = None,
    batch_size: int = 32,
    steps: int | None = None,
) -> EndToEnd:
    """A model end to end, without a file, against what is given of reference and labels. Arguments as for `verify`."""
    graph = calls_of(model, inline=True)
    about = [
        Described(name, shares=key in graph.producers and activation_name(graph.producers[key].operation) == "sigmoid")
        for name, key in zip(model.output_names, graph.outputs, strict=True)
    ]
    ends = EndToEnd(model, about, None, reference, strict=labels is not None)
    for inputs, own in labelled_batches(data, labels, batch_size, steps):
        arrays = inputs_in_order(model, inputs)
        ends.add([as_given(array) for array in arrays], own)
    return ends


def as_given(array: np.ndarray) -> np.ndarray:
    """Reals as float32; whole numbers and masks as they are."""
    return np.asarray(array, np.float32) if array.dtype.kind == "f" else array


class Predictor:
    """A model's outputs in inference, flattened: float32, integers of an integer output. It leaves no trace in the model.

    What many batches share is their shapes: for those of one of them a graph is made; batches of others run without one.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.batches = 0
        self.traced: Callable[..., Any] | None = None
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """For one batch of inputs in the model's order."""
        structure = batch[0] if len(batch) == 1 else batch
        if is_graph_model(self.model) and self.model.built:
            structure = functional_of(self.model).input
        outputs = self._function(batch)(keras.tree.pack_sequence_as(structure, batch))
        return [_as_real(keras.ops.convert_to_numpy(output)) for output in keras.tree.flatten(outputs)]

    def _function(self, batch: list[np.ndarray]) -> Callable[..., Any]:
        eager, shapes = _Inference(self.model), [array.shape for array in batch]
        self.batches += 1
        if self.batches > _EAGER_BATCHES and self.traced is None:
            self.traced, self.shapes = _traced(eager), shapes
        return self.traced if self.traced is not None and shapes == self.shapes else eager


@dataclasses.dataclass(frozen=True, eq=False)
class _Inference:
    """A call of the model. An object, since TensorFlow warns of functions made in one place that are traced again and again."""

    model: Any

    def __call__(self, inputs: Any) -> Any:
        return self.model(inputs, training=False)


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a graph of its own where TensorFlow is the backend: `predict_on_batch` would put one into the model."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, autograph=False)


def _as_real(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "iu" else array.astype(np.float32, copy=False)
