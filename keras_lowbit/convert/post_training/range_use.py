"""activation_ranges: where the ranges of a quantized model lie, and how much of the data they cut off."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.post_training.calibrate import watch_batches
from keras_lowbit.data import Batches
from keras_lowbit.figures.ranges import draw_ranges
from keras_lowbit.keras_graph.calls import layers_of
from keras_lowbit.layers.activation_grid import ActivationGrid, activation_grid
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.tables import table


@dataclasses.dataclass(frozen=True)
class RangeUse:
    """One activation range, in the units of the tensor.

    minimum, maximum: the reals of its lowest and highest code; None before calibration.
    seen_minimum, seen_maximum: extremes of the data there.   clipped: share (0 to 1) of the values that lie outside of the
    range by more than half a step, the rest is rounding; None without data, or before calibration.
    """

    path: str
    bits: float
    minimum: float | None
    maximum: float | None
    seen_minimum: float | None = None
    seen_maximum: float | None = None
    clipped: float | None = None


@dataclasses.dataclass(frozen=True)
class ActivationRanges:
    """One `RangeUse` for each range, in running order; prints as a table."""

    model: str
    ranges: tuple[RangeUse, ...]

    def plot(self) -> Any:
        """The ranges beside what the data reach, and what is clipped: see `keras_lowbit.plot.ranges`."""
        return draw_ranges(self.ranges)

    def __str__(self) -> str:
        heads = ("range", "bits", "minimum", "maximum", "seen minimum", "seen maximum", "% clipped")
        rows = [
            (*dataclasses.astuple(row)[:-1], None if row.clipped is None else 100 * row.clipped) for row in self.ranges
        ]
        return f"{self.model}: activation ranges\n{table(heads, rows)}"


def activation_ranges(
    model: keras.Model, data: Any = None, *, batch_size: int = 32, steps: int | None = None
) -> ActivationRanges:
    """The activation ranges of a model and, with data, what they see of them and how much they clip.

    Nothing changes in the model. Values are looked at as `calibrate` does: weights quantized, activations float.
    model: quantized, its ranges calibrated or not; it is not changed.
    data, batch_size, steps: as for `calibrate`.   Raises ValueError for NaN activations and for empty data.
    Returns an `ActivationRanges`: a row for each range; `print` it, or `plot()`.

    >>> found = klb.activation_ranges(quantized, images)
    """
    hosts = {path: host for path, host in layers_of(model) if isinstance(host, QuantizerHost) and host.activation_range}
    seen = {path: _Seen(activation_grid(host)) for path, host in hosts.items()}
    if data is not None and hosts:
        watch_batches(model, Batches(data, batch_size, steps), hosts, seen, {})
    return ActivationRanges(model.name, tuple(seen[path].row(path, host) for path, host in hosts.items()))


class _Seen:
    """Extremes of the values at a range, and how many lie outside of it."""

    def __init__(self, grid: ActivationGrid | None) -> None:
        self.grid = grid
        self.low, self.high = np.inf, -np.inf
        self.count, self.outside = 0, 0

    def see(self, values: np.ndarray) -> None:
        """Take in one batch of values."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.count += values.size
        if self.grid is not None:
            low, high = self.grid.minimum - self.grid.step / 2, self.grid.maximum + self.grid.step / 2
            self.outside += int(np.count_nonzero((values < low) | (values > high)))

    def row(self, path: str, host: QuantizerHost) -> RangeUse:
        """What was found."""
        low, high = (None, None) if self.grid is None else (self.grid.minimum, self.grid.maximum)
        if not self.count:
            return RangeUse(path, float(host.quantizer.bits), low, high)
        clipped = None if self.grid is None else self.outside / self.count
        return RangeUse(path, float(host.quantizer.bits), low, high, self.low, self.high, clipped)
