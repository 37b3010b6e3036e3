"""export_litert: a quantized Keras model becomes a .tflite file, through the integer graph."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_lowbit.arguments import check_flag, check_path
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.graph.tensors import CODES
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.ends import Io
from keras_lowbit.deploy.litert.format_choice import Weights
from keras_lowbit.deploy.litert.target import Target, target_of
from keras_lowbit.deploy.litert.target_check import InFloat, Misfit, misfits, refusal
from keras_lowbit.deploy.lowering import int8_overflow as overflow_
from keras_lowbit.deploy.lowering.arguments import check_model, check_not_packed
from keras_lowbit.deploy.lowering.lower import Lowered, lower_model, warn_of_unrounded
from keras_lowbit.deploy.lowering.ranges import range_of
from keras_lowbit.deploy.lowering.state import RangeOf
from keras_lowbit.deploy.lowering.values import FloatFallback
from keras_lowbit.files import FilePath, atomic_write, check_writable, name_of, printable
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.tables import table


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, layer by layer; prints as a table.

    path, size_bytes: of the file.
    rows: name, LiteRT op, weight type, weight bytes, why.   float_fallbacks: operations that run in float, with reasons.
    flushed: layer -> channels whose negligible weights became zero codes (their bias would not have fitted int32).
    overflows: layer -> what was altered so that its codes fit int8; empty where the file holds every weight as trained.
    target: what it was written for.   misfits: what that does not take, where `strict` is False (and it is not "litert").
    int8_size_bytes: of the file with int8 weights; None where all are int8.

    >>> written = klb.export_litert(quantized, "q.tflite")
    >>> written.size_bytes == os.path.getsize("q.tflite")
    True
    """

    path: str
    size_bytes: int
    rows: tuple[Any, ...]
    float_fallbacks: tuple[FloatFallback, ...]
    flushed: dict[str, tuple[int, ...]]
    overflows: dict[str, overflow_.Overflow] = dataclasses.field(default_factory=dict)
    target: str = "litert"
    misfits: tuple[Misfit, ...] = ()
    int8_size_bytes: int | None = None

    def __str__(self) -> str:
        rows = [tuple(row) for row in self.rows]
        other = f" ({self.int8_size_bytes:,} with int8 weights)" if self.int8_size_bytes is not None else ""
        size = f"{self.size_bytes:,} bytes{other}, {len(rows)} layers with weights"
        lines = [f"{printable(self.path)}: {size}, for {self.target}"]
        lines.append(table(("layer", "op", "weights", "kernel bytes", "why"), rows))
        lines += [f"runs in float: {found.path}: {found.reason}" for found in self.float_fallbacks]
        lines += [f"not for {self.target}: {misfit}" for misfit in self.misfits]
        lines += [f"{path}: channels {list(channels)} flushed to zero" for path, channels in self.flushed.items()]
        lines += [f"{path}: {found}" for path, found in self.overflows.items()]
        lines += [overflow_.sentence(self.overflows)] if self.overflows else []
        return "\n".join(lines)


def export_litert(
    model: keras.Model,
    path: FilePath,
    *,
    weights: Weights = "int8",
    io: Io = None,
    batch_size: int | None = 1,
    input_shapes: Any = None,
    labels: Sequence[str] | None = None,
    normalization: tuple[Any, Any] | None = None,
    overflow: str = overflow_.DEFAULT,
    target: str | FilePath | Target = "litert",
    strict: bool | None = None,
    verbose: int | bool = 1,
) -> ExportReport:
    """Write a quantized model as a .tflite file whose codes and scales are the model's own, to the bit.

    The one exception are filters whose codes do not fit int8, as 5-bit powers of two may have: see `overflow`. Batch
    norms fold into scales and biases, so ternary and binary codes stay on their grid; a negative gamma flips
    codes; a filter of zeros becomes zero codes with a positive scale. The file is written under a temporary name and
    renamed, so that an error leaves an older file whole.

    model: from `quantize_model` or of drop-in layers, calibrated.   path: of the file, usually "....tflite".
    weights: "int8"; "int4" or "int2" give every layer the smallest container that its codes fit and LiteRT runs (int2: dense
    layers and 1x1 convolutions; int4: other convolutions too, at three times the time or more: the report says how much);
    "auto" takes the smallest that is no slower than int8, by latencies that were measured on one x86-64 server;
    `deploy.LatencyTable.load(FILE)` of `keras-lowbit bench packed --output FILE` does so by those of another machine.
    io: "int8", "uint8" (the same steps, codes from 0 to 255: pixels as they are, of a model that prepares them itself) or
    "int16" take and give codes, "float32" takes and gives reals;
    a pair (inputs, outputs), or a dict {name: type}. None, and what a dict leaves out, is the type of the activations: "int8",
    or "int16" for those of 16 bits, which take "float32" beside it. What has no range at an end (token ids, a front in
    float, classes) is of its own type there.   batch_size: of every shape in the file; None leaves it open: the interpreter's
    `resize_tensor_input` sets it. A model with a part in float has a fixed one.
    input_shapes: shapes without batch for inputs of variable size, a tuple or {input name: tuple}.
    labels: one string for each entry of the first output's last axis.   normalization: (mean, std) of the first input,
    numbers or one for each channel, ``real = (pixel - mean) / std``. Both go into the file as TFLite metadata, beside
    the names of inputs and outputs, the quantizer of every layer, this library's version and LiteRT's. MediaPipe Tasks and
    TensorFlow Lite's task library open files with io="float32" and normalization=, (0, 1) where the model takes pixels as they
    are; they take no int8 inputs, and the task library (of 2023) no packed weights.
    overflow: for each filter whose codes reach from 1 to 128 after what they share is divided out: "saturate" (128 -> 127),
    "drop_lowest" (a step twice as coarse, 1 -> 2), "least_error" (whichever of the two alters fewer weights), "error". The
    report counts the altered weights, a UserWarning sums them up, the file notes the policy and `verify` repeats it.
    target: "litert", "microcontroller" (tflite-micro), "edgetpu", "npu-per-tensor", or the path of a JSON like those of
    `deploy/litert/targets`: which operators there are, how weights are stored, which types the ends may have. Weights take the
    forms that it has; a dense layer is a 1x1 CONV_2D for "microcontroller", whose FULLY_CONNECTED rounds otherwise, and for
    "edgetpu", whose has one scale for all weights. `deploy.arena_bytes` says how much memory tflite-micro needs for a file.
    strict: whether what the target does not take is a ValueError that names every layer, operation and remedy, before anything
    is written; else the report lists it. None for the target's own: True but for "litert", where it refuses what runs in float.
    verbose: 1 shows the operations that are done on a terminal, 0 nothing.
    Returns an `ExportReport`: bytes, and for each layer how it was written; `print` it.
    A UserWarning says where the normalization contradicts the range that the first input was calibrated to.
    Raises ValueError before calibration, for a value without a range, for a model from `pack`, and for labels or numbers
    that do not fit; TypeError for what is no Keras model; OSError for a path that cannot be written.

    >>> written = klb.export_litert(quantized, "q.tflite", labels=["dark", "light"])
    >>> written.float_fallbacks
    ()
    """
    check_model(model, "export_litert")
    check_path("export_litert", path)
    check_writable(path)
    file = file_content(
        model,
        weights=weights,
        io=io,
        batch_size=batch_size,
        input_shapes=input_shapes,
        labels=labels,
        normalization=normalization,
        overflow=overflow,
        target=target,
        strict=strict,
        verbose=verbose,
    )
    atomic_write(path, file.content)
    lowered = file.lowered
    flushed = {layer.node: layer.flushed for layer in lowered.layers.values() if layer.flushed}
    overflow_.warn(lowered.overflows)
    warn_of_unrounded(lowered)
    _warn_of_other_pixels(file.graph)
    in_float = tuple(lowered.float_fallbacks)
    packed = any(row.weight_type != "int8" for row in file.rows)
    about = (file.target.name, file.misfits, file.size_with("int8") if packed else None)
    return ExportReport(name_of(path), len(file.content), file.rows, in_float, flushed, lowered.overflows, *about)


class FileContent(NamedTuple):
    """The bytes of a file and the rows of its report, what the model was lowered to, and the graph that is in the file.

    graph: the lowered one with labels and normalization.   write: makes the file with other `weights`.
    target: what it was written for.   misfits: what that does not take.
    """

    content: bytes
    rows: tuple[Any, ...]
    lowered: Lowered
    graph: IntegerGraph
    write: Callable[..., tuple[bytes, Any]]
    target: Target
    misfits: tuple[Misfit, ...] = ()

    def size_with(self, weights: Weights) -> int:
        """Bytes of the file with weights in another format."""
        return len(self.write(weights=weights)[0])


def file_content(
    model: keras.Model,
    *,
    weights: Weights = "int8",
    io: Io = None,
    batch_size: int | None = 1,
    input_shapes: Any = None,
    labels: Sequence[str] | None = None,
    normalization: tuple[Any, Any] | None = None,
    overflow: str = overflow_.DEFAULT,
    target: str | FilePath | Target = "litert",
    strict: bool | None = None,
    range_of: RangeOf = range_of,
    verbose: int | bool = 0,
) -> FileContent:
    """What `export_litert` writes for the same arguments, in memory. model: checked.   range_of: as in `lower_model`."""
    check_not_packed(model, "export_litert")
    device = target_of(target)
    if strict is not None:
        check_flag("export_litert", "strict", strict)
    lowered = lower_model(model, input_shapes, 1 if batch_size is None else batch_size, range_of, overflow, verbose)
    graph = lowered.graph.with_metadata(**_about(labels, normalization))
    write = partial(litert.to_bytes, graph, io=io, batch_size=batch_size, target=device)
    content, rows = write(weights=weights)
    found = _held_against(device, strict, content, model, lowered)
    return FileContent(content, tuple(rows), lowered, graph, write, device, found)


def _held_against(
    target: Target, strict: bool | None, content: bytes, model: keras.Model, lowered: Lowered
) -> tuple[Misfit, ...]:
    """What the target does not take. ValueError with all of it, if that is strict."""
    if target.name == "litert" and not strict:
        return ()  # it runs everything
    kinds = {call.path: type(call.operation).__name__ for call in calls_of(model).calls}
    in_float = [InFloat(each.path, kinds.get(each.path, ""), each.reason) for each in lowered.float_fallbacks]
    found = misfits(content, lowered.graph, target, in_float)
    if found and (target.strict if strict is None else strict):
        raise ValueError(refusal(found, target))
    return found


def _about(labels: Sequence[str] | None, normalization: tuple[Any, Any] | None) -> dict[str, Any]:
    """The graph's metadata of these; `deploy.metadata` checks that they fit its ends."""
    found: dict[str, Any] = {}
    if labels is not None:
        if isinstance(labels, str):
            raise ValueError(f"labels={labels!r} is one string; give a list with one for each class.")
        found["labels"] = list(labels)
    if normalization is not None:
        try:
            mean, std = (np.atleast_1d(np.asarray(part, np.float64)).tolist() for part in normalization)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"normalization={normalization!r}; give (mean, std), numbers or one for each channel: (127.5, 127.5)."
            ) from error
        found["normalization"] = {"mean": mean, "std": std}
    return found


_CLIPPED, _UNUSED = 0.25, 0.6  # shares of the calibrated range


def _warn_of_other_pixels(graph: IntegerGraph) -> None:
    """A UserWarning if pixels prepared as the metadata say leave the range that the first input was calibrated to, or most
    of that range unused: the app would feed other numbers than the network has seen."""
    norm, tensor = graph.metadata.get("normalization"), graph.tensors[graph.inputs[0]]
    if norm is None or tensor.dtype not in CODES or len(tensor.shape) != 4 or min(norm["std"], default=0) <= 0:
        return
    mean, std = (np.asarray(norm[key], np.float64) for key in ("mean", "std"))
    given = float(((0.0 - mean) / std).min()), float(((255.0 - mean) / std).max())
    grid = tensor.range
    seen = [grid.scale * (code - grid.zero_point) for code in grid.limits]
    width = seen[1] - seen[0]
    clipped = max(given[1] - seen[1], seen[0] - given[0]) > _CLIPPED * width
    if clipped or given[1] - given[0] < _UNUSED * width:
        warnings.warn(
            f"normalization={norm['mean']}, {norm['std']} makes pixels of 0 to 255 numbers from {given[0]:.3g} to "
            f"{given[1]:.3g}, but input {tensor.name!r} was calibrated on numbers from {seen[0]:.3g} to {seen[1]:.3g}. An app "
            "that follows the metadata would feed other numbers than the network expects: give the (mean, std) of the "
            "training data, or calibrate on data prepared with these.",
            stacklevel=3,
        )
