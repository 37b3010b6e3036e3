"""What each quantizer of a model does to its logits: a table, JSON and a picture."""

import dataclasses
import json
from typing import Any

from keras_lowbit.figures.canvas import save
from keras_lowbit.figures.sensitivity import draw_effects
from keras_lowbit.sensitivity.logits import Score
from keras_lowbit.tables import plain, table

WEIGHTS, ACTIVATIONS = "weights", "activations"


@dataclasses.dataclass(frozen=True)
class Effect:
    """One quantizer or one layer's weights. part: "weights" (kernel and bias) or "activations".

    only: the model with nothing else quantized.   without: with all but it quantized.
    """

    path: str
    part: str
    bits: float
    only: Score
    without: Score


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Every layer's weights and every activation range, in running order; prints as a table, what hurts most on top.

    everything: the model as it is quantized.   float_accuracy: of the reference; None without labels.   samples: how many.
    """

    model: str
    rows: tuple[Effect, ...]
    everything: Score
    float_accuracy: float | None
    samples: int

    def worst_first(self) -> list[Effect]:
        """The rows by `only.snr_db`, the lowest first."""
        return sorted(self.rows, key=lambda row: row.only.snr_db)

    def __getitem__(self, path: str) -> tuple[Effect, ...]:
        """The rows of one path: its weights, its activations or both. KeyError where there is none."""
        found = tuple(row for row in self.rows if row.path == path)
        if not found:
            raise KeyError(f"No quantizer at {path!r}. There are {[row.path for row in self.rows][:5]}, ...")
        return found

    def __str__(self) -> str:
        labelled = self.float_accuracy is not None
        heads = ["layer", "part", "bits", "only it: dB", "same top-1 %", "all but it: dB", "same top-1 %"]
        heads += ["only it: accuracy %", "all but it: accuracy %"] * labelled
        body = [_cells(row, labelled) for row in self.worst_first()]
        end = f"all quantized: {self.everything.snr_db:.1f} dB, {self.everything.agreement:.1%} with the float model's top-1"
        if labelled:
            end += f", accuracy {self.everything.accuracy:.1%} (float {self.float_accuracy:.1%})"
        return f"{self.model} on {self.samples} samples\n{table(tuple(heads), body)}\n{end}"

    def contents(self) -> dict[str, Any]:
        """All of it as plain values; infinities are words."""
        return {"format": "keras_lowbit.sensitivity", "format_version": 1, **plain(dataclasses.asdict(self))}

    def to_json(self) -> str:
        """`contents` as JSON."""
        return json.dumps(self.contents(), indent=2, allow_nan=False)

    def plot(self, path: Any = None, most: int = 40) -> Any:
        """Bars of `only.snr_db`, the worst on top, weights and activations apart; a matplotlib figure.

        path: also written there, whole or not at all; a ValueError for an ending that matplotlib does not draw.
        most: bars to draw.
        """
        rows = [(row.path, row.part, row.only.snr_db) for row in self.worst_first()[:most]]
        found = draw_effects(rows, self.everything.snr_db)
        if path is not None:
            save(found, path)
        return found


def _cells(row: Effect, labelled: bool) -> tuple[Any, ...]:
    scores = [value for score in (row.only, row.without) for value in (score.snr_db, 100 * score.agreement)]
    accuracies = [100 * (score.accuracy or 0) for score in (row.only, row.without)] if labelled else []
    return row.path, row.part, row.bits, *scores, *accuracies
