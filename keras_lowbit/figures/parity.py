"""How far each stored tensor of a file is from Keras."""

import math
from collections.abc import Sequence
from typing import Any

from keras_lowbit.figures.canvas import BAD, FAIR, GOOD, POOR, figure, rows_height, shortened

#: Up to so many dB -> colour.
LEVELS = ((10.0, BAD), (20.0, POOR), (30.0, FAIR), (math.inf, GOOD))
_LONGEST = 80.0  # dB that a bar shows; what is above differs by float32's own rounding


def draw_parity(layers: Sequence[Any], most: int = 40) -> Any:
    """A bar for each `LayerParity`: its signal-to-noise ratio, the noisiest on top, with its largest difference in steps.

    most: bars; the others, which are better, are counted in the title.
    """
    rows = sorted(layers, key=lambda row: (row.snr_db, -row.max_steps))[:most]
    finite = [row.snr_db for row in rows if math.isfinite(row.snr_db)]
    longest = min(max([*finite, 40.0]), _LONGEST)
    whole = figure(8.0, rows_height(max(len(rows), 1)))
    panel = whole.subplots()
    lengths = [min(max(row.snr_db, 0.0), longest) for row in rows]
    bars = panel.barh(range(len(rows)), lengths, color=[_colour(row.snr_db) for row in rows])
    panel.bar_label(bars, [_said(row) for row in rows], padding=3, fontsize="small")
    panel.set_yticks(range(len(rows)), [shortened(row.name) for row in rows])
    more = f"; {len(layers) - len(rows)} better ones left out" if len(layers) > len(rows) else ""
    panel.set(title=f"parity with Keras by layer{more}", xlabel="signal-to-noise ratio, dB", xlim=(0, 1.25 * longest))
    panel.set_ylim(len(rows) - 0.4, -0.6)
    return whole


def _colour(snr_db: float) -> str:
    return next(colour for largest, colour in LEVELS if snr_db <= largest)


def _said(row: Any) -> str:
    ratio = (
        "equal" if row.snr_db == math.inf else f"{row.snr_db:.1f} dB" if math.isfinite(row.snr_db) else "noise alone"
    )
    return ratio if not row.max_steps else f"{ratio}, {row.max_steps} step{'s' * (row.max_steps > 1)}"
