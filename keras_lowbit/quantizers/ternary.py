"""One- and two-bit weights: `Binary` (BWN) and `Ternary` (TWN)."""

import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_lowbit.numerics import thresholds
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import (
    GRANULARITIES,
    Axes,
    Quantizer,
    State,
    Tensor,
    as_float32,
    register,
    require_choice,
    scale_axes,
)


@register
@dataclasses.dataclass(frozen=True)
class Binary(Quantizer):
    """Binary weights with a scale: ``q = alpha * sign(w)``, ``alpha = mean |w|``, ``sign(0) = +1``.

    Gradient: identity (no clipping), as in the official SQ code.
    granularity: one alpha per "channel" (the paper) or per "tensor".
    Codes -1, +1; scale alpha >= 0, in the units of w.
    Rastegari et al. 2016, arXiv:1603.05279, section 3.1 (BWN).

    >>> klb.quantizers.Binary()
    Binary(granularity='channel')
    """

    name: ClassVar[str] = "binary"
    granularity: str = "channel"

    def __post_init__(self) -> None:
        require_choice("Binary", "granularity", self.granularity, GRANULARITIES)

    @property
    def bits(self) -> float:
        """One bit a weight."""
        return 1

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes -1 or +1 in the layout of `real`; scale with size 1 along the reduced axes."""
        real = as_float32(real)
        alpha = thresholds.mean_magnitude(real, scale_axes(real, filter_axes, self.granularity))
        return Quantized(ops.where(real >= 0, ops.ones_like(real), -ops.ones_like(real)), alpha)

    def snap(self, real: Tensor, scale: Tensor) -> Tensor:
        """The sign of each weight, +1 for 0."""
        return ops.where(real >= 0, ops.ones_like(real), -ops.ones_like(real))


@register
@dataclasses.dataclass(frozen=True)
class Ternary(Quantizer):
    """Ternary weights: ``q = alpha * sign(w)`` where ``|w| > Delta``, else 0.

    ``Delta = factor * mean |w|`` (strict comparison), ``alpha = mean of |w| above Delta``, or 0.
    Gradient: identity.
    factor: 0.7 (arXiv v1, v2 and the official code) or 0.75 (v3).   granularity: Delta per "channel" or per "tensor".
    scale_granularity: alpha per "channel" or per "tensor".   centered: ``Delta = factor * mean |w - mean w|``.
    calibration: Delta from the "mean" as above, or "mse": the exact least-squares support of each `scale_granularity`
    group instead; `factor`, `granularity` and `centered` then have no effect.
    Raises ValueError for a factor below 0, and for another granularity or calibration.
    Li et al. 2016, arXiv:1605.04711, eq. 6. The official TWN code is granularity="tensor", scale_granularity="tensor";
    the official SQ code is granularity="tensor", centered=True.

    >>> klb.quantizers.Ternary(factor=0.7) == klb.quantizers.get({"name": "ternary"})
    True
    """

    name: ClassVar[str] = "ternary"
    factor: float = 0.7
    granularity: str = "channel"
    scale_granularity: str = "channel"
    centered: bool = False
    calibration: str = "mean"

    def __post_init__(self) -> None:
        require_choice("Ternary", "granularity", self.granularity, GRANULARITIES)
        require_choice("Ternary", "scale_granularity", self.scale_granularity, GRANULARITIES)
        require_choice("Ternary", "calibration", self.calibration, ("mean", "mse"))
        if not 0.0 <= self.factor < float("inf"):
            raise ValueError(f"Ternary needs factor >= 0, got {self.factor!r}. The paper uses 0.7.")

    @property
    def bits(self) -> float:
        """Two bits a weight."""
        return 2

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes -1, 0, +1 in the layout of `real`; scale with size 1 along the reduced axes."""
        real = as_float32(real)
        axes = scale_axes(real, filter_axes, self.scale_granularity)
        support = self._support(real, axes, filter_axes)
        alpha = thresholds.masked_mean_magnitude(real, support, axes)
        return Quantized(ops.where(support, ops.sign(real), ops.zeros_like(real)), alpha)

    def snap(self, real: Tensor, scale: Tensor) -> Tensor:
        """The nearest of -1, 0, +1 for a given alpha: 0 below ``alpha / 2``."""
        return ops.where(ops.abs(real) > 0.5 * scale, ops.sign(real), ops.zeros_like(real))

    def _support(self, real: Tensor, axes: Axes, filter_axes: Axes) -> Any:
        if self.calibration == "mse":
            return thresholds.optimal_ternary_support(real, axes)
        delta_axes = scale_axes(real, filter_axes, self.granularity)
        return ops.abs(real) > thresholds.twn_threshold(real, delta_axes, self.factor, self.centered)
