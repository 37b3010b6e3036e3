"""What `quantize_model` and the post-training functions did with every layer of a model."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from keras_lowbit.guard import Verdict
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.tables import table

NO_FILE = "no file"  # the outcome of a layer that no file can hold: it stays as it is, in Keras alone


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one layer. outcome: "quantized", "kept", "rewritten", "skipped", or `NO_FILE`; detail: how, or why not."""

    path: str
    layer: str
    outcome: str
    detail: str

    @classmethod
    def of(cls, call: Call, outcome: str, detail: str) -> "LayerReport":
        """The row of a call."""
        return cls(call.path, call.kind, outcome, detail)


@dataclasses.dataclass(frozen=True)
class Refused:
    """Stands in place of a result that there is not. reason: why, in words for the report.

    Functions that only ask whether something fits return the reason itself, or None if it does.
    """

    reason: str


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """One `LayerReport` for every layer of the model, in running order; prints as a table.

    verdict: what the whole change did to the model on held-back data; None for what is not judged, such as a conversion.
    """

    model: str
    recipe: str
    layers: tuple[LayerReport, ...]
    verdict: Verdict | None = None

    def __str__(self) -> str:
        rows = [(row.path, row.layer, row.outcome, row.detail) for row in self.layers]
        counts = Counter(row.outcome for row in self.layers)
        total = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        refused = f"\nno file: {self.no_file_because}" if self.no_file_because else ""
        judged = "" if self.verdict is None else f"\nwhole model: {self.verdict}"
        body = table(("layer", "class", "outcome", "detail"), rows)
        return f"{self.model} with {self.recipe}: {total}\n{body}{refused}{judged}"

    def __getitem__(self, path: str) -> LayerReport:
        """The report of one layer by its path (``"backbone/conv1"``); a KeyError that lists close names."""
        import difflib

        by_path = {row.path: row for row in self.layers}
        if path not in by_path:
            close = difflib.get_close_matches(path, by_path, n=3)
            raise KeyError(f"No layer {path!r} in the report. Close: {close or list(by_path)[:3]}.")
        return by_path[path]

    @property
    def no_file_because(self) -> str:
        """Which layers no file can hold, and what to do instead; "" if there are none."""
        return "; ".join(f"{row.path!r} ({row.layer}): {row.detail}" for row in self.layers if row.outcome == NO_FILE)

    def outcomes(self, outcome: str) -> list[str]:
        """Paths of the layers with that outcome."""
        return [row.path for row in self.layers if row.outcome == outcome]


def left_if(worse: bool, rows: Iterable[LayerReport]) -> tuple[LayerReport, ...]:
    """The rows as they are, or all as "left" where the change as a whole was taken back."""
    if not worse:
        return tuple(rows)
    words = "on held-back data the model got worse"
    return tuple(
        row if row.outcome == "left" else dataclasses.replace(row, outcome="left", detail=words) for row in rows
    )


class ReportBuilder:
    """Collects the rows of a report. rows: one for each path."""

    def __init__(self) -> None:
        self._rows: dict[str, LayerReport] = {}

    @property
    def rows(self) -> tuple[LayerReport, ...]:
        """The rows in the order in which they were added."""
        return tuple(self._rows.values())

    def add(self, path: str, operation: Any, outcome: str, detail: str) -> None:
        """Add the row of a path, unless it has one."""
        self._rows.setdefault(path, LayerReport(path, type(operation).__name__, outcome, detail))

    def note(self, path: str, remark: str, outcome: str | None = None) -> None:
        """Add a remark to the row of a path, if there is one, and change its outcome if one is given."""
        if (row := self._rows.get(path)) is not None:
            self._rows[path] = LayerReport(path, row.layer, outcome or row.outcome, f"{row.detail}; {remark}")
