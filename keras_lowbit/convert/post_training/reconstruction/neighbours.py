"""The two values of a layer's grid between which each weight lies."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.reports.conversion import Refused
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.numerics.grids import symmetric_limit
from keras_lowbit.numerics.soft_rounding import logits_of
from keras_lowbit.quantizers import (
    AdjustableThreshold,
    Clustered,
    LearnedPowerOfTwo,
    LearnedStep,
    PowerOfTwo,
    Ternary,
    Uniform,
)

#: Steps from a value of the grid at which a weight counts as that value: it has no second neighbour.
_ON_GRID = 1e-4


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Of every weight of a kernel: the grid's values below and above it, in its units, and which is nearest.

    low, high, weights: arrays of the kernel's shape, float32; equal where a weight lies on the grid or beyond its ends.
    levels: how many values the grid has.
    """

    low: np.ndarray
    high: np.ndarray
    weights: np.ndarray
    levels: int

    @property
    def free(self) -> np.ndarray:
        """Where there is something to choose."""
        return self.high > self.low

    @property
    def start(self) -> np.ndarray:
        """Logits at which the soft kernel is the weights as they are, float32; 0 where nothing is free."""
        width = np.where(self.free, self.high - self.low, 1.0)
        share = np.clip((self.weights - self.low) / width, 0.001, 0.999)
        return np.where(self.free, logits_of(share), 0.0).astype(np.float32)

    def chosen(self, up: np.ndarray) -> np.ndarray:
        """The kernel of a choice: the value above where `up`, else the one below."""
        return np.where(up, self.high, self.low)

    @property
    def nearest_is_high(self) -> np.ndarray:
        """Where the value above is the nearer one, or as near."""
        return self.free & (self.weights - self.low >= self.high - self.weights)


def neighbours_of(layer: Any) -> Neighbours | Refused:
    """The neighbours in a calibrated layer's grid, its scales as they are; why there are none otherwise."""
    levels = _levels(layer.kernel_quantizer)
    if levels is None:
        return Refused(f"{type(layer.kernel_quantizer).__name__} has no neighbours to choose from")
    weights, scale = to_numpy(layer.kernel), _scales(layer)
    codes = weights / np.where(scale > 0, scale, 1.0)
    above = np.clip(np.searchsorted(levels, codes), 1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    for end in (low, high):
        there = np.abs(codes - end) < _ON_GRID
        low, high = np.where(there, end, low), np.where(there, end, high)
    low, high = np.where(codes > levels[-1], levels[-1], low), np.where(codes < levels[0], levels[0], high)
    low, high = (np.where(scale > 0, end * scale, 0.0).astype(np.float32) for end in (low, high))
    return Neighbours(low, high, weights, len(levels))


def _scales(layer: Any) -> np.ndarray:
    """The size of one step of `_levels` for every weight, float64; 0 where a filter or cluster is all zeros."""
    host, kernel = layer.kernel_host, layer.kernel
    if isinstance(layer.kernel_quantizer, Clustered):
        return layer.kernel_quantizer.cluster_scales(kernel, host.filter_axes).astype(np.float64)
    scale = keras.ops.convert_to_numpy(host.encode(kernel).scale)
    return np.broadcast_to(scale, kernel.shape).astype(np.float64)


def _levels(quantizer: Any) -> np.ndarray | None:
    """The codes of a grid in rising order; None for quantizers whose codes are no free choice."""
    if isinstance(quantizer, LearnedPowerOfTwo | LearnedStep | AdjustableThreshold):
        return _levels(quantizer.base) if getattr(quantizer, "mode", "symmetric") == "symmetric" else None
    if isinstance(quantizer, Uniform):
        return _even(symmetric_limit(quantizer.bits))
    if isinstance(quantizer, Ternary):
        return _even(1)
    if isinstance(quantizer, Clustered):
        return _even(quantizer.limit)
    if isinstance(quantizer, PowerOfTwo):
        powers = 2.0 ** np.arange(quantizer.magnitudes)
        return np.concatenate([-powers[::-1], [0.0], powers])
    return None


def _even(limit: int) -> np.ndarray:
    return np.arange(-limit, limit + 1, dtype=np.float64)


def assign_exactly(layer: Any, chosen: np.ndarray) -> bool:
    """Give a layer a kernel on its grid; False, and the kernel as it was, if its quantizer makes another one of it."""
    before = to_numpy(layer.kernel).copy()
    layer.kernel.assign(chosen)
    found = keras.ops.convert_to_numpy(layer.kernel_host.encode(layer.kernel).real)
    if np.allclose(found, chosen, rtol=1e-5, atol=1e-12):
        return True
    layer.kernel.assign(before)
    return False
