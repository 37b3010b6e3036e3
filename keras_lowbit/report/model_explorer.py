"""Figures of `verify` as the "custom node data" of Google's Model Explorer."""

import math
from typing import Any

from keras_lowbit.arguments import nearest_first
from keras_lowbit.deploy.verification.parity import Parity
from keras_lowbit.figures.canvas import BAD, FAIR, GOOD, POOR
from keras_lowbit.figures.parity import LEVELS

_NO_END = 1e9
#: Value -> (largest value of a colour, the colour), as Model Explorer takes them; the last has no end.
_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "snr_db": tuple((min(largest, _NO_END), colour) for largest, colour in LEVELS),
    "max_steps": ((0, GOOD), (1, FAIR), (_NO_END, BAD)),
    "exact": ((0.5, BAD), (0.9, POOR), (0.99, FAIR), (1.0, GOOD)),
}
_NAMES = {
    "snr_db": "signal-to-noise ratio to Keras, dB",
    "max_steps": "largest difference to Keras, steps",
    "exact": "share of elements equal to Keras",
}


def overlay(parity: Parity, value: str) -> dict[str, Any]:
    """Node data of one graph: output tensor -> value, with thresholds for the colours. ValueError for another value."""
    if value not in _SCALES:
        raise ValueError(
            f"model_explorer has no value {value!r}. The most alike first: {nearest_first(value, _SCALES)}."
        )
    return {
        "name": _NAMES[value],
        "results": {layer.name: _result(getattr(layer, value)) for layer in parity.layers},
        "thresholds": [{"value": largest, "bgColor": colour} for largest, colour in _SCALES[value]],
    }


def _result(value: float) -> dict[str, Any]:
    """JSON has no infinity: words, which Model Explorer shows, with their colour."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"value": "equal" if value > 0 else "noise alone", "bgColor": GOOD if value > 0 else BAD}
    return {"value": value}
