"""From a layer's codes and the per-channel affine that follows to int8 codes, scales and biases.

``y = factor * (scale * (codes . x) + bias) + offset``  becomes  ``scale' = |factor| * scale``,
``codes' = sign(factor) * codes`` and ``bias' = factor * bias + offset``: ternary codes stay on their grid.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.graph.operations.checks import LARGEST_SUM
from keras_lowbit.keras_graph import variables
from keras_lowbit.numerics.thresholds import per_filter_shape, reduced_axes

# A channel whose weights move the output by less than this share of a step, whatever the input, is a constant.
NEGLIGIBLE_STEPS = 0.01
# A bias is rounded to input scale times weight scale. Two output steps of that would move a result by a whole step.
COARSEST_BIAS_STEPS = 1.9
# A bias whose rounding moves a result by less than this share of a step is fine enough.
FINE_BIAS_STEPS = 0.02


@dataclasses.dataclass(frozen=True)
class Affine:
    """``factor * x + offset`` for each channel, float64 arrays [channels]."""

    factor: np.ndarray
    offset: np.ndarray

    def then(self, after: "Affine") -> "Affine":
        """This affine followed by another."""
        return Affine(after.factor * self.factor, after.factor * self.offset + after.offset)


def identity(channels: int) -> Affine:
    """``1 * x + 0``."""
    return Affine(np.ones(channels), np.zeros(channels))


def batch_norm_affine(layer: Any) -> Affine:
    """``gamma / sqrt(var + eps)`` and ``beta - mean * factor`` from the moving statistics of a batch norm."""
    return Affine(*variables.batch_norm_affine(layer))


@dataclasses.dataclass(frozen=True)
class Folded:
    """What an integer op with weights needs.

    factors: what the model's codes were multiplied with: -1 where a negative factor flipped the channel, a larger number
    where coarse codes had to be stored finer for the bias's sake.   flushed: channels whose weights became zero codes,
    because a batch norm multiplies them with zero or so little that no input can show it.
    """

    codes: np.ndarray  # int8, the kernel's layout
    scales: np.ndarray  # float32 [channels], all positive
    bias: np.ndarray  # whole numbers as int64 [channels]
    factors: np.ndarray  # int8 [channels]
    flushed: tuple[int, ...] = ()


def fold(
    codes: np.ndarray,
    scale: np.ndarray,
    filter_axes: tuple[int, ...],
    affine: Affine,
    source: Range,
    out: Range,
    name: str,
) -> Folded:
    """Codes, scales and biases of one layer. affine: layer bias and everything after it, up to the range `out`.

    Raises ValueError where a bias fits no sum that LiteRT has for such inputs and the channel's weights are not negligible.
    """
    if codes.dtype != np.int8:
        raise ValueError(
            f"{name!r} has codes up to {int(np.abs(codes).max())} as {codes.dtype}; the integer graph holds int8. Fit "
            "them first: keras_lowbit.deploy.lowering.int8_overflow.fit_int8."
        )
    scales = channel_scales(codes, scale, filter_axes, name)
    with np.errstate(under="ignore"):
        folded = (np.abs(affine.factor) * scales).astype(np.float32)
    factors = np.where(affine.factor < 0, -1, 1) * _multiples(codes, folded * source.scale / out.scale, filter_axes)
    folded = (folded / np.abs(factors)).astype(np.float32)
    codes = (codes * along(factors, codes, filter_axes)).astype(np.int8)
    dead = _dead_channels(codes, folded, affine.offset, filter_axes, source, out, name)
    empty = np.abs(codes).max(axis=reduced_axes(codes.ndim, filter_axes)).reshape(-1) == 0
    folded = np.where(dead, np.float32(out.scale / source.scale * 2.0**-12), folded).astype(np.float32)
    codes = np.where(along(dead, codes, filter_axes), 0, codes).astype(np.int8)
    flushed = tuple(int(c) for c in np.flatnonzero(dead & ~empty))
    bias = _biases(affine.offset, source, folded).astype(np.int64)
    return Folded(codes, folded, bias, factors.astype(np.int8), flushed)


def affine_codes(affine: Affine, source: Range, out: Range) -> np.ndarray:
    """The weight code (1..127) of each channel of a stand-alone affine; its scale is ``|factor| / code``.

    The bias is rounded to multiples of ``input scale * |factor| / code``. 127 is the finest grid; where even that is
    coarse (a batch norm over a channel that hardly varies), the code whose grid comes closest to the offset is taken.
    """
    codes = np.arange(127, 31, -1.0)[:, None]  # [candidates, 1]
    step = np.maximum(source.scale * np.abs(affine.factor), np.finfo(np.float32).tiny) / codes  # [candidates, channels]
    error = np.abs(np.round(affine.offset / step) * step - affine.offset) / out.scale
    best = np.where(error[0] < FINE_BIAS_STEPS, 0, error.argmin(0))
    return codes[best, 0].astype(np.int8)


def _multiples(codes: np.ndarray, bias_steps: np.ndarray, filter_axes: tuple[int, ...]) -> np.ndarray:
    """1, or the whole number that brings a channel's bias step below `COARSEST_BIAS_STEPS`, as far as int8 allows."""
    largest = np.abs(codes.astype(np.int64)).max(axis=reduced_axes(codes.ndim, filter_axes)).reshape(-1)
    room = 127 // np.maximum(largest, 1)
    return np.clip(np.ceil(bias_steps / COARSEST_BIAS_STEPS), 1, room).astype(np.int64)


def _dead_channels(
    codes: np.ndarray,
    folded: np.ndarray,
    offset: np.ndarray,
    filter_axes: tuple[int, ...],
    source: Range,
    out: Range,
    name: str,
) -> np.ndarray:
    """Channels that are constants, as booleans: what follows multiplies them with (almost) nothing."""
    sums = np.abs(codes.astype(np.int64)).sum(axis=reduced_axes(codes.ndim, filter_axes)).reshape(-1)
    lowest, highest = source.limits
    reach = float(highest - lowest) * sums * folded * source.scale / out.scale
    bias, kind = _biases(offset, source, folded), "int32" if source.dtype == "int8" else "int64"
    overflow = np.abs(bias) > LARGEST_SUM[kind]
    dead = (folded * np.float32(source.scale) <= np.finfo(np.float32).tiny) | (overflow & (reach < NEGLIGIBLE_STEPS))
    if (overflow & ~dead).any():
        channel = int(np.argmax(overflow & ~dead))
        raise ValueError(
            f"The bias of channel {channel} of {name!r} is {offset[channel]:.6g}, which at step "
            f"{source.scale * folded[channel]:.3g} (input scale {source.scale:.3g} times weight scale "
            f"{folded[channel]:.3g}) is {bias[channel]:.3g} and does not fit {kind}. Train or quantize that layer with "
            "larger weight scales, or list it under skip= in quantize_model."
        )
    return dead


def channel_scales(codes: np.ndarray, scale: np.ndarray, filter_axes: tuple[int, ...], name: str) -> np.ndarray:
    """One scale for each output channel from a scale that broadcasts against the codes."""
    shape = per_filter_shape(codes.shape, filter_axes)
    if np.ndim(scale) and any(have not in (1, want) for have, want in zip(np.shape(scale), shape, strict=True)):
        raise ValueError(
            f"The weights of {name!r} have scales of shape {np.shape(scale)}: several for one output channel. LiteRT "
            "holds one; use a quantizer whose scales are per filter or per layer."
        )
    return np.broadcast_to(np.asarray(scale, np.float32), shape).reshape(-1)


def _biases(offset: np.ndarray, source: Range, scales: np.ndarray) -> np.ndarray:
    steps = (np.float32(source.scale) * scales).astype(np.float32).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.nan_to_num(np.round(offset / steps), nan=0.0, posinf=np.inf, neginf=-np.inf)


def along(values: np.ndarray, codes: np.ndarray, filter_axes: tuple[int, ...]) -> np.ndarray:
    """Values for each channel in the shape that broadcasts against the codes."""
    return values.reshape(per_filter_shape(codes.shape, filter_axes))
