"""report: gathers what is known of a quantized model."""

import datetime
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import keras

from keras_lowbit.bench.machine import machine
from keras_lowbit.convert.post_training.range_use import activation_ranges
from keras_lowbit.convert.reports.conversion import ConversionReport
from keras_lowbit.convert.reports.weight_errors import weight_errors
from keras_lowbit.convert.reports.weight_histograms import weight_histograms
from keras_lowbit.deploy.export import ExportReport
from keras_lowbit.deploy.lowering.arguments import check_model
from keras_lowbit.deploy.summary import costs, summary
from keras_lowbit.deploy.verification.outputs import EndToEnd, compare_keras
from keras_lowbit.deploy.verification.verify import Parity, verify
from keras_lowbit.files import FilePath, check_writable
from keras_lowbit.report.content import Report, paths
from keras_lowbit.report.page import check_jinja
from keras_lowbit.sensitivity import Sensitivity

_VERSIONS = ("keras", "tensorflow", "numpy")


def report(
    model: keras.Model,
    *,
    reference: keras.Model | None = None,
    data: Any = None,
    labels: Any = None,
    file: FilePath | None = None,
    path: FilePath | None = None,
    conversion: ConversionReport | None = None,
    export: ExportReport | None = None,
    parity: Parity | None = None,
    sensitivity: Sensitivity | None = None,
    batch_size: int = 32,
    steps: int | None = None,
    command: str = "",
    **arguments: Any,
) -> Report:
    """One page about a quantized model: what was quantized, sizes, accuracy, parity, ranges and weights, the worst first.

    The page opens from a disk, without a network. Beside `report.html` the same stands in `report.json`, as
    `keras_lowbit/report/schema.json` describes it.
    model: quantized; it is not changed.   reference: the float model it was made from: sizes before, and agreement with it.
    data, labels, batch_size, steps: as for `verify`; data are read more than once, so no iterator that ends.
    file: the .tflite file, which is verified on the data.   path: of the page, ends in .html; None writes nothing.
    conversion, export, parity, sensitivity: what `quantize_model`, `export_litert`, `verify` and `sensitivity` returned;
    nothing is computed again, and what they say of layers left in float is shown.
    command: shown as it is.   arguments: those that `export_litert` had, for the bytes by layer.
    Returns a `Report`: `contents()`, `to_json()`, `to_html()`, `save(path)`.
    Raises ValueError for a file without data, an iterator, and where `verify` or `activation_ranges` would; OSError for a path
    that cannot be written and ImportError without Jinja2 (`pip install 'keras_lowbit[report]'`), both before anything else.

    >>> report = klb.report(quantized, reference=model, data=images, labels=labels, file="m.tflite", path="report.html")
    """
    check_model(model, "report")
    if path is not None:
        check_jinja()
        for name in paths(path):
            check_writable(name)
    if file is not None and data is None and parity is None:
        raise ValueError("report(file=) verifies the file on data. Give data= too.")
    if isinstance(data, Iterator):
        raise ValueError(
            f"report reads data more than once, got an iterator ({type(data).__name__}). Give arrays, a data set, or a "
            "function that returns an iterator."
        )
    reading: dict[str, Any] = {"batch_size": batch_size, "steps": steps}
    if file is not None and parity is None:
        parity = verify(model, file, data, reference=reference, labels=labels, **reading)
    ends: Parity | EndToEnd | None = parity
    if ends is None and data is not None:
        ends = compare_keras(model, data, reference=reference, labels=labels, **reading)
    found = Report(
        after=summary(model, **arguments),
        ranges=activation_ranges(model, data, **reading),
        errors=weight_errors(model),
        histograms=weight_histograms(model),
        versions={**{name: version(name) for name in _VERSIONS}, **machine()},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        before=None if reference is None else costs(reference),
        outputs=() if ends is None else ends.outputs,
        samples=0 if ends is None else ends.samples,
        labels_note="" if ends is None else ends.labels_note,
        parity=parity,
        conversion=conversion,
        export=export,
        sensitivity=sensitivity,
    )
    if path is not None:
        found.save(path)
    return found
