"""Curves over the epochs of a training: stages marked, raw values behind smoothed ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lowbit.figures.canvas import CODE, QUIET, RANGE, figure

#: What the schedules log: the value of a stage, and the share of codes that an epoch changed.
STAGES = {"ratio": "SQ ratio of quantized filters", "portion": "INQ portion of frozen weights"}
FLIPS = "flip_rate"
WINDOW = 5  # epochs that a smoothed value is the mean of
FAINT = f"faint: every epoch; bold: mean of {WINDOW} epochs around; dotted: a stage begins"


def smoothed(values: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """The mean of the `window` values around each, of fewer at both ends."""
    array, half = np.asarray(values, np.float64), window // 2
    return np.array([array[max(0, at - half) : at + half + 1].mean() for at in range(len(array))])


def stage_starts(values: Sequence[float]) -> list[int]:
    """Epochs, counted from 1, in which another value begins; the first one is no beginning."""
    return [epoch + 1 for epoch in range(1, len(values)) if values[epoch] != values[epoch - 1]]


def draw_history(logs: Mapping[str, Sequence[float]]) -> Any:
    """Two panels over the epochs: metrics above, below the stages of SQ or INQ and the share of codes that flipped.

    logs: of `fit`, with "ratio" or "portion" in it, as `RatioSchedule` and `PartitionSchedule` log them.
    Raises ValueError without either.
    """
    staged = next((name for name in STAGES if name in logs), None)
    if staged is None:
        raise ValueError(
            f"The history has no {' or '.join(map(repr, STAGES))}, only {sorted(logs)}. Give fit the callbacks of the recipe: "
            "recipe.callbacks(epochs=...)."
        )
    whole = figure(8.5, 5.5)
    above, below = whole.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for name in _metrics(logs):
        curve(above, logs[name], name)
    above.set(ylabel="accuracy" if "accuracy" in " ".join(_metrics(logs)) else "loss")
    above.set_title(FAINT, fontsize="medium")
    above.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    epochs = range(1, len(logs[staged]) + 1)
    below.step(epochs, logs[staged], where="mid", color=RANGE)
    below.set(xlabel="epoch", ylim=(0, 1.05))
    below.set_ylabel(staged, color=RANGE)
    below.set_title(STAGES[staged], fontsize="medium")
    if FLIPS in logs:
        flips = below.twinx()
        flips.plot(epochs, 100 * np.asarray(logs[FLIPS]), ".-", color=CODE)
        flips.set_ylim(bottom=0)
        flips.set_ylabel("codes flipped, %", color=CODE)
    mark_stages((above, below), stage_starts(logs[staged]))
    return whole


def curve(panel: Any, values: Sequence[float], label: str, **style: Any) -> None:
    """Raw values, faint, and smoothed over them."""
    epochs = range(1, len(values) + 1)
    (line,) = panel.plot(epochs, smoothed(values), linewidth=2, label=label, **style)
    panel.plot(epochs, values, ".-", color=line.get_color(), alpha=0.3, linewidth=0.8)


def mark_stages(panels: Sequence[Any], starts: Sequence[int]) -> None:
    """A dotted line before each epoch that begins a stage."""
    for panel in panels:
        for epoch in starts:
            panel.axvline(epoch - 0.5, color=QUIET, linestyle=":", linewidth=1)


def _metrics(logs: Mapping[str, Sequence[float]]) -> list[str]:
    """The accuracies if there are any, else the losses."""
    named = [name for name in logs if "accuracy" in name]
    return named or [name for name in logs if name.endswith("loss")]
