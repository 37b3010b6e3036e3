"""Distributions of weights on the grids that they go to."""

import math
from collections.abc import Sequence
from typing import Any

from keras_lowbit.figures.canvas import CODE, FLOAT, figure

_FEW = 40  # codes that are drawn one by one
_COLUMNS = 3


def draw_weights(histograms: Sequence[Any]) -> Any:
    """A panel for each `WeightHistogram`: bars for the float weights, stems for the codes that they became."""
    columns = min(_COLUMNS, len(histograms))
    rows = math.ceil(len(histograms) / columns)
    whole = figure(1.2 + 3.6 * columns, 0.6 + 2.4 * rows)
    panels = list(whole.subplots(rows, columns, squeeze=False).flat)
    for panel, histogram in zip(panels, histograms, strict=False):
        _panel(panel, histogram)
    for panel in panels[len(histograms) :]:
        panel.set_axis_off()
    return whole


def _panel(panel: Any, histogram: Any) -> None:
    panel.stairs(histogram.counts, histogram.edges, fill=True, color=FLOAT)
    panel.set_title(f"{histogram.path}, {histogram.bits:g} bits", fontsize="medium")
    panel.set(xlabel="weight in steps of its scale", ylabel="float weights", xlim=_limits(histogram))
    if len(histogram.codes) <= _FEW:
        stems = panel.twinx()
        stems.vlines(histogram.codes, 0, histogram.code_counts, color=CODE, linewidth=2)
        stems.set_ylim(bottom=0)
        stems.set_ylabel("weights of a code", color=CODE)
        stems.tick_params(axis="y", colors=CODE)
    else:
        for code in (histogram.codes[0], histogram.codes[-1]):
            panel.axvline(code, color=CODE, linewidth=1, linestyle="--")


def _limits(histogram: Any) -> tuple[float, float]:
    """All bars and all codes."""
    low, high = min(histogram.edges[0], histogram.codes[0]), max(histogram.edges[-1], histogram.codes[-1])
    margin = 0.03 * (high - low)
    return low - margin, high + margin
