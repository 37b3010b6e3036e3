"""What calibration remembers of a tensor: extremes, or a histogram to cut tails off."""

from typing import Protocol

import numpy as np

_BINS = 4096  # of a histogram; even, so that doubling its span merges pairs


class Observer(Protocol):
    """Sees arrays, then names a range."""

    def see(self, values: np.ndarray) -> None:
        """Take in one batch of values."""

    def range(self) -> tuple[float, float]:
        """The range (minimum, maximum) to use."""


class Extremes:
    """The smallest and largest value seen."""

    def __init__(self) -> None:
        self.minimum, self.maximum = np.inf, -np.inf

    def see(self, values: np.ndarray) -> None:
        """Take in one batch of values."""
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))

    def range(self) -> tuple[float, float]:
        """The extremes."""
        return self.minimum, self.maximum


class Histogram:
    """Counts on [-span, span], a power of two that doubles when a value lies outside; bins of span / 2048."""

    def __init__(self, bits: int) -> None:
        self.levels = 2**bits - 1
        self.span = 0.0
        self.counts = np.zeros(_BINS, np.float64)
        self.extremes = Extremes()

    def see(self, values: np.ndarray) -> None:
        """Take in one batch of values."""
        self.extremes.see(values)
        largest = float(np.abs(values).max())
        if self.span == 0.0:
            self.span = 2.0 ** np.ceil(np.log2(max(largest, 2.0**-100)))
        while largest > self.span:
            outer = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(_BINS // 4), outer, np.zeros(_BINS // 4)])
            self.span *= 2
        self.counts += np.histogram(values, bins=_BINS, range=(-self.span, self.span))[0]

    @property
    def centers(self) -> np.ndarray:
        """The middle of every bin, in the units of the tensor."""
        return (np.arange(_BINS) + 0.5) * (2 * self.span / _BINS) - self.span

    def clip(self, low: float, high: float) -> tuple[float, float]:
        """A range no wider than the extremes."""
        return max(low, self.extremes.minimum), min(high, self.extremes.maximum)

    def range(self) -> tuple[float, float]:
        """The extremes; subclasses cut tails off."""
        return self.extremes.range()


class Percentile(Histogram):
    """Cuts ``100 - percentile`` percent off each end."""

    def __init__(self, bits: int, percentile: float) -> None:
        super().__init__(bits)
        self.percentile = percentile

    def range(self) -> tuple[float, float]:
        """The range that leaves that share of the values outside on either side, to the width of a bin."""
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = 1.0 - self.percentile / 100.0
        half_bin = self.span / _BINS
        low = self.centers[int(np.searchsorted(share, tail))] - half_bin
        high = self.centers[min(int(np.searchsorted(share, 1.0 - tail)), _BINS - 1)] + half_bin
        return self.clip(float(low), float(high))


class LeastSquares(Histogram):
    """The range of least squared error among the extremes shrunk by 1.00, 0.99, ..., 0.30."""

    def range(self) -> tuple[float, float]:
        """The shrunken range whose rounding and clipping errors, summed over the histogram, are least."""
        low, high = min(self.extremes.minimum, 0.0), max(self.extremes.maximum, 0.0)
        ratios = np.linspace(1.0, 0.3, 71)
        best = min(ratios, key=lambda ratio: self._error(low * ratio, high * ratio))
        return self.clip(low * best, high * best)

    def _error(self, low: float, high: float) -> float:
        step = max(high - low, 1e-30) / self.levels
        on_grid = np.clip(np.round(self.centers / step), np.round(low / step), np.round(high / step)) * step
        return float(np.sum(self.counts * np.square(self.centers - on_grid)))


def make_observer(calibration: str, bits: int, percentile: float) -> Observer:
    """The observer of a calibration: "max", "percentile" or "mse"."""
    if calibration == "max":
        return Extremes()
    return Percentile(bits, percentile) if calibration == "percentile" else LeastSquares(bits)
