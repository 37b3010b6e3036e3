"""Grids whose scale and left end learn: exact forward values, closed-form gradients."""

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_lowbit.numerics.gradients import straight_through
from keras_lowbit.numerics.grids import Quantized, affine_scale, affine_zero_point, symmetric_limit

Tensor = Any


class LearnedGrid(NamedTuple):
    """A grid ``scale * (code - zero_point)``, ``lowest <= code <= highest``, with gradients to what learns.

    scale: size of one step; its gradient goes where it came from.   left: the left end that was asked for, in the units
    of the tensor, with its gradient; 0 for grids without one.   zero_point, lowest, highest: codes. All broadcast against
    the tensor.
    """

    scale: Tensor
    left: Tensor
    zero_point: Tensor
    lowest: Tensor
    highest: Tensor

    def encode(self, real: Tensor) -> Quantized:
        """The nearest codes, half to even. A scale of 0 is that of a filter of zeros: codes of 0."""
        codes = ops.clip(ops.round(real / _safe(self.scale)) + self.zero_point, self.lowest, self.highest)
        return Quantized(codes, self.scale, self.zero_point)

    def __call__(self, real: Tensor, known: Tensor | bool = True) -> Tensor:
        """The reals on the grid, bit for bit those of `encode`, in the shape of `real`.

        With ``v = x / s``, ``u = round(v)``, code ``c = u + zero_point`` and the residuals of both roundings held fixed:
        inside (``lowest <= c <= highest``): ``dx = 1``, ``ds = u - v``, ``dL = 0``;
        outside, c clipped: ``dx = 0``, ``ds = c - zero_point - L / s``, ``dL = 1``.
        Gradients of scale and left end are summed over the axes along which they are broadcast.
        known: a boolean; False hands `real` on as it is, with gradient 1 and none to the grid.
        Goncharenko et al. 2018, arXiv:1812.07872; closed forms derived.
        """
        on_grid = self.encode(ops.stop_gradient(real)).real
        known = ops.convert_to_tensor(known, "bool")
        constants = (on_grid, self.zero_point, self.lowest, self.highest)
        fixed = [ops.stop_gradient(ops.convert_to_tensor(value, real.dtype)) for value in constants]
        return _learned(real, self.scale, self.left, ops.cast(known, real.dtype), *fixed)


def _safe(scale: Tensor) -> Tensor:
    return ops.where(scale > 0, scale, ops.ones_like(scale))


@ops.custom_gradient
def _learned(
    real: Tensor,
    scale: Tensor,
    left: Tensor,
    known: Tensor,
    on_grid: Tensor,
    zero_point: Tensor,
    lowest: Tensor,
    highest: Tensor,
) -> Any:
    # The backward pass computes codes once more instead of keeping them: only `real` stays in memory.
    def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
        upstream = args[0] if upstream is None else upstream
        steps = real / _safe(scale)
        rounded = ops.round(steps)
        codes = ops.clip(rounded + zero_point, lowest, highest)
        inside = ops.equal(codes, rounded + zero_point)
        by_scale = ops.where(inside, rounded - steps, codes - zero_point - left / _safe(scale))
        nothing = ops.zeros_like(upstream)
        return (
            ops.where(ops.logical_or(inside, known == 0), upstream, nothing),
            sum_to(upstream * by_scale, scale) * known,
            sum_to(ops.where(inside, nothing, upstream), left) * known,
            ops.zeros_like(known),
            nothing,
            *(ops.zeros_like(value) for value in (zero_point, lowest, highest)),
        )

    return ops.where(known > 0, on_grid, real), gradient


def sum_to(value: Tensor, like: Tensor) -> Tensor:
    """`value` summed over the axes along which a tensor of the shape of `like` was broadcast to it."""
    if len(like.shape) == 0:
        return ops.sum(value)
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1 and value.shape[axis] != 1)
    return ops.sum(value, axis=axes, keepdims=True) if axes else value


def clip_closed(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``clip(value, low, high)``; gradient 1 in the closed interval, else 0, on every backend. low, high: constants."""
    return straight_through(value, ops.clip(value, low, high), ops.logical_and(value >= low, value <= high))


def largest_magnitude(minimum: Tensor, maximum: Tensor, signed: Tensor | bool) -> Tensor:
    """``T_max``: ``max(-minimum, maximum)`` signed, ``max(maximum, 0)`` unsigned."""
    return ops.where(signed, ops.maximum(-minimum, maximum), ops.maximum(maximum, 0.0))


def step_of_one(bits: int, signed: Tensor | bool) -> Tensor:
    """The step of threshold 1: ``1 / (2^(bits-1) - 1)`` signed, ``1 / (2^bits - 1)`` unsigned."""
    return ops.where(signed, 1.0 / symmetric_limit(bits), 1.0 / (2.0**bits - 1))


def symmetric_grid(scale: Tensor, bits: int, signed: Tensor | bool, full: bool) -> LearnedGrid:
    """Steps of `scale` on both sides of 0, codes -q .. q with ``q = 2^(bits-1) - 1``; unsigned ``2^bits`` codes from 0.

    Unsigned codes are stored as int8: the lowest is -2^(bits-1), which is also their zero point.
    full: signed codes reach down to ``-q - 1``, as int8 arithmetic does.
    """
    lowest, limit = -(2.0 ** (bits - 1)), float(symmetric_limit(bits))
    zero_point = ops.where(signed, 0.0, lowest)
    first = ops.where(signed, lowest if full else -limit, lowest)
    codes = [ops.cast(value, scale.dtype) for value in (zero_point, first, limit)]
    return LearnedGrid(scale, ops.zeros_like(scale), *codes)


def affine_grid(left: Tensor, width: Tensor, bits: int) -> LearnedGrid:
    """The grid of [left, left + width], which holds 0: ``s = width / (2^bits - 1)``.

    ``zero_point = lowest - round(left / s)`` with ``lowest = -2^(bits-1)``.
    """
    lowest = -(2.0 ** (bits - 1))
    scale = affine_scale(width, bits)
    zero_point = affine_zero_point(ops.stop_gradient(left), ops.stop_gradient(scale), bits)
    limits = [ops.cast(value, scale.dtype) for value in (lowest, lowest + 2.0**bits - 1)]
    return LearnedGrid(scale, left, zero_point, *limits)


def moved_ends(
    minimum: Tensor,
    maximum: Tensor,
    left: Tensor,
    width: Tensor,
    left_limits: tuple[float, float],
    width_limits: tuple[float, float],
    signed: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Left end ``L = T_l + clip(a_L) R`` and width ``W = clip(a_R) R`` with ``R = T_r - T_l``, clamped to hold 0.

    minimum, maximum: T_l and T_r, widened to hold 0.   left, width: the factors a_L and a_R.   signed: False or, where
    None, ``minimum >= 0`` fixes the left end at 0. Clamps: ``L <= 0 <= L + W``; where one acts the gradient of its factor is 0.
    Goncharenko et al. 2018, arXiv:1812.07872.   Differs from the paper: an unsigned range keeps its left end at 0, since
    a grid without 0.0 has no int8 form and no exact padding.
    """
    minimum = ops.minimum(minimum, 0.0) if signed is not False else ops.zeros_like(minimum)
    maximum = ops.maximum(maximum, 0.0)
    size = maximum - minimum
    lower = ops.where(minimum < 0, ops.full_like(minimum, left_limits[0]), ops.zeros_like(minimum))
    start = minimum + clip_closed(left, lower, left_limits[1]) * size
    start = clip_closed(start, -float(np.finfo(np.float32).max), 0.0)
    span = clip_closed(width, *width_limits) * size
    return start, ops.where(start + span >= 0, span, -start)
