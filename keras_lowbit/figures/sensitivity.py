"""Bars of what each quantizer costs, and the front of size and agreement."""

import math
from collections.abc import Sequence
from typing import Any

from keras_lowbit.figures.canvas import CODE, FLOAT, QUIET, RANGE, figure, rows_height, shortened


def draw_effects(rows: Sequence[tuple[str, str, float]], everything: float) -> Any:
    """Signal-to-noise ratios with one part quantized. rows: path, "weights" or "activations", dB; the first on top.

    everything: dB with all quantized, a dashed line.
    """
    found = figure(7.5, rows_height(len(rows)))
    axes = found.subplots()
    finite = [db for *_, db in rows if math.isfinite(db)]
    longest = max([*finite, everything if math.isfinite(everything) else 0.0, 1.0]) * 1.05
    for place, (_, part, db) in enumerate(rows):
        colour = RANGE if part == "weights" else CODE
        axes.barh(place, min(db, longest), color=colour)
    for part, colour in (("weights", RANGE), ("activations", CODE)):
        if any(row[1] == part for row in rows):
            axes.barh(math.nan, math.nan, color=colour, label=f"{part} alone quantized")
    if math.isfinite(everything):
        axes.axvline(everything, color=QUIET, linestyle="--", label="all quantized")
    axes.set_yticks(range(len(rows)), [shortened(path) for path, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(min([0.0, *finite]), longest)
    axes.set_xlabel("signal-to-noise ratio of the logits, dB (short bars hurt)")
    found.legend(loc="outside lower center", ncols=3, frameon=False)
    return found


def draw_front(
    front: Sequence[tuple[float, float]], chosen: tuple[float, float] | None, reference: tuple[float, float]
) -> Any:
    """Size in kB against a percentage, the float model at its true place. front: points in falling size."""
    found = figure(6.5, 4.0)
    axes = found.subplots()
    axes.plot(*zip(*front, strict=True), color=RANGE, marker="o", markersize=4, label="bits by layer")
    axes.plot(*reference, color=FLOAT, marker="s", linestyle="none", label="float32")
    if chosen is not None:
        axes.plot(*chosen, color=CODE, marker="D", linestyle="none", label="chosen")
    axes.set_xscale("log")
    axes.set_xlabel("kB in the file (kB: 1,000 bytes)")
    axes.set_ylabel("samples with the float model's top-1, %")
    axes.grid(color="#e5e7eb")
    found.legend(loc="outside lower center", ncols=3, frameon=False)
    return found
