"""Activation ranges beside what the data reach, and the share that is cut off."""

from collections.abc import Sequence
from typing import Any

from keras_lowbit.figures.canvas import CODE, QUIET, RANGE, figure, rows_height, shortened


def draw_ranges(ranges: Sequence[Any]) -> Any:
    """A row for each `RangeUse`: the range and the data, in units of the range's larger end; beside it the clipped share.

    Ranges that have seen no data are left out. Without data there is no second panel.
    """
    rows = [row for row in ranges if row.minimum is not None]
    with_data = any(row.clipped is not None for row in rows)
    whole = figure(9.0 if with_data else 6.5, rows_height(max(len(rows), 1)))
    panels = whole.subplots(1, 1 + with_data, squeeze=False, sharey=True, width_ratios=[3, 1][: 1 + with_data])[0]
    _intervals(panels[0], rows)
    if with_data:
        shares = [100 * (row.clipped or 0.0) for row in rows]
        panels[1].barh(range(len(rows)), shares, color=CODE)
        panels[1].set(title="clipped", xlabel="% of the values", xlim=(0, max(0.1, 1.1 * max(shares, default=0))))
    whole.legend(loc="outside lower center", ncols=2, frameon=False)
    return whole


def _intervals(panel: Any, rows: Sequence[Any]) -> None:
    for place, row in enumerate(rows):
        unit = max(abs(row.minimum), abs(row.maximum)) or 1.0
        low, high = row.minimum / unit, row.maximum / unit
        label = {"label": "range"} if place == 0 else {}
        panel.barh(place, high - low, left=low, height=0.5, color=RANGE, **label)
        if row.seen_minimum is not None:
            label = {"label": "seen in the data"} if place == 0 else {}
            panel.hlines(place + 0.36, row.seen_minimum / unit, row.seen_maximum / unit, color=CODE, **label)
    panel.axvline(0, color=QUIET, linewidth=0.8)
    panel.set_yticks(range(len(rows)), [shortened(row.path.removesuffix("/output_quantizer")) for row in rows])
    panel.set(title="activation ranges", xlabel="in units of each range's larger end", ylim=(len(rows) - 0.4, -0.6))
