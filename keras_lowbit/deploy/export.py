"""export_litert: a quantized Keras model becomes a .tflite file, through the integer graph."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import keras

from keras_lowbit.convert.report import table
from keras_lowbit.deploy import litert
from keras_lowbit.deploy.lower import Island, lower_model


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, layer by layer; prints as a table.

    rows: name, LiteRT op, weight type, weight bytes, why.   islands: operations that run in float, with reasons.
    flushed: layer -> channels whose negligible weights became zero codes (their bias would not have fitted int32).
    """

    path: str
    size_bytes: int
    rows: tuple[Any, ...]
    islands: tuple[Island, ...]
    flushed: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        rows = [tuple(row) for row in self.rows]
        lines = [f"{self.path}: {self.size_bytes:,} bytes, {len(rows)} layers with weights"]
        lines.append(table(("layer", "op", "weights", "bytes", "why"), rows))
        lines += [f"float island {island.path}: {island.reason}" for island in self.islands]
        lines += [f"{path}: channels {list(channels)} flushed to zero" for path, channels in self.flushed.items()]
        return "\n".join(lines)


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    weights: str = "int8",
    io: str = "int8",
    batch_size: int = 1,
    input_shapes: Any = None,
) -> ExportReport:
    """Write a quantized model as a .tflite file whose codes and scales are the model's own, to the bit.

    Batch norms fold into scales and biases, so ternary and binary codes stay on their grid; a negative gamma flips
    codes; a filter of zeros becomes zero codes with a positive scale. The file is written under a temporary name and
    renamed, so that an error leaves an older file whole.

    weights: "int8"; "int4" or "int2" pack the dense layers and 1x1 convolutions whose codes fit.
    io: "int8" takes and gives codes, "float32" takes and gives reals.   batch_size: of every shape in the file.
    input_shapes: shapes without batch for inputs of variable size, a tuple or {input name: tuple}.
    Raises ValueError before calibration or for a value without a range; OSError for a path that cannot be written.
    """
    lowered = lower_model(model, input_shapes, batch_size)
    rows = litert.write(lowered.graph, path, weights=weights, io=io, batch_size=batch_size)
    flushed = {layer.node: layer.flushed for layer in lowered.layers.values() if layer.flushed}
    return ExportReport(os.fspath(path), Path(path).stat().st_size, tuple(rows), tuple(lowered.islands), flushed)
