"""`Report`: what the page says, as objects and as plain values."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from keras_lowbit.convert.post_training.range_use import ActivationRanges
from keras_lowbit.convert.reports.conversion import ConversionReport
from keras_lowbit.convert.reports.weight_errors import WeightErrors
from keras_lowbit.convert.reports.weight_histograms import WeightHistograms
from keras_lowbit.deploy.export import ExportReport
from keras_lowbit.deploy.summary import Summary
from keras_lowbit.deploy.verification.outputs import OutputParity
from keras_lowbit.deploy.verification.parity import Parity
from keras_lowbit.files import FilePath, atomic_write, check_writable, name_of
from keras_lowbit.report.layer_rows import layer_rows
from keras_lowbit.report.model_explorer import overlay
from keras_lowbit.report.page import html
from keras_lowbit.sensitivity import Sensitivity
from keras_lowbit.tables import plain

FORMAT, FORMAT_VERSION = "keras_lowbit.report", 1
ENDING = ".html"


@dataclasses.dataclass(frozen=True)
class Report:
    """A quantized model on one page, from `keras_lowbit.report`; the numbers are those of the objects it is made of.

    before: the reference, without a file; None where none was given.   after: the quantized model.
    outputs: end to end on `samples` of the data, against the reference and labels where these were given.
    parity, conversion, export: None where there was no file, or none was given.
    versions: of the libraries and the machine.   command: that made the model; may be empty.   created: when, in UTC.
    ranges, errors, histograms: of the quantized model, from `activation_ranges`, `weight_errors`, `weight_histograms`.
    labels_note: why labels that came with the data were not compared; empty otherwise.   sensitivity: from `sensitivity`, or
    None.

    >>> report = klb.report(quantized, reference=model, data=images)
    >>> sorted(report.contents())[:3]
    ['command', 'created', 'format']
    """

    after: Summary
    ranges: ActivationRanges
    errors: WeightErrors
    histograms: WeightHistograms
    versions: Mapping[str, Any]
    created: str
    command: str = ""
    before: Summary | None = None
    outputs: tuple[OutputParity, ...] = ()
    samples: int = 0
    labels_note: str = ""
    parity: Parity | None = None
    conversion: ConversionReport | None = None
    export: ExportReport | None = None
    sensitivity: Sensitivity | None = None

    def contents(self) -> dict[str, Any]:
        """What the page shows, as `report/schema.json` describes it; what is worst comes first. Infinities are words."""
        fields = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.after.model,
            "recipe": None if self.conversion is None else self.conversion.recipe,
            "created": self.created,
            "command": self.command,
            "versions": dict(self.versions),
            "size": self._size(),
            "macs": self._macs(),
            "outputs": [dataclasses.asdict(output) for output in self.outputs],
            "samples": self.samples,
            "labels_note": self.labels_note,
            "parity": self._parity(),
            "in_float": [{"path": x.path, "reason": x.reason} for x in self.export.float_fallbacks]
            if self.export
            else [],
            "layers": list(layer_rows(self.conversion, self.after)),
            "sensitivity": self._sensitivity(),
            "ranges": self._ranges(),
            "weights": self._weights(),
        }
        return plain(fields)

    def to_json(self) -> str:
        """`contents` as JSON."""
        return json.dumps(self.contents(), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """The page. ImportError, with the remedy, without Jinja2."""
        return html(self.contents())

    def save(self, path: FilePath) -> None:
        """Write the page, and beside it the same as JSON: `report.html` and `report.json`.

        Raises ValueError for a path that does not end in .html, OSError where it cannot be written, ImportError without Jinja2.
        """
        page, beside = paths(path)
        content = self.to_html().encode()
        check_writable(beside)
        atomic_write(page, content)
        atomic_write(beside, self.to_json().encode())

    def model_explorer(self, path: FilePath, value: str = "snr_db") -> None:
        """Write figures of `verify` as JSON that Google's Model Explorer shows on the nodes of the .tflite file.

        Open the file there, then "View on node", "Add per-node data". Keys are the names of output tensors.
        value: "snr_db" of each stored tensor to Keras, "max_steps" (largest difference) or "exact" (share of equal elements).
        Raises ValueError without a parity (give `report` the file), and for another value.
        The format is `GraphNodeData` of https://github.com/google-ai-edge/model-explorer, node_data_builder.py.
        """
        if self.parity is None:
            raise ValueError(
                "model_explorer shows figures of `verify`, and this report has none. Give the file: "
                'keras_lowbit.report(model, data=images, file="model.tflite").'
            )
        atomic_write(path, json.dumps(overlay(self.parity, value), indent=1, allow_nan=False).encode())

    def _size(self) -> dict[str, Any]:
        floats = 4 * (self.after if self.before is None else self.before).parameters
        size = self.after.file_bytes if self.parity is None else self.parity.size_bytes
        return {
            "float32_bytes": floats,
            "file_bytes": size,
            "exported_bytes": self.after.file_bytes,
            "times_smaller": None if not size else floats / size,
            "is_file": self.parity is not None,
            "is_estimate": self.parity is None and self.after.is_estimate,
            "no_file_because": "" if size is not None else self.after.no_file_because,
        }

    def _macs(self) -> dict[str, Any]:
        before = None if self.before is None else self.before.macs
        return {
            "before": before,
            "after": self.after.macs,
            "multiplications_removed": self.after.multiplications_removed,
        }

    def _parity(self) -> dict[str, Any] | None:
        if self.parity is None:
            return None
        found = json.loads(self.parity.to_json())
        found["layers"] = [
            dataclasses.asdict(row) for row in sorted(self.parity.layers, key=lambda row: (row.snr_db, -row.max_steps))
        ]
        return {name: part for name, part in found.items() if name not in ("outputs", "labels_note", "samples")}

    def _sensitivity(self) -> list[dict[str, Any]]:
        """The most sensitive first; empty where none was given."""
        rows = [] if self.sensitivity is None else self.sensitivity.worst_first()
        return [
            {
                **{name: getattr(row, name) for name in ("path", "part", "bits")},
                **{f"only_{name}": getattr(row.only, name) for name in ("snr_db", "agreement")},
                **{f"without_{name}": getattr(row.without, name) for name in ("snr_db", "agreement")},
            }
            for row in rows
        ]

    def _ranges(self) -> list[dict[str, Any]]:
        rows = sorted(self.ranges.ranges, key=lambda row: -(row.clipped or 0.0))
        return [dataclasses.asdict(row) for row in rows]

    def _weights(self) -> list[dict[str, Any]]:
        rows = sorted(self.errors.layers, key=lambda row: -row.relative)
        return [
            {
                **dataclasses.asdict(self.histograms[row.path]),
                "relative_error": row.relative,
                "snr_db": -10 * math.log10(row.relative) if row.relative else math.inf,
            }
            for row in rows
        ]


def paths(path: FilePath) -> tuple[str, str]:
    """Where page and JSON go. ValueError unless the path ends in .html."""
    name = name_of(path)
    if not name.lower().endswith(ENDING):
        raise ValueError(f"A report is a page and a JSON beside it, got path {name!r}. Give one that ends in {ENDING}.")
    return name, name[: -len(ENDING)] + ".json"
