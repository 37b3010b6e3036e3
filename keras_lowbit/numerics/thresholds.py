"""Scales and thresholds of weight grids: mean, TWN, exact L2 optimum, max, percentile, least squares."""

from typing import Any

from keras import ops

from keras_lowbit.numerics.grids import encode_symmetric, symmetric_limit

Tensor = Any
Axes = tuple[int, ...]


def reduced_axes(rank: int, kept: Axes) -> Axes:
    """The axes to reduce so that only `kept` remain; negative axes count from the end."""
    keep = {axis % rank for axis in kept} if rank else set()
    return tuple(axis for axis in range(rank) if axis not in keep)


def per_filter_shape(shape: tuple[int, ...], kept: Axes) -> tuple[int, ...]:
    """`shape` with size 1 along all axes but `kept`: that of one value for each filter."""
    gone = reduced_axes(len(shape), kept)
    return tuple(1 if axis in gone else size for axis, size in enumerate(shape))


def shared_axes(shape: tuple[int, ...]) -> Axes:
    """The axes along which a scale of that shape is one for all: those of size 1."""
    return tuple(axis for axis, size in enumerate(shape) if size == 1)


def mean_magnitude(weights: Tensor, axes: Axes) -> Tensor:
    """``mean |w|`` over `axes`, kept as size 1: the L2-optimal scale of a sign pattern (BWN).

    Rastegari et al. 2016, arXiv:1603.05279, section 3.1.
    """
    return ops.mean(ops.abs(weights), axis=axes, keepdims=True)


def twn_threshold(weights: Tensor, axes: Axes, factor: float, centered: bool) -> Tensor:
    """Ternary threshold ``Delta = factor * mean |w|`` over `axes` (kept as size 1), same units as `weights`.

    `centered` subtracts ``mean w`` inside the magnitude, as the official SQ code does; the result is still
    compared with the weights as they are. Li et al. 2016, arXiv:1605.04711 (factor 0.7 in v1 and v2).
    """
    if centered:
        weights = weights - ops.mean(weights, axis=axes, keepdims=True)
    return factor * mean_magnitude(weights, axes)


def masked_mean_magnitude(weights: Tensor, support: Tensor, axes: Axes) -> Tensor:
    """``alpha = mean of |w| over the support``, 0 where it is empty: the L2-optimal ternary scale.

    A NaN anywhere in the group makes alpha NaN: it must show, not become a filter of zeros.
    """
    kept = ops.cast(support, weights.dtype)
    count = ops.sum(kept, axis=axes, keepdims=True)
    total = ops.sum(ops.abs(weights) * kept, axis=axes, keepdims=True)
    return total / ops.maximum(count, 1.0)


def optimal_ternary_support(weights: Tensor, axes: Axes) -> Tensor:
    """Support (booleans, shape of `weights`) of the ternary grid with the least squared error.

    With |w| sorted downwards and prefix sums ``S_k``, the error is least at ``argmax_k S_k^2 / k``.
    Found exactly in O(d log d) for each group left by `axes`. Derived from TWN eq. 6.
    """
    rank = len(weights.shape)
    kept = tuple(axis for axis in range(rank) if axis not in axes)
    order = kept + axes
    magnitude = ops.transpose(ops.abs(weights), order)
    kept_shape = tuple(magnitude.shape[: len(kept)])
    rows = ops.reshape(magnitude, (*kept_shape, -1))
    descending = -ops.sort(-rows, axis=-1)
    position = ops.cast(ops.arange(1, rows.shape[-1] + 1), rows.dtype)
    gain = ops.square(ops.cumsum(descending, axis=-1)) / position
    best = ops.expand_dims(ops.argmax(gain, axis=-1), -1)
    smallest = ops.take_along_axis(descending, best, axis=-1)
    support = ops.reshape(ops.logical_and(rows >= smallest, rows > 0), magnitude.shape)
    inverse = sorted(range(rank), key=lambda axis: order[axis])
    return ops.transpose(support, inverse)


# Compilers turn a division by a constant into a multiplication by its reciprocal, which may differ in the last
# bit. Writing the multiplication gives the same scale in eager mode, in a graph and under XLA.
def max_scale(weights: Tensor, axes: Axes, bits: int) -> Tensor:
    """``max |w| / (2^(bits-1) - 1)`` over `axes`, kept as size 1."""
    return ops.max(ops.abs(weights), axis=axes, keepdims=True) * (1.0 / symmetric_limit(bits))


def percentile_scale(weights: Tensor, axes: Axes, bits: int, percentile: float) -> Tensor:
    """The scale whose limit is the given percentile (0..100) of |w|; larger weights saturate."""
    threshold = ops.quantile(ops.abs(weights), percentile / 100.0, axis=axes, keepdims=True)
    return threshold * (1.0 / symmetric_limit(bits))


# 71 clip ratios from 0.30 to 1.00: finer steps changed the error by under 0.1 % on trained kernels.
_CLIP_RATIOS = 71


def mse_scale(weights: Tensor, axes: Axes, bits: int) -> Tensor:
    """The scale of least squared error among clip ratios 0.30, 0.31, ..., 1.00 of ``max |w|``."""
    largest = max_scale(weights, axes, bits)

    def try_ratio(step: Tensor, best: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scale = largest * (1.0 - 0.01 * ops.cast(step, weights.dtype))
        residual = weights - encode_symmetric(weights, scale, bits) * scale
        error = ops.sum(ops.square(residual), axis=axes, keepdims=True)
        better = error < best[0]
        return ops.where(better, error, best[0]), ops.where(better, scale, best[1])

    start = (ops.full_like(largest, float("inf")), largest)
    return ops.fori_loop(0, _CLIP_RATIOS, try_ratio, start)[1]
