"""Two other ways to train a threshold: LSQ's step size, TQT's logarithm with power-of-two steps."""

import dataclasses
import math
from typing import Any, ClassVar

from keras import ops

from keras_lowbit.numerics import learned, thresholds
from keras_lowbit.numerics.dynamic_fixed_point import ceil_power
from keras_lowbit.numerics.gradients import straight_through
from keras_lowbit.numerics.grids import symmetric_limit
from keras_lowbit.quantizers.base import Axes, State, Tensor, as_float32, factor_limits, register, require_choice
from keras_lowbit.quantizers.learned import LearnedQuantizer


@dataclasses.dataclass(frozen=True)
class _FollowsNoWeights(LearnedQuantizer):
    """Weights train along: T_0 stays what it was at the first training step."""

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """T_0 of weights at the first training step, if `calibrate` has not set it; for ranges what the base observes."""
        if self.for_activations:
            return super().observe(real, state)
        known, real = state["threshold"], as_float32(real)
        axes = thresholds.shared_axes(known.shape)
        return {"threshold": ops.where(known > 0, known, self.first_threshold(real, axes))}


@register
@dataclasses.dataclass(frozen=True)
class LearnedStep(_FollowsNoWeights):
    """LSQ: a trained step size, ``s = f * s_0``, ``codes = clip(round(x / s), -q, q)`` (0..2^bits - 1 unsigned).

    Gradients: dx 1 inside, 0 outside; ``ds = u - v`` inside (``v = x / s``, ``u = round(v)``), the code outside; times
    ``g = 1 / sqrt(n q)``. n: weights that share the step, or features of one sample.
    Trained: ``factor`` f, 1 at first, with gradient ``g ds / s_0``: under SGD s takes exactly LSQ's path; Adam's steps are
    relative to s_0, where LSQ's own would need another learning rate in each layer.
    base: `Uniform(bits, granularity=)` for weights, `ActivationRange(bits)` for activations.   signed: of activations; None
    asks the calibrated minimum.
    calibration: s_0 of weights, "mean" (LSQ: ``2 mean |w| / sqrt(q)``), "max" (``max |w| / q``) or "mse" (least squared error;
    without `calibrate` the mean). It is fixed by `calibrate` or at the first training step. Of activations s_0 is that
    of the calibrated range: calibrate before training.
    limits: of f; 0 gradient outside, and brought back.
    Raises ValueError for another base or calibration, and for limits that leave out 1.
    Esser et al. 2020, arXiv:1902.08153, section 2, eq. 1 to 3.   Differs: weights leave the code -q - 1 out, for LiteRT;
    s_0 of activations comes from calibration and not from ``2 mean |x| / sqrt(q)`` of the first batch.

    >>> lsq = klb.quantizers.LearnedStep(klb.quantizers.Uniform(4))
    >>> recipe = klb.recipes.get("int8").replace(name="lsq-4", plan=[klb.recipes.Rule(lsq)])
    """

    name: ClassVar[str] = "learned_step"
    calibration: str = "mean"
    limits: tuple[float, float] = (0.01, 100.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("LearnedStep", "calibration", self.calibration, ("mean", "max", "mse"))
        object.__setattr__(self, "limits", factor_limits("LearnedStep", self.limits))

    def kept_within(self) -> dict[str, tuple[float, float]]:
        """The limits of the factor."""
        return {"factor": self.limits}

    def first_threshold(self, real: Tensor, axes: Axes) -> Tensor:
        """``q s_0``."""
        if self.calibration == "max":
            return super().first_threshold(real, axes)
        return thresholds.mean_magnitude(real, axes) * (2.0 * math.sqrt(symmetric_limit(self.base.bits)))

    def tuning_start(self, real: Tensor, filter_axes: Axes = ()) -> dict[str, Tensor]:
        """``q s_0`` of the weights and f = 1."""
        start = super().tuning_start(real, filter_axes)
        if self.calibration == "mse":
            best = thresholds.mse_scale(as_float32(real), self.reduced(real, filter_axes), self.base.bits)
            start["threshold"] = best * float(symmetric_limit(self.base.bits))
        return start

    def step_size(self, real: Tensor | None, threshold: Tensor, signed: Any, state: State) -> Tensor:
        """``clip(f) * s_0`` with LSQ's gradient."""
        step_of_one = learned.step_of_one(self.base.bits, signed)
        first = threshold * step_of_one
        factor = learned.clip_closed(state["factor"], *self.limits)
        if real is None:
            return factor * first
        size = ops.cast(ops.size(real), "float32")
        groups = ops.shape(real)[0] if self.for_activations else math.prod(threshold.shape)
        members = ops.maximum(size / ops.maximum(ops.cast(groups, "float32"), 1.0), 1.0)
        slope = ops.sqrt(step_of_one / members) / ops.where(first > 0, first, ops.ones_like(first))
        return straight_through(factor * ops.stop_gradient(slope), factor * first)


@register
@dataclasses.dataclass(frozen=True)
class LearnedPowerOfTwo(_FollowsNoWeights):
    """TQT: a trained threshold in the log domain and power-of-two steps.

    ``T = T_0 * 2^t``, ``s = 2^ceil(log2 T) / 2^(bits-1)`` signed, ``/ 2^bits`` unsigned.
    base: `Uniform(bits, granularity=)` for weights, `ActivationRange(bits)` for activations.   signed: of activations; None
    asks the calibrated minimum.
    Trained: ``log2_factor`` t, 0 at first. Gradients: dx 1 inside, 0 outside; ``dt = s ln 2 (u - v)`` inside (``v = x / s``,
    ``u = round(v)``), ``s ln 2`` times the code outside; the ceil counts as the identity.
    T_0: ``max |w|`` of weights, at `calibrate` or the first training step; the calibrated range of activations.
    Jain et al. 2020, arXiv:1903.08066, section 3, eq. 1 to 8.   Differs: weights leave the code -2^(bits-1) out, for LiteRT.

    >>> tqt = klb.quantizers.LearnedPowerOfTwo(klb.quantizers.Uniform(8, granularity="tensor"))
    >>> sorted(tqt.state_specs((3, 3, 8, 16)))
    ['log2_factor', 'threshold']
    """

    name: ClassVar[str] = "learned_power_of_two"
    start_values: ClassVar[dict[str, float]] = {"log2_factor": 0.0}

    def step_size(self, real: Tensor | None, threshold: Tensor, signed: Any, state: State) -> Tensor:
        """The power of two, exactly, with the gradient of the class."""
        exponent = state["log2_factor"]
        top = ceil_power(ops.stop_gradient(threshold * ops.power(2.0, exponent)))
        step = ops.stop_gradient(top * ops.where(signed, 2.0 ** (1 - self.base.bits), 2.0**-self.base.bits))
        return straight_through(exponent * (math.log(2.0) * step), step)
