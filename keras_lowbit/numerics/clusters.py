"""Weights in small clusters that share a scale: how a kernel falls into clusters, and the fits. No loop over clusters.

Canonical layout: [filters, clusters, slices, taps]. In a convolution a slice is the KHxKW plane of one input channel of
one filter, and a cluster is N slices next to one another along the input channels (Mellempudi et al. 2017,
arXiv:1701.08978). With single weights (FGQ, arXiv:1705.01462) a slice is one weight, taps is 1, and the clusters of a
filter run over (position, group of N input channels). A last, shorter cluster is filled up with zeros, which no fit
counts. Fits see magnitudes; signs go back in at the end.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_lowbit.numerics.thresholds import optimal_ternary_support, reduced_axes

Tensor = Any
Axes = tuple[int, ...]
Shape = tuple[int, ...]

# Up to here all candidate scales of a cluster are tried in turn; beyond, sorted weights are searched. Same result.
_FEW_CANDIDATES = 16


class Layout(NamedTuple):
    """How a kernel falls into clusters.

    shape: of the kernel.   filter_axes, input_axes, tap_axes: its axes; a depthwise kernel has no input axis.
    size: N, at most the input channels of a filter.   single: clusters of single weights, not of slices.
    """

    shape: Shape
    filter_axes: Axes
    input_axes: Axes
    tap_axes: Axes
    size: int
    single: bool

    def _sizes(self, axes: Axes) -> Shape:
        return tuple(self.shape[axis] for axis in axes)

    @property
    def filters(self) -> int:
        """Filters, that is output channels."""
        return math.prod(self._sizes(self.filter_axes))

    @property
    def inputs(self) -> int:
        """Input channels that one filter sees."""
        return math.prod(self._sizes(self.input_axes))

    @property
    def taps(self) -> int:
        """Positions of the kernel, KH * KW."""
        return math.prod(self._sizes(self.tap_axes))

    @property
    def parts(self) -> int:
        """Clusters along the input channels: ``ceil(inputs / N)``."""
        return -(-self.inputs // self.size)

    @property
    def per_filter(self) -> int:
        """Clusters of one filter: the multiplications left of its KH * KW * inputs."""
        return self.parts * (self.taps if self.single else 1)

    @property
    def scale_shape(self) -> Shape:
        """Shape of the scales for people: [clusters, filters], or [taps..., clusters, filters] for single weights."""
        return (*(self._sizes(self.tap_axes) if self.single else ()), self.parts, self.filters)

    @property
    def slices(self) -> np.ndarray:
        """How many slices each cluster really has, [clusters of a filter]; only ragged ends have fewer than N."""
        along = np.minimum(self.size, self.inputs - self.size * np.arange(self.parts))
        return np.tile(along, self.taps if self.single else 1)


def layout(shape: Shape, filter_axes: Axes, size: int, single: bool) -> Layout:
    """The clusters of a kernel of that shape. One filter axis: the last other axis holds the input channels."""
    rank = len(shape)
    kept = tuple(sorted(axis % rank for axis in filter_axes))
    rest = reduced_axes(rank, kept)
    inputs = rest[-1:] if len(kept) == 1 else ()
    taps = tuple(axis for axis in rest if axis not in inputs)
    largest = shape[inputs[0]] if inputs else 1
    return Layout(tuple(shape), kept, inputs, taps, max(1, min(size, largest)), single)


def to_clusters(weights: Tensor, plan: Layout) -> Tensor:
    """A kernel as [filters, clusters, slices, taps], ragged ends filled up with zeros."""
    order = (plan.tap_axes + plan.input_axes) if plan.single else (plan.input_axes + plan.tap_axes)
    rows = ops.transpose(weights, plan.filter_axes + order)
    missing = plan.parts * plan.size - plan.inputs
    if plan.single:
        rows = ops.reshape(rows, (plan.filters, plan.taps, plan.inputs))
        rows = ops.pad(rows, ((0, 0), (0, 0), (0, missing))) if missing else rows
        return ops.reshape(rows, (plan.filters, plan.per_filter, plan.size, 1))
    rows = ops.reshape(rows, (plan.filters, plan.inputs, plan.taps))
    rows = ops.pad(rows, ((0, 0), (0, missing), (0, 0))) if missing else rows
    return ops.reshape(rows, (plan.filters, plan.parts, plan.size, plan.taps))


def from_clusters(values: Tensor, plan: Layout) -> Tensor:
    """The inverse of `to_clusters`; size 1 along slices and taps is spread out."""
    values = ops.broadcast_to(values, (plan.filters, plan.per_filter, plan.size, 1 if plan.single else plan.taps))
    if plan.single:
        rows = ops.reshape(values, (plan.filters, plan.taps, plan.parts * plan.size))[:, :, : plan.inputs]
        order = plan.filter_axes + plan.tap_axes + plan.input_axes
    else:
        rows = ops.reshape(values, (plan.filters, plan.parts * plan.size, plan.taps))[:, : plan.inputs]
        order = plan.filter_axes + plan.input_axes + plan.tap_axes
    kernel = ops.reshape(rows, [plan.shape[axis] for axis in order])
    return ops.transpose(kernel, [order.index(axis) for axis in range(len(order))])


def slice_rms(magnitude: Tensor) -> Tensor:
    """Algorithm 2: the root mean square of the k largest of each slice, at the k of least squared error.

    ``alpha_k = sqrt(sum of the k largest squares / k)``, error ``||w||^2 - 2 alpha_k S_k + k alpha_k^2``; at equal errors
    the smallest k. [..., taps] -> [...].
    """
    taps = magnitude.shape[-1]
    if taps == 1:
        return magnitude[..., 0]
    largest = -ops.sort(-magnitude, axis=-1)
    squares = ops.cumsum(ops.square(largest), axis=-1)
    rms = ops.sqrt(squares * _reciprocals(taps))
    error = squares - 2.0 * rms * ops.cumsum(largest, axis=-1)
    # rms falls with k, so the largest among the best is the one of the smallest k.
    best = error <= ops.min(error, axis=-1, keepdims=True)
    return ops.max(ops.where(best, rms, ops.zeros_like(rms)), axis=-1)


def rms_scale(magnitude: Tensor, slices: np.ndarray, threshold: float) -> Tensor:
    """Algorithm 1: the scale of each cluster, [filters, clusters, 1, 1], from [filters, clusters, slices, taps].

    With the values of `slice_rms` sorted downwards, candidate t is the root mean square of the t largest, and its support
    is ``|w| > threshold * candidate``: 0.5 takes the nearest of 0 and the candidate, 1 is the literal reading. The
    candidate of least squared error over the cluster wins, at equal errors the smallest t.
    """
    size = magnitude.shape[2]
    values = slice_rms(magnitude)
    if size == 1:
        candidates = values
    else:
        values = -ops.sort(-values, axis=-1)
        candidates = ops.sqrt(ops.cumsum(ops.square(values), axis=-1) * _reciprocals(size))
        # A root of a square may differ from the value in the last bit; the first candidate is that value.
        candidates = ops.concatenate([values[..., :1], candidates[..., 1:]], axis=-1)
    weights = ops.reshape(magnitude, (*magnitude.shape[:2], -1))
    error = _candidate_errors(weights, candidates, threshold)
    real = np.arange(size) < slices[:, None]  # [clusters, candidates]
    error = ops.where(ops.convert_to_tensor(real), error, float("inf"))
    # Candidates fall with t, so the largest among the best is the one of the smallest t.
    best = error <= ops.min(error, axis=-1, keepdims=True)
    scale = ops.max(ops.where(best, candidates, ops.zeros_like(candidates)), axis=-1, keepdims=True)
    return ops.expand_dims(scale, -1)


def _candidate_errors(weights: Tensor, candidates: Tensor, threshold: float) -> Tensor:
    """``count * c^2 - 2 c * sum`` over the weights above ``threshold * c``, for each candidate c of each cluster."""
    edges = candidates * threshold
    above = _above_each if candidates.shape[-1] <= _FEW_CANDIDATES else _above_sorted
    count, total = above(weights, edges)
    return count * ops.square(candidates) - 2.0 * candidates * total


def _above_each(weights: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Number and sum of the weights above each edge: [..., weights] and [..., edges] -> [..., edges], twice."""
    counts, totals = [], []
    for index in range(edges.shape[-1]):
        above = ops.cast(weights > edges[..., index : index + 1], weights.dtype)
        counts.append(ops.sum(above, axis=-1))
        totals.append(ops.sum(above * weights, axis=-1))
    return ops.stack(counts, axis=-1), ops.stack(totals, axis=-1)


def _above_sorted(weights: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """As `_above_each`, by bisection in the sorted weights: for clusters of many slices."""
    largest = -ops.sort(-weights, axis=-1)
    size = int(weights.shape[-1])
    low, high = ops.zeros_like(edges, dtype="int32"), ops.full_like(edges, size, dtype="int32")

    def halve(_: Tensor, bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        low, high = bounds
        middle = (low + high) // 2
        found = ops.take_along_axis(largest, ops.minimum(middle, size - 1), axis=-1)
        above = ops.logical_and(found > edges, low < high)
        return ops.where(above, middle + 1, low), ops.where(ops.logical_or(above, low >= high), high, middle)

    count, _ = ops.fori_loop(0, size.bit_length(), halve, (low, high))
    sums = ops.cumsum(largest, axis=-1)
    total = ops.take_along_axis(sums, ops.maximum(count - 1, 0), axis=-1)
    return ops.cast(count, weights.dtype), ops.where(count > 0, total, ops.zeros_like(total))


def optimal_fit(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Support (booleans) and scale of least squared error of each cluster, exactly (`optimal_ternary_support`)."""
    shape = tuple(magnitude.shape)
    rows = ops.reshape(magnitude, (*shape[:2], -1))
    support = optimal_ternary_support(rows, (2,))
    kept = ops.cast(support, rows.dtype)
    total = ops.sum(rows * kept, axis=-1, keepdims=True)
    scale = total / ops.maximum(ops.sum(kept, axis=-1, keepdims=True), 1.0)
    if rows.shape[-1] == 1:
        scale = rows
    return ops.reshape(support, shape), ops.expand_dims(scale, -1)


# Shares of max |w| that the largest level of a few-bit grid may have: all of it, and cut down to 0.45.
CLIP_RATIOS = tuple(round(1.0 - 0.05 * step, 2) for step in range(12))


def _shares(limit: int) -> list[float]:
    """What the scans multiply max |w| with: it lies on the largest level, beyond it, or on one of the lower levels."""
    return [ratio / limit for ratio in CLIP_RATIOS] + [1.0 / level for level in range(limit - 1, 0, -1)]


def scanned_scale(magnitude: Tensor, limit: int) -> Tensor:
    """The scale of least squared error of each cluster among ``max |w| * c / limit``, c = 1, 0.95, ..., 0.45.

    And among those that put max |w| on level 1 to ``limit - 1``, for clusters of few weights.
    """
    largest = ops.max(magnitude, axis=(2, 3), keepdims=True)

    def error_of(scale: Tensor) -> Tensor:
        codes = ops.minimum(ops.round(magnitude / ops.where(scale > 0, scale, 1.0)), limit)
        return ops.sum(ops.square(magnitude - codes * scale), axis=(2, 3), keepdims=True)

    return _scan(error_of, lambda factor: largest * factor, _shares(limit))[0]


def scanned_integers(steps: Tensor, limit: int, largest_scale: int) -> tuple[Tensor, Tensor]:
    """The whole scale I of each cluster with the least squared error of ``codes * I``, and that error, [f, c, 1, 1].

    steps: magnitudes in units of the step 2^E.   Codes are at most `limit`, and ``codes * I`` at most 127: a larger scale
    has fewer levels. Tried are the I that put the cluster's maximum on level 1 to `limit`, and those that cut it off.
    """
    largest = ops.max(steps, axis=(2, 3), keepdims=True)

    def error_of(scale: Tensor) -> Tensor:
        codes = integer_codes(steps, scale, limit)
        return ops.sum(ops.square(steps - codes * scale), axis=(2, 3), keepdims=True)

    def whole(factor: Tensor) -> Tensor:
        return ops.clip(ops.round(largest * factor), 1.0, largest_scale)

    return _scan(error_of, whole, _shares(limit))


def integer_codes(steps: Tensor, scale: Tensor, limit: int) -> Tensor:
    """``min(round(steps / I), limit, floor(127 / I))`` for whole scales I >= 1."""
    reciprocal = 1.0 / ops.maximum(scale, 1.0)
    most = ops.minimum(ops.floor((127.0 + 0.5) * reciprocal), float(limit))
    return ops.minimum(ops.round(steps * reciprocal), most)


def _scan(error_of: Any, candidate: Any, factors: list[float]) -> tuple[Tensor, Tensor]:
    """The first candidate of least error, and that error. candidate, error_of: functions of a factor and of a candidate."""
    known = ops.convert_to_tensor(np.asarray(factors, np.float32))
    start = candidate(known[0])

    def better(index: Tensor, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scale = candidate(ops.take(known, index))
        error = error_of(scale)
        return ops.where(error < found[1], scale, found[0]), ops.minimum(error, found[1])

    return ops.fori_loop(1, len(factors), better, (start, error_of(start)))


def _reciprocals(size: int) -> Tensor:
    return ops.convert_to_tensor((1.0 / np.arange(1, size + 1)).astype(np.float32))
