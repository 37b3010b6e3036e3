"""keras-lowbit export: writes a quantized model as a .tflite file whose codes are the model's own.

    keras-lowbit export q.keras --output q.tflite --io float32 --labels labels.txt

The model is one that `klb.quantize_model` made and `calibrate` or training gave ranges; `keras-lowbit convert` starts from a
float model.
"""

import dataclasses
from typing import Any

from absl import flags

from keras_lowbit.cli.models import read_model
from keras_lowbit.cli.options import (
    check_output,
    define_file,
    define_json,
    define_output,
    file_arguments,
    show,
    working,
)
from keras_lowbit.deploy.export import ExportReport, export_litert

FLAGS = flags.FlagValues()
define_json(FLAGS)
define_output(FLAGS, "the .tflite file to write")
define_file(FLAGS)
ARGUMENTS = ("MODEL",)


def run(values: Any, model: str) -> int:
    """Writes the file and prints what is in it."""
    check_output(values.output, values.force)
    arguments = file_arguments(values)
    with working(values):
        report = export_litert(read_model(model), values.output, **arguments)
    show(values, report, fields(report))
    return 0


def fields(report: ExportReport) -> dict[str, Any]:
    """A report of an export, its rows with names."""
    names = ("layer", "operator", "weights", "kernel_bytes", "why")
    rows = [dict(zip(names, row, strict=True)) for row in report.rows]
    return {**dataclasses.asdict(report), "rows": rows}
