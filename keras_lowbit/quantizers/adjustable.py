"""FAT, fast adjustable threshold: grids whose ends are scaled by trained factors."""

import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_lowbit.numerics import learned, thresholds
from keras_lowbit.quantizers.base import (
    Axes,
    State,
    StateSpec,
    Tensor,
    as_float32,
    factor_limits,
    register,
    require_choice,
)
from keras_lowbit.quantizers.learned import LearnedQuantizer


@register
@dataclasses.dataclass(frozen=True)
class AdjustableThreshold(LearnedQuantizer):
    """FAT: the ends of a plain grid, scaled by trained factors.

    symmetric: ``T = clip(a, *limits) * T_max``, ``s = T / q``, ``codes = clip(round(x / s), -q, q)``;
    ``q = 2^(bits-1) - 1`` signed, ``2^bits - 1`` (codes from 0) unsigned. Trained: ``factor`` a, 1 at first.
    asymmetric: ``L = T_l + clip(a_L, *left_limits) * R``, ``W = clip(a_R, *limits) * R``, ``R = T_r - T_l``,
    ``s = W / (2^bits - 1)``, clamped so that ``L <= 0 <= L + W``. Trained: ``left`` a_L, 0 at first; ``width`` a_R, 1.
    T_max, or T_l and T_r widened to hold 0: of weights what `calibrate` found in them, before that the kernel's as it is
    (state ``threshold``, or ``minimum`` and ``maximum``; 0 = not calibrated); of activations the calibrated range.
    Gradients, rounding residuals held fixed (``v = x / s``, ``u = round(v)``): dx 1 inside, 0 outside. Symmetric:
    ``dT = (u - v) / q`` inside, the sign of x outside. Asymmetric, ``k = 2^bits - 1``: inside ``dL = 0``,
    ``dW = (u - v) / k``; outside ``dL = 1``, ``dW = (u_c - L / s) / k``, u_c the u of the end reached.
    Then times T_max or R; 0 where a factor lies outside its limits, or where the clamp acts.
    base: Uniform(bits, granularity="channel" or "tensor") for weights, ActivationRange(bits) for activations.
    mode: "symmetric" or "asymmetric".   limits: of a and a_R.   left_limits: of a_L; an unsigned range keeps L = 0.
    calibration: `calibrate` starts the factor of weights at 1 ("max") or at least squared error ("mse").
    project: bring factors back into their limits after each step of the optimizer: outside, nothing moves them back.
    signed: of activations; None asks the calibrated minimum.
    Asymmetric weights train but do not export: LiteRT's int8 weights have zero point 0.
    Raises ValueError for another base, mode or calibration, and for limits that leave out the start of their factor.
    Goncharenko et al. 2018, arXiv:1812.07872.   Differs: the S printed for signed tensors would cut half the range off; an
    unsigned left end stays 0, without which 0.0 has no code; signed symmetric activations use the code -q - 1 too, to
    which int8 arithmetic saturates.

    >>> fat = klb.quantizers.AdjustableThreshold(klb.quantizers.Uniform(4), calibration="mse")
    >>> sorted(fat.state_specs((3, 3, 8, 16), filter_axes=(-1,)))
    ['factor', 'threshold']
    """

    name: ClassVar[str] = "adjustable_threshold"
    mode: str = "symmetric"
    limits: tuple[float, float] = (0.5, 1.0)
    left_limits: tuple[float, float] = (-0.2, 0.4)
    calibration: str = "max"
    project: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("AdjustableThreshold", "mode", self.mode, ("symmetric", "asymmetric"))
        require_choice("AdjustableThreshold", "calibration", self.calibration, ("max", "mse"))
        hint = " The paper has (0.5, 1.0), its published code (0.5, 1.3)."
        object.__setattr__(self, "limits", factor_limits("AdjustableThreshold", self.limits, hint))
        object.__setattr__(self, "left_limits", tuple(float(value) for value in self.left_limits))
        if len(self.left_limits) != 2 or not -1 < self.left_limits[0] <= 0 <= self.left_limits[1] < 1:
            raise ValueError(
                f"AdjustableThreshold needs left_limits (low, high) with -1 < low <= 0 <= high < 1, got "
                f"{self.left_limits}. The paper has (-0.2, 0.4)."
            )
        if self.calibration == "mse" and (self.for_activations or self.mode != "symmetric"):
            raise ValueError(
                "AdjustableThreshold got calibration='mse', which is for symmetric weights. For activations call "
                "calibrate(calibration='mse')."
            )

    @property
    def start_values(self) -> dict[str, float]:  # type: ignore[override]
        """The factors that leave the ends where they are."""
        return {"factor": 1.0} if self.mode == "symmetric" else {"left": 0.0, "width": 1.0}

    def kept_within(self) -> dict[str, tuple[float, float]]:
        """The limits, unless `project` is off."""
        limits = {"factor": self.limits, "left": self.left_limits, "width": self.limits}
        return limits if self.project else {}

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """What data decide (see the class), then the factors: one value for each channel or tensor."""
        specs = super().state_specs(shape, filter_axes)
        if self.mode == "symmetric" or self.for_activations:
            return specs
        specs.pop("threshold")
        size = self.group_shape(shape, filter_axes)
        return {"minimum": StateSpec(size), "maximum": StateSpec(size)} | specs

    def tuning_start(self, real: Tensor, filter_axes: Axes = ()) -> dict[str, Tensor]:
        """The ends of the weights; factors that leave them, or with calibration="mse" those of least squared error."""
        start = super().tuning_start(real, filter_axes)
        real, axes = as_float32(real), self.reduced(real, filter_axes)
        if self.mode == "asymmetric":
            del start["threshold"]
            return start | dict(zip(("minimum", "maximum"), _extremes(real, axes), strict=True))
        if self.calibration == "mse":
            largest = thresholds.max_scale(real, axes, self.base.bits)
            best = thresholds.mse_scale(real, axes, self.base.bits) / ops.where(largest > 0, largest, 1.0)
            start["factor"] = ops.where(largest > 0, ops.clip(best, *self.limits), 1.0)
        return start

    def step_size(self, real: Tensor | None, threshold: Tensor, signed: Any, state: State) -> Tensor:
        """``clip(a) * T_max / q``."""
        return learned.clip_closed(state["factor"], *self.limits) * (
            threshold * learned.step_of_one(self.base.bits, signed)
        )

    def learned_grid(self, real: Tensor | None, state: State, filter_axes: Axes = ()) -> learned.LearnedGrid:
        """The grid between the scaled ends. real: the tensor; None for that of a range."""
        if self.mode == "symmetric":
            return super().learned_grid(real, state, filter_axes)
        if self.for_activations:
            minimum, maximum = self.base.ends(state)
        else:
            low, high = _extremes(ops.stop_gradient(real), self.reduced(real, filter_axes))
            known = state["maximum"] > state["minimum"]
            minimum, maximum = ops.where(known, state["minimum"], low), ops.where(known, state["maximum"], high)
        factors, limits = (state["left"], state["width"]), (self.left_limits, self.limits)
        ends = learned.moved_ends(minimum, maximum, *factors, *limits, signed=self.signed)
        return learned.affine_grid(*ends, self.base.bits)


def _extremes(real: Any, axes: Axes) -> tuple[Any, Any]:
    return ops.min(real, axis=axes, keepdims=True), ops.max(real, axis=axes, keepdims=True)
