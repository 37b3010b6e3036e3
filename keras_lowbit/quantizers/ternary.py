"""One- and two-bit weights: `Binary` (BWN) and `Ternary` (TWN)."""

import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_lowbit.numerics import thresholds
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import Axes, Quantizer, State, Tensor, as_float32, register, require_choice

SCOPES = ("filter", "layer")


def _axes(real: Tensor, filter_axes: Axes, scope: str) -> Axes:
    return thresholds.reduced_axes(len(real.shape), filter_axes if scope == "filter" else ())


@register
@dataclasses.dataclass(frozen=True)
class Binary(Quantizer):
    """Binary weights with a scale: ``q = alpha * sign(w)``, ``alpha = mean |w|``, ``sign(0) = +1``.

    Gradient: identity (no clipping), as in the official SQ code.
    scope: one alpha per "filter" (the paper) or per "layer".
    Codes -1, +1; scale alpha >= 0, in the units of w.
    Rastegari et al. 2016, arXiv:1603.05279, section 3.1 (BWN).

    >>> Binary()
    Binary(scope='filter')
    """

    name: ClassVar[str] = "binary"
    scope: str = "filter"

    def __post_init__(self) -> None:
        require_choice("Binary", "scope", self.scope, SCOPES)

    @property
    def bits(self) -> float:
        """One bit a weight."""
        return 1

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes -1 or +1 in the layout of `real`; scale with size 1 along the reduced axes."""
        real = as_float32(real)
        alpha = thresholds.mean_magnitude(real, _axes(real, filter_axes, self.scope))
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
    factor: 0.7 (arXiv v1, v2 and the official code) or 0.75 (v3).   scope: Delta per "filter" or per "layer".
    scale_scope: alpha per "filter" or per "layer".   centered: ``Delta = factor * mean |w - mean w|``.
    optimal: the exact least-squares support of each `scale_scope` group instead of Delta; `factor`, `scope`
    and `centered` then have no effect.
    Li et al. 2016, arXiv:1605.04711, eq. 6. The official TWN code is scope="layer", scale_scope="layer";
    the official SQ code is scope="layer", centered=True.

    >>> Ternary(factor=0.7) == get({"name": "ternary"})
    True
    """

    name: ClassVar[str] = "ternary"
    factor: float = 0.7
    scope: str = "filter"
    scale_scope: str = "filter"
    centered: bool = False
    optimal: bool = False

    def __post_init__(self) -> None:
        require_choice("Ternary", "scope", self.scope, SCOPES)
        require_choice("Ternary", "scale_scope", self.scale_scope, SCOPES)
        if not 0.0 <= self.factor < float("inf"):
            raise ValueError(f"Ternary needs factor >= 0, got {self.factor!r}. The paper uses 0.7.")

    @property
    def bits(self) -> float:
        """Two bits a weight."""
        return 2

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes -1, 0, +1 in the layout of `real`; scale with size 1 along the reduced axes."""
        real = as_float32(real)
        axes = _axes(real, filter_axes, self.scale_scope)
        support = self._support(real, axes, filter_axes)
        alpha = thresholds.masked_mean_magnitude(real, support, axes)
        return Quantized(ops.where(support, ops.sign(real), ops.zeros_like(real)), alpha)

    def snap(self, real: Tensor, scale: Tensor) -> Tensor:
        """The nearest of -1, 0, +1 for a given alpha: 0 below ``alpha / 2``."""
        return ops.where(ops.abs(real) > 0.5 * scale, ops.sign(real), ops.zeros_like(real))

    def _support(self, real: Tensor, axes: Axes, filter_axes: Axes) -> Any:
        if self.optimal:
            return thresholds.optimal_ternary_support(real, axes)
        delta_axes = _axes(real, filter_axes, self.scope)
        return ops.abs(real) > thresholds.twn_threshold(real, delta_axes, self.factor, self.centered)
