"""verify: is the file what the Keras model is? Layer by layer, on the file's own tensors.

Each stored tensor of the file is compared with what Keras makes of the file's own inputs of that layer, in steps of the
last bit, so that errors of earlier layers do not add up. End to end they do: there the distribution is reported. Against
the NumPy reference of the integer graph there is no tolerance: every element of every tensor is equal, or it is wrong.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_lowbit import data as klb_data
from keras_lowbit.data.batching import Progress
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.delegate import delegate_coverage
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.litert.reader import LiteRTFile, parsing
from keras_lowbit.deploy.litert.signatures import one_signature
from keras_lowbit.deploy.litert.weight_formats import as_written
from keras_lowbit.deploy.lowering.arguments import check_model, check_not_packed
from keras_lowbit.deploy.lowering.int8_overflow import policy_of
from keras_lowbit.deploy.lowering.lower import LOWERING, Lowered, lower_model
from keras_lowbit.deploy.verification.explain import InputNotes
from keras_lowbit.deploy.verification.layers import LayerParity, compare_layers
from keras_lowbit.deploy.verification.numpy_reference import (
    ReferenceParity,
    compare_reference,
    softmax_overflows,
    trace_by_batches,
)
from keras_lowbit.deploy.verification.outputs import Described, EndToEnd, OutputParity, as_given
from keras_lowbit.deploy.verification.parity import LEAST_REFERENCE_SNR_DB, Parity
from keras_lowbit.deploy.verification.scores import Score
from keras_lowbit.deploy.verification.structure import check_same_structure
from keras_lowbit.files import FilePath
from keras_lowbit.keras_graph.calls import inputs_in_order

__all__ = ["LayerParity", "OutputParity", "Parity", "ReferenceParity", "Score", "verify"]


def verify(
    model: keras.Model,
    path: FilePath,
    data: Any,
    *,
    reference: keras.Model | None = None,
    labels: Any = None,
    batch_size: int = 32,
    steps: int | None = None,
    layer_samples: int = 4,
    reference_samples: int = 1,
    min_reference_snr_db: float = LEAST_REFERENCE_SNR_DB,
    signature: str | None = None,
    verbose: int | bool = 1,
) -> Parity:
    """Compare a .tflite file that `export_litert` wrote with the model it came from. It reads only.

    Against the NumPy reference, every tensor, on the first `reference_samples` (LiteRT's reference kernels are slow) and at
    least one batch of the file's size, the last sample repeated where there are too few. Layer by layer against Keras on the
    first `layer_samples`: on the tensors of the NumPy reference if the file proved equal to it, else on those of the file.
    End to end on all of `data`, batch by batch, run on the XNNPACK delegate, as on a device.

    model: quantized; it is not changed.   path: of the file.
    data: as for `calibrate`; labels that a data set gives are compared too.   labels: for data in arrays, class numbers,
    one-hot rows or reals, one for each sample; a list or dict for several outputs.   batch_size: for arrays.
    steps: batches to look at.   reference: the float model that `model` was made from, compared end to end.
    min_reference_snr_db: the least signal-to-noise ratio of the file's outputs to the reference's that is `ok`; -inf for
    none, for a model that has learnt something else since.
    signature: which one of a file of several, see `deploy.join_signatures`.
    verbose: 1 shows batches and layers that are done on a terminal, 0 nothing.
    layer_samples, reference_samples: as above, 1 or more.
    Returns a `Parity`: `ok`, `problems`, a row for each layer and the outputs end to end; `print` it.
    Raises FileNotFoundError or ValueError for a missing, damaged or foreign file, or one of another model; ValueError for
    numbers of samples below 1, `labels` that do not fit the outputs, and a reference of other outputs.

    >>> written = klb.export_litert(quantized, "m.tflite")
    >>> parity = klb.verify(quantized, "m.tflite", images, reference=model, labels=labels)
    >>> parity.ok, parity.problems
    (True, ())
    >>> parity.outputs[0].reference_snr_db > 20
    True
    """
    check_model(model, "verify")
    check_not_packed(model, "verify")
    if reference is not None:
        check_model(reference, "verify(reference=)")
    _check_samples(layer_samples=layer_samples, reference_samples=reference_samples)
    file = LiteRTFile(path) if signature is None else _part(path, signature)
    policy, batch = policy_of(_notes(file, path)), _batch_size(file)
    lowered = lower_model(model, _input_shapes(model, file), batch, overflow=policy)
    written = as_written(lowered.graph, check_same_structure(lowered.graph, file, path))
    first = _FirstSamples(max(layer_samples, reference_samples), batch)
    run_by = partial(FileRunner, path, content=file.content)
    about = [Described.of(lowered.graph.tensors[name]) for name in lowered.graph.outputs]
    ends = EndToEnd(model, about, run_by(), reference, strict=labels is not None)
    notes = InputNotes(lowered.graph)
    count = klb_data.batch_count(data, batch_size, steps)
    bar = Progress(None if count is None else count + len(lowered.segments), "batch or layer", verbose)
    with ThreadPoolExecutor(1) as meanwhile:  # what needs no Keras, beside what does
        batches = klb_data.labelled_batches(data, labels, batch_size, steps)
        trace = partial(meanwhile.submit, partial(trace_by_batches, written, size=batch))
        ours = _run_over(model, batches, first, trace, ends, notes, bar).result()
        runner = run_by(reference=True, spare_reference=softmax_overflows(written, ours))
        coverage = delegate_coverage(path, file.content)
        layers_on = partial(_layers_on, model, lowered, file, set(coverage.taken))
        comparing = meanwhile.submit(compare_reference, ours, runner, first.take(reference_samples))
        layers = layers_on(ours, bar) if runner.resolver == "reference" else []
        found = comparing.result()
    if not found.equal:
        layers = layers_on(runner.all_tensors(first.take(), set(ours)), bar if not layers else None)
    bar.close()
    return Parity(
        tuple(layers),
        *_together(ends.outputs),
        samples=ends.samples,
        size_bytes=file.size,
        reference=found,
        delegate=coverage,
        overflows=lowered.overflows,
        notes=notes.sentences(),
        outputs=ends.outputs,
        labels_note=ends.labels_note,
        min_reference_snr_db=min_reference_snr_db,
    )


def _part(path: FilePath, signature: str) -> LiteRTFile:
    """One network of a file of several."""
    content = one_signature(path, signature)
    with parsing(path, len(content)):
        return LiteRTFile.of_bytes(content)


def _notes(file: LiteRTFile, path: FilePath) -> Mapping[str, Any] | None:
    with parsing(path, file.size):
        return litert.metadata_of(file.content)


def _run_over(
    model: keras.Model,
    batches: Iterable[tuple[Any, Any]],
    first: "_FirstSamples",
    trace: Callable[[list[np.ndarray]], Future[dict[str, np.ndarray]]],
    ends: EndToEnd,
    notes: InputNotes,
    bar: Progress,
) -> Future[dict[str, np.ndarray]]:
    """Runs all batches end to end; the trace of the first samples, begun as soon as they are there."""
    tracing = None
    for inputs, labels in batches:
        arrays = [as_given(leaf) for leaf in inputs_in_order(model, inputs)]
        first.add(arrays)
        if tracing is None and not first.missing:
            tracing = trace(first.take())
        ends.add(arrays, labels)
        notes.add(arrays)
        bar.advance()
    return tracing or trace(first.take())


def _layers_on(
    model: keras.Model,
    lowered: Lowered,
    file: LiteRTFile,
    taken: set[str],
    tensors: Mapping[str, np.ndarray],
    bar: Progress | None,
) -> list[LayerParity]:
    with LOWERING:
        return compare_layers(model, lowered, file, tensors, taken, bar)


def _check_samples(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name}={count!r}: expected a whole number of at least 1.")


class _FirstSamples:
    """The first samples of a stream of batches, whole batches of the file's size."""

    def __init__(self, count: int, multiple: int) -> None:
        self.multiple, self.missing = multiple, -(-count // multiple) * multiple
        self._parts: list[list[np.ndarray]] = []

    def add(self, batch: list[np.ndarray]) -> None:
        """Keep what is still missing of a batch."""
        if self.missing:
            self._parts.append([array[: self.missing].copy() for array in batch])
            self.missing -= len(self._parts[-1][0])

    def take(self, count: int | None = None) -> list[np.ndarray]:
        """The first `count` and as many more as make whole batches, or all; the last one repeated where there are too few."""
        stop = None if count is None else -(-count // self.multiple) * self.multiple
        joined = [np.concatenate(parts)[:stop] for parts in zip(*self._parts, strict=True)]
        return [np.concatenate([a, a[-1:].repeat(-len(a) % self.multiple, axis=0)]) for a in joined]


def _together(outputs: Sequence[OutputParity]) -> tuple[tuple[int, ...], float | None]:
    """Steps of all outputs, and their mean top-1 agreement."""
    steps = np.zeros(max((len(output.steps) for output in outputs), default=0) or 1, np.int64)
    for output in outputs:
        steps[: len(output.steps)] += np.asarray(output.steps, np.int64)
    shares = [output.top1_agreement for output in outputs if output.top1_agreement is not None]
    return tuple(int(n) for n in steps), float(np.mean(shares)) if shares else None


def _batch_size(file: LiteRTFile) -> int:
    shape = file.tensors[file.inputs[0]].shape if file.inputs else ()
    return shape[0] if shape and shape[0] > 0 else 1


def _input_shapes(model: keras.Model, file: LiteRTFile) -> dict[str, tuple[int, ...]]:
    """What the file chose for inputs of variable size."""
    variable = [t for t in model.inputs if None in t.shape[1:] and t.name in file.tensors]
    return {t.name: file.tensors[t.name].shape[1:] for t in variable if len(file.tensors[t.name].shape) == len(t.shape)}
