"""TrainedTernary: ternary weights whose scales train, one for each sign (TTQ)."""

import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_lowbit.numerics import learned, thresholds
from keras_lowbit.numerics.gradients import straight_through
from keras_lowbit.numerics.grids import Quantized, symmetric_limit
from keras_lowbit.quantizers.base import (
    GRANULARITIES,
    Axes,
    Quantizer,
    State,
    StateSpec,
    Tensor,
    as_float32,
    factor_limits,
    register,
    require_choice,
    scale_axes,
    scale_shape,
)

_START = "start_"


@register
@dataclasses.dataclass(frozen=True)
class TrainedTernary(Quantizer):
    """TTQ: ``q = W_p`` where ``w > Delta``, ``-W_n`` where ``w < -Delta``, else 0; ``W_p`` and ``W_n`` train.

    ``Delta = threshold * max |w|``, ``W_p = f_p a_p``: a_p the mean of the weights above Delta, as `calibrate` or the first
    training step finds it, f_p trained, 1 at first; W_n likewise.
    Gradients: ``dW_p`` the sum of the upstream gradients of its weights, ``dW_n`` minus that; ``f_p`` gets ``dW_p / a_p``, so
    under SGD W_p takes the paper's path. ``dw`` is the upstream gradient times f_p, f_n, or 1 between.
    threshold: t, in [0, 1).   granularity: Delta and scales per "channel" or (the paper) per "tensor".
    merged: one scale for both signs, a the mean of |w| beyond Delta: codes -1, 0, +1 in 2 bits, which pack. Two scales are
    three codes of int8, ``round(127 W / max(W_p, W_n))``, in the layer as in the file.
    limits: of the factors; brought back into them after each step of the optimizer.
    Raises ValueError for a threshold outside [0, 1), another granularity, and limits that leave out 1.
    Zhu et al. 2017, arXiv:1612.01064, eq. 6 to 9.   Differs: kernels are not normalised to [-1, 1], so gradients of w are
    relative to the scales at the start; scales per channel by default; each scale is a multiple of 1/127 of the larger.

    >>> ttq = klb.quantizers.TrainedTernary()
    >>> sorted(ttq.state_specs((3, 3, 8, 16), (-1,)))
    ['negative', 'positive', 'start_negative', 'start_positive']
    """

    name: ClassVar[str] = "trained_ternary"
    threshold: float = 0.05
    granularity: str = "channel"
    merged: bool = False
    limits: tuple[float, float] = (0.01, 100.0)

    def __post_init__(self) -> None:
        require_choice("TrainedTernary", "granularity", self.granularity, GRANULARITIES)
        if not 0.0 <= self.threshold < 1.0:
            raise ValueError(
                f"TrainedTernary needs a threshold in [0, 1), got {self.threshold!r}. The paper uses 0.05."
            )
        object.__setattr__(self, "limits", factor_limits("TrainedTernary", self.limits))

    @property
    def bits(self) -> float:
        """Two bits a weight with one scale; eight with two, whose codes are three numbers of int8."""
        return 2 if self.merged else 8

    @property
    def _factors(self) -> tuple[str, ...]:
        return ("factor",) if self.merged else ("positive", "negative")

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """A start (0: not known yet) and a trained factor for each scale."""
        size = scale_shape(shape, filter_axes, self.granularity)
        found = {_START + name: StateSpec(size) for name in self._factors}
        return found | {name: StateSpec(size, 1.0, trainable=True, limits=self.limits) for name in self._factors}

    def tuning_start(self, real: Tensor, filter_axes: Axes = ()) -> dict[str, Tensor]:
        """Scales of the weights as they are, and factors of 1."""
        real = as_float32(real)
        starts = self._starts(real, scale_axes(real, filter_axes, self.granularity))
        factors = zip(self._factors, starts.values(), strict=True)
        return starts | {name: ops.ones_like(start) for name, start in factors}

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """The starts at the first training step, if `calibrate` has not set them."""
        known = state[_START + self._factors[0]]
        found = self._starts(as_float32(real), thresholds.shared_axes(known.shape))
        return {name: ops.where(state[name] > 0, state[name], start) for name, start in found.items()}

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes in the layout of `real`; scale with size 1 along the reduced axes."""
        real = as_float32(real)
        axes = scale_axes(real, filter_axes, self.granularity)
        positive, negative = (ops.stop_gradient(scale) for scale in self._scales(real, state, axes))
        return self._encoded(self._signs(real, axes), positive, negative)

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """The three values, exactly those of `encode`, with the gradients of the class."""
        real, state = as_float32(real), state or {}
        axes = scale_axes(real, filter_axes, self.granularity)
        signs = ops.stop_gradient(self._signs(real, axes))
        positive, negative = self._scales(real, state, axes)
        on_grid = self._encoded(signs, positive, negative).real
        scales = _by_sign(signs, positive, negative, ops.zeros_like(real))
        factors = self._current(state)
        passes = ops.stop_gradient(_by_sign(signs, factors[0], factors[-1], ops.ones_like(real)))
        return straight_through(passes * real + signs * scales, on_grid)

    def _signs(self, real: Tensor, axes: Axes) -> Tensor:
        """-1, 0 or +1; NaN throughout a group that has one, which must show and not become zeros."""
        delta = self._delta(real, axes)
        return ops.where(ops.abs(real) > delta, ops.sign(real), 0.0 * delta)

    def _delta(self, real: Tensor, axes: Axes) -> Tensor:
        return self.threshold * ops.max(ops.abs(real), axis=axes, keepdims=True)

    def _starts(self, real: Tensor, axes: Axes) -> dict[str, Tensor]:
        delta = self._delta(real, axes)
        sides = (ops.abs(real) > delta,) if self.merged else (real > delta, real < -delta)
        means = (thresholds.masked_mean_magnitude(real, side, axes) for side in sides)
        return {_START + name: mean for name, mean in zip(self._factors, means, strict=True)}

    def _current(self, state: State) -> list[Any]:
        """The factors, within their limits."""
        return [learned.clip_closed(state.get(name, ops.ones(())), *self.limits) for name in self._factors]

    def _scales(self, real: Tensor, state: State, axes: Axes) -> tuple[Tensor, Tensor]:
        """W_p and W_n, with their gradients to the factors."""
        found = self._starts(ops.stop_gradient(real), axes)
        scales = []
        for (name, start), factor in zip(found.items(), self._current(state), strict=True):
            start = ops.where(state[name] > 0, state[name], start) if name in state else start
            slope = 1.0 / ops.where(start > 0, start, ops.ones_like(start))
            scales.append(straight_through(factor * ops.stop_gradient(slope), ops.stop_gradient(factor * start)))
        return scales[0], scales[-1]

    def _encoded(self, signs: Tensor, positive: Tensor, negative: Tensor) -> Quantized:
        if self.merged:
            return Quantized(signs, positive)
        limit = symmetric_limit(8)
        largest = ops.maximum(positive, negative)
        scale = largest * (1.0 / limit)
        safe = ops.where(scale > 0, scale, ops.ones_like(scale))
        sizes = _by_sign(signs, ops.round(positive / safe), ops.round(negative / safe), ops.zeros_like(signs))
        return Quantized(signs * ops.clip(sizes, 0, limit), scale)


def _by_sign(signs: Tensor, positive: Tensor, negative: Tensor, between: Tensor) -> Tensor:
    return ops.where(signs > 0, positive, ops.where(signs < 0, negative, between))
