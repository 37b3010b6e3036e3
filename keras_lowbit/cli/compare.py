"""keras-lowbit compare: two models or files side by side on the same data: agreement, error, accuracy, size and latency.

    keras-lowbit compare float.keras model.tflite --data photos/
    keras-lowbit compare int8.tflite int4.tflite --data photos/ --preprocess tf

Each is a .tflite file of any tool, or a .keras or .h5 file, float or quantized. The error is that of the second to the first.
Latency is of one call on this machine, files interleaved, with XNNPACK; Keras models have none here.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import flags

from keras_lowbit.bench.latency import latency
from keras_lowbit.cli.dataset import define_data, open_data
from keras_lowbit.cli.models import read_model
from keras_lowbit.cli.options import define_json, show, working
from keras_lowbit.data import labelled_batches
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.files import printable
from keras_lowbit.keras_graph.calls import inputs_in_order
from keras_lowbit.keras_graph.depth import build_model
from keras_lowbit.tables import table

FLAGS = flags.FlagValues()
define_json(FLAGS)
define_data(FLAGS)
text = "height and width of the images, for a model that takes any"
flags.DEFINE_integer("input_size", None, text, lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("threads", 1, "threads of LiteRT for the latency", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("repeats", 30, "calls for the latency; 0 for none", lower_bound=0, flag_values=FLAGS)
ARGUMENTS = ("A", "B")
TFLITE = ".tflite"


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two. model: with its inputs; of a file, one that stands for them.   run: a batch -> its outputs, reals."""

    path: str
    model: keras.Model
    run: Callable[[Any], list[np.ndarray]]


@dataclasses.dataclass
class Sums:
    """Running sums over the samples of one output of both sides."""

    samples: int = 0
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    agreed: int = 0
    classes: bool = True
    labelled: int = 0
    right: tuple[int, int] = (0, 0)

    def add(self, first: np.ndarray, second: np.ndarray, labels: Any) -> None:
        """A batch of outputs [n, ...], and its labels where there are classes, or None."""
        difference = second.astype(np.float64) - first
        self.samples += len(first)
        self.signal += float(np.square(first, dtype=np.float64).sum())
        self.noise += float(np.square(difference).sum())
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.classes = first.ndim == 2 and first.shape[-1] > 1
        if not self.classes:
            return
        tops = first.argmax(-1), second.argmax(-1)
        self.agreed += int((tops[0] == tops[1]).sum())
        if labels is not None and labels.shape == tops[0].shape and labels.max(initial=0) < first.shape[-1]:
            self.labelled += len(labels)
            self.right = (
                self.right[0] + int((tops[0] == labels).sum()),
                self.right[1] + int((tops[1] == labels).sum()),
            )

    def fields(self) -> dict[str, Any]:
        """What follows from the sums. snr_db: 10 log10(signal / noise), infinite for equal outputs."""
        snr = float("inf") if not self.noise else 10 * float(np.log10(max(self.signal, 1e-300) / self.noise))
        return {
            "samples": self.samples,
            "top1_agreement": self.agreed / self.samples if self.classes else None,
            "snr_db": snr,
            "largest_difference": self.largest,
            "accuracy": [right / self.labelled for right in self.right] if self.labelled else None,
        }


def run(values: Any, first: str, second: str) -> int:
    """Compares and prints both as a table."""
    with working(values):
        sides = [_side(first), _side(second)]
        _check_alike(*sides)
        about = sides[1] if first.endswith(TFLITE) and not second.endswith(TFLITE) else sides[0]
        outputs = _compared(sides, open_data(about.model, values).dataset)
        times = _latencies([first, second], values)
    fields = {
        "files": [
            {"path": side.path, "size_bytes": os.path.getsize(side.path), **times.get(side.path, {})} for side in sides
        ],
        "outputs": outputs,
    }
    show(values, _text(fields), fields)
    return 0


def _side(path: str) -> Side:
    if not path.endswith(TFLITE):
        model = read_model(path)
        return Side(path, model, lambda batch: _outputs(model, batch))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {printable(path)!r}. Give {TFLITE}, .keras or .h5 files")
    runner = FileRunner(path)
    inputs = [
        keras.Input([int(size) for size in detail["shape"][1:]], name=f"input_{place}")
        for place, detail in enumerate(runner.inputs)
    ]
    stand_in = build_model(inputs, [keras.layers.Identity()(tensor) for tensor in inputs], name=os.path.basename(path))
    return Side(path, stand_in, lambda batch: runner.run([np.asarray(x) for x in batch]))


def _outputs(model: keras.Model, batch: list[np.ndarray]) -> list[np.ndarray]:
    found = keras.tree.flatten(model(batch if len(batch) > 1 else batch[0], training=False))
    return [np.asarray(keras.ops.convert_to_numpy(value), np.float32) for value in found]


def _check_alike(first: Side, second: Side) -> None:
    shapes = [[tuple(tensor.shape[1:]) for tensor in side.model.inputs] for side in (first, second)]
    fits = len(shapes[0]) == len(shapes[1]) and all(
        len(a) == len(b) and all(x == y or None in (x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(*shapes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{printable(first.path)} takes inputs of shape {shapes[0]}, {printable(second.path)} of shape {shapes[1]}: they "
            "cannot be compared on the same data"
        )


def _compared(sides: list[Side], dataset: Any) -> list[dict[str, Any]]:
    """The figures of each output, batch by batch."""
    sums: list[Sums] = []
    for inputs, labels in labelled_batches(dataset):
        batch = list(inputs_in_order(sides[0].model, inputs)) if not isinstance(inputs, np.ndarray) else [inputs]
        first, second = (side.run(batch) for side in sides)
        if [a.shape for a in first] != [b.shape for b in second]:
            raise ValueError(
                f"{printable(sides[0].path)} gives outputs of shape {[a.shape[1:] for a in first]}, "
                f"{printable(sides[1].path)} of shape {[b.shape[1:] for b in second]}"
            )
        sums = sums or [Sums() for _ in first]
        own = np.asarray(labels).reshape(-1) if labels is not None and len(first) == 1 else None
        for found, a, b in zip(sums, first, second, strict=True):
            found.add(a, b, own)
    return [found.fields() for found in sums]


def _latencies(paths: list[str], values: Any) -> dict[str, dict[str, float]]:
    """Path of each .tflite file -> its figures; none without repeats."""
    files = [path for path in paths if path.endswith(TFLITE)]
    if not files or not values.repeats:
        return {}
    rows = latency(list(dict.fromkeys(files)), values.threads, values.repeats).rows
    return {row.path: {"median_ms": row.median_ms, "p10_ms": row.p10_ms, "p90_ms": row.p90_ms} for row in rows}


def _text(fields: dict[str, Any]) -> str:
    files, outputs = fields["files"], fields["outputs"]
    accuracies = outputs[0]["accuracy"] if len(outputs) == 1 and outputs[0]["accuracy"] else (None, None)
    rows = [
        (printable(file["path"]), file["size_bytes"], file.get("median_ms"), accuracy)
        for file, accuracy in zip(files, accuracies, strict=True)
    ]
    lines = [table(("file", "bytes", "median ms", "accuracy"), rows)]
    for place, found in enumerate(outputs):
        agreed = "no classes" if found["top1_agreement"] is None else f"top-1 agreement {found['top1_agreement']:.4f}"
        lines.append(
            f"output {place}: {agreed}, {found['snr_db']:.1f} dB of the second to the first, largest difference "
            f"{found['largest_difference']:.4g}, {found['samples']:,} samples"
        )
    return "\n".join(lines)
