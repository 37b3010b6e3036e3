"""FAT, fast adjustable threshold: grids whose ends are scaled by trained factors."""

import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_lowbit.numerics import learned, thresholds
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import (
    Axes,
    Quantizer,
    State,
    StateSpec,
    Tensor,
    as_float32,
    get,
    register,
    require_choice,
)
from keras_lowbit.quantizers.uniform import ActivationRange, Uniform


@dataclasses.dataclass(frozen=True)
class LearnedQuantizer(Quantizer):
    """What quantizers with a trained grid share: a base that says what is quantized, and the pass before calibration.

    base: `Uniform` for weights (its granularity decides between one grid per filter and one per tensor) or
    `ActivationRange` for activations. Subclasses define `learned_grid`.
    """

    base: Any = "uniform"

    def __post_init__(self) -> None:
        name, base = type(self).__name__, get(self.base)
        if not isinstance(base, (Uniform, ActivationRange)):
            raise ValueError(
                f"{name} needs a base Uniform(8) for weights or ActivationRange(8) for activations, got {self.base!r}."
            )
        if isinstance(base, Uniform) and base.calibration != "max":
            raise ValueError(
                f"{name} starts from max |w|, so its base needs calibration='max', got {base.calibration!r}. "
                "To start from least squares write start='mse'."
            )
        object.__setattr__(self, "base", base)

    @property
    def bits(self) -> float:
        """The bits of the base."""
        return self.base.bits

    @property
    def is_range(self) -> bool:
        """Whether the base is."""
        return self.base.is_range

    @property
    def fixed(self) -> bool:
        """Whether the base range is given by the arguments."""
        return self.base.fixed

    def held(self) -> Quantizer:
        """The same over a base that only widens."""
        return dataclasses.replace(self, base=self.base.held())

    def learned_grid(self, real: Tensor | None, state: State, filter_axes: Axes = ()) -> learned.LearnedGrid:
        """The grid of the current state. real: the weights; None for activations, whose range is state."""
        raise NotImplementedError(f"{type(self).__name__} does not define learned_grid().")

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """Whatever the base observes: the moving average of a range that is neither calibrated nor frozen."""
        return self.base.observe(real, state)

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes of `real` on the current grid."""
        real = as_float32(real)
        return self.learned_grid(real, state, filter_axes).encode(real)

    def grid(self, state: State) -> tuple[Tensor, Tensor]:
        """Scale and zero point (scalars) of the current range."""
        if not self.is_range:
            return super().grid(state)
        current = self.learned_grid(None, state)
        return current.scale, current.zero_point

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """Values on the grid; of activations `real` itself before there is a range."""
        real, state = as_float32(real), state or {}
        on_grid = self.learned_grid(real, state, filter_axes)(real)
        if not self.is_range or self.fixed:
            return on_grid
        return ops.where(state["count"] > 0, on_grid, real)

    def _axes(self, real: Tensor, filter_axes: Axes) -> Axes:
        return thresholds.reduced_axes(len(real.shape), filter_axes if self.base.granularity == "filter" else ())

    def _shape(self, shape: tuple[int, ...], filter_axes: Axes) -> tuple[int, ...]:
        if self.is_range:
            return ()
        return thresholds.per_filter_shape(shape, filter_axes if self.base.granularity == "filter" else ())


@register
@dataclasses.dataclass(frozen=True)
class AdjustableThreshold(LearnedQuantizer):
    """FAT: the ends of a plain grid, scaled by trained factors.

    symmetric: ``T = clip(a, *limits) * T_max``, ``s = T / q``, ``codes = clip(round(x / s), -q, q)``;
    ``q = 2^(bits-1) - 1`` signed, ``2^bits - 1`` (codes from 0) unsigned. Trainable state: factor a, 1 at first.
    asymmetric: ``L = T_l + clip(a_L, *left_limits) * R``, ``W = clip(a_R, *limits) * R``, ``R = T_r - T_l``,
    ``s = W / (2^bits - 1)``, clamped so that ``L <= 0 <= L + W``. Trainable state: left a_L, 0 at first; width a_R, 1.
    T_max, or T_l and T_r widened to hold 0: of weights from the kernel as it is at every call (FAT freezes the weights, so
    they are constants, and no assignment can leave them stale); of activations what `calibrate` found.
    Gradients (rounding residuals held fixed, ``u = round(v)``, ``v = x / s``): dx 1 inside, 0 outside; symmetric:
    ``dT = (u - v) / q`` inside, the limit ``+-1`` outside; asymmetric: inside ``dL = 0``, ``dW = (u - v) / (2^bits - 1)``;
    outside ``dL = 1``, ``dW = (c - L / s) / (2^bits - 1)`` with c the code reached, counted from that of 0.
    Factors: times T_max or R; 0 where a factor lies outside its limits, or where the clamp acts.
    base: Uniform(bits, granularity="filter" or "tensor") for weights, ActivationRange(bits) for activations.
    limits: of a and a_R.   left_limits: of a_L; an unsigned range (T_l = 0) keeps L = 0.
    signed: of activations; None asks the calibrated minimum.   project: bring factors back into their limits after each
    step of the optimizer, where the gradient is not 0.
    start: where `calibrate` starts the factor of weights: at 1 ("max") or at least squared error ("mse").
    Asymmetric weights train and do not export: LiteRT holds weights with zero point 0 only.
    Goncharenko et al. 2018, arXiv:1812.07872.   Differs: the printed S of signed tensors would saturate half the range; an
    unsigned left end stays 0; signed symmetric activations use the code -q - 1 too, since int8 arithmetic reaches it.
    """

    name: ClassVar[str] = "adjustable_threshold"
    mode: str = "symmetric"
    limits: tuple[float, float] = (0.5, 1.0)
    left_limits: tuple[float, float] = (-0.2, 0.4)
    signed: bool | None = None
    start: str = "max"
    project: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("AdjustableThreshold", "mode", self.mode, ("symmetric", "asymmetric"))
        require_choice("AdjustableThreshold", "start", self.start, ("max", "mse"))
        object.__setattr__(self, "limits", tuple(self.limits))
        object.__setattr__(self, "left_limits", tuple(self.left_limits))
        low, high = self.limits
        if not 0 < low <= 1 <= high:
            raise ValueError(
                f"AdjustableThreshold needs limits with 0 < low <= 1 <= high, got {self.limits}; FAT uses (0.5, 1.0)."
            )
        low, high = self.left_limits
        if not -1 < low <= 0 <= high < 1:
            raise ValueError(
                f"AdjustableThreshold needs left_limits with -1 < low <= 0 <= high < 1, got {self.left_limits}. "
                "Usual: (-0.2, 0.4)."
            )
        if self.signed is False and not self.is_range:
            raise ValueError(
                "AdjustableThreshold got signed=False for weights: int8 weights are signed. Leave signed out."
            )

    @property
    def symmetric(self) -> bool:
        """Whether one factor scales both ends."""
        return self.mode == "symmetric"

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """The base's state and the trained factors, one for each filter or tensor."""
        size = self._shape(shape, filter_axes)
        limits, left = (self.limits, self.left_limits) if self.project else (None, None)
        if self.symmetric:
            factors = {"factor": StateSpec(size, 1.0, trainable=True, limits=limits)}
        else:
            factors = {
                "left": StateSpec(size, 0.0, trainable=True, limits=left),
                "width": StateSpec(size, 1.0, trainable=True, limits=limits),
            }
        return self.base.state_specs(shape, filter_axes) | factors

    def calibrated(self, minimum: float, maximum: float, count: int) -> dict[str, float]:
        """The range found, frozen, since training moves the factors now; factors that change nothing."""
        found = self.base.calibrated(minimum, maximum, count)
        found |= {"frozen": 1.0} if found else {}
        return found | ({"factor": 1.0} if self.symmetric else {"left": 0.0, "width": 1.0})

    def tuning_start(self, real: Tensor, filter_axes: Axes = ()) -> dict[str, Tensor]:
        """Factors of weights that change nothing, or with start="mse" those of least squared error within the limits."""
        ones = ops.ones(self._shape(tuple(real.shape), filter_axes))
        if not self.symmetric:
            return {"left": ops.zeros_like(ones), "width": ones}
        if self.start == "max":
            return {"factor": ones}
        real, axes = as_float32(real), self._axes(real, filter_axes)
        largest = thresholds.max_scale(real, axes, self.base.bits)
        best = thresholds.mse_scale(real, axes, self.base.bits) / ops.where(largest > 0, largest, 1.0)
        return {"factor": ops.where(largest > 0, ops.clip(best, *self.limits), ones)}

    def learned_grid(self, real: Tensor | None, state: State, filter_axes: Axes = ()) -> learned.LearnedGrid:
        """The grid between the scaled ends."""
        minimum, maximum = self._ends(real, state, filter_axes)
        if not self.symmetric:
            limits = (self.left_limits, self.limits)
            ends = learned.moved_ends(minimum, maximum, state["left"], state["width"], *limits, self.signed)
            return learned.affine_grid(*ends, self.base.bits)
        signed = True if not self.is_range else (minimum < 0 if self.signed is None else self.signed)
        largest = learned.largest_magnitude(minimum, maximum, signed)
        if self.is_range:
            largest = ops.where(largest > 0, largest, ops.ones_like(largest))
        threshold = learned.clip_closed(state["factor"], *self.limits) * largest
        return learned.symmetric_grid(threshold, self.base.bits, signed, full=self.is_range)

    def _ends(self, real: Tensor | None, state: State, filter_axes: Axes) -> tuple[Tensor, Tensor]:
        if self.is_range:
            return self.base.ends(state)
        weights, axes = ops.stop_gradient(real), self._axes(real, filter_axes)
        return ops.min(weights, axis=axes, keepdims=True), ops.max(weights, axis=axes, keepdims=True)
