"""What quantizers with a trained grid share; `adjustable` and `learned_step` hold the quantizers themselves."""

import dataclasses
from typing import Any, ClassVar

from keras import ops

from keras_lowbit.numerics import learned
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import (
    WIDE,
    ActivationQuantizer,
    Axes,
    State,
    StateSpec,
    Tensor,
    as_float32,
    get,
    is_activation_quantizer,
    scale_axes,
    scale_shape,
)
from keras_lowbit.quantizers.uniform import ActivationRange, Uniform


@dataclasses.dataclass(frozen=True)
class LearnedQuantizer(ActivationQuantizer):
    """A symmetric grid whose threshold is a fixed T_0 moved by trained state; subclasses say how, in `step_size`.

    base: `Uniform` for weights (its granularity decides between one grid per channel and one per tensor) or
    `ActivationRange` for activations.   signed: of activations; None asks the calibrated minimum.
    T_0: of weights what `calibrate` found in them; until then that of the kernel as it is. Of activations the calibrated
    range. State: ``threshold`` (weights; 0 = not calibrated) or the base's minimum, maximum, count, frozen; and the
    trained variables, which `calibrate` puts back to their start.
    One class for weights and activations, since files name the method once: the base says which (`for_activations`).
    """

    base: Any = "uniform"
    signed: bool | None = dataclasses.field(default=None, kw_only=True)

    #: Trained variables and the values that leave T_0 as it is.
    start_values: ClassVar[dict[str, float]] = {"factor": 1.0}

    def __post_init__(self) -> None:
        name, base = type(self).__name__, get(self.base)
        if type(base) not in (Uniform, ActivationRange):
            raise ValueError(
                f"{name} needs a base Uniform(8) for weights or ActivationRange(8) for activations, got {base!r}."
            )
        if getattr(base, "bits", 0) == WIDE:
            raise ValueError(
                f"{name} got a range of 16 bits, whose ends cut nothing that a threshold could win back. Give activations "
                "ActivationRange(16) itself, in a recipe activations=16; thresholds of weights train beside it."
            )
        if isinstance(base, Uniform) and base.calibration != "max":
            raise ValueError(
                f"{name} trains the threshold, so its base needs calibration='max', got {base.calibration!r}. To start "
                "from least squares write calibration='mse'."
            )
        object.__setattr__(self, "base", base)
        if self.signed is False and not self.for_activations:
            raise ValueError(f"{name} got signed=False for weights: int8 weights are signed. Leave signed out.")

    @property
    def bits(self) -> float:
        """The bits of the base."""
        return self.base.bits

    @property
    def for_activations(self) -> bool:
        """Whether the base is a range of activations."""
        return is_activation_quantizer(self.base)

    @property
    def has_static_range(self) -> bool:
        """Whether the base range is given by the arguments."""
        return self.for_activations and self.base.has_static_range

    def widen_only(self) -> "LearnedQuantizer":
        """The same over a base whose range never shrinks."""
        return dataclasses.replace(self, base=self.base.widen_only())

    def with_room_below(self, room: float) -> "LearnedQuantizer":
        """The same over a base with room below."""
        return dataclasses.replace(self, base=self.base.with_room_below(room))

    def with_bits(self, bits: int) -> "LearnedQuantizer":
        """The same over a base of so many bits."""
        return dataclasses.replace(self, base=self.base.with_bits(bits))

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """What data decide, then what is trained: one value for each channel or tensor."""
        size = self.group_shape(shape, filter_axes)
        found = self.base.state_specs(shape) if self.for_activations else {"threshold": StateSpec(size)}
        limits = self.kept_within()
        trained = {
            name: StateSpec(size, value, trainable=True, limits=limits.get(name))
            for name, value in self.start_values.items()
        }
        return found | trained

    def kept_within(self) -> dict[str, tuple[float, float]]:
        """The closed intervals into which trained variables are brought back after each step of the optimizer."""
        return {}

    def state_from_min_max(self, minimum: float, maximum: float, count: int) -> dict[str, float]:
        """The range found, frozen since training moves it from now on, and the trained variables at their start."""
        found = self.base.state_from_min_max(minimum, maximum, count)
        return found | ({"frozen": 1.0} if found else {}) | self.start_values

    def tuning_start(self, real: Tensor, filter_axes: Axes = ()) -> dict[str, Tensor]:
        """T_0 of the weights and the trained variables at their start."""
        threshold = self.first_threshold(as_float32(real), self.reduced(real, filter_axes))
        return {"threshold": threshold} | {
            name: ops.full_like(threshold, value) for name, value in self.start_values.items()
        }

    def first_threshold(self, real: Tensor, axes: Axes) -> Tensor:
        """T_0 of weights that were not calibrated, over `axes`, kept as size 1: ``max |w|``."""
        return ops.max(ops.abs(real), axis=axes, keepdims=True)

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """Whatever the base observes: the moving average of a range that is neither calibrated nor frozen."""
        return self.base.observe(real, state)

    def step_size(self, real: Tensor | None, threshold: Tensor, signed: Any, state: State) -> Tensor:
        """Size of one step, with its gradient to the trained variables.

        real: the tensor, for its size; None if there is none.   threshold: T_0 without gradient, > 0 or, for channels of
        zeros, 0.   signed: a boolean, of the backend where data decide.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define step_size().")

    def learned_grid(self, real: Tensor | None, state: State, filter_axes: Axes = ()) -> learned.LearnedGrid:
        """The grid of the current state. real: the tensor; None for that of a range."""
        signed: Any = True
        if self.for_activations:
            minimum, maximum = self.base.ends(state)
            signed = minimum < 0 if self.signed is None else self.signed
            threshold = learned.largest_magnitude(minimum, maximum, signed)
            threshold = ops.where(threshold > 0, threshold, ops.ones_like(threshold))
        else:
            found = self.first_threshold(ops.stop_gradient(real), self.reduced(real, filter_axes))
            threshold = ops.where(state["threshold"] > 0, state["threshold"], found)
        scale = self.step_size(real, threshold, signed, state)
        return learned.symmetric_grid(scale, self.base.bits, signed, full=self.for_activations)

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes of `real` on the current grid."""
        real = as_float32(real)
        return self.learned_grid(real, state, filter_axes).encode(real)

    def grid(self, state: State) -> tuple[Tensor, Tensor]:
        """Scale and zero point (scalars) of the current range."""
        if not self.for_activations:
            raise NotImplementedError(f"{self!r} quantizes weights; it is not the range of an activation.")
        current = self.learned_grid(None, state)
        return current.scale, current.zero_point

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """Values on the grid; of activations `real` itself before there is a range."""
        real, state = as_float32(real), state or {}
        known = state["count"] > 0 if self.for_activations and not self.has_static_range else True
        return self.learned_grid(real, state, filter_axes)(real, known)

    def reduced(self, real: Tensor, filter_axes: Axes) -> Axes:
        """The axes of weights that share one grid."""
        return scale_axes(real, filter_axes, self.base.granularity)

    def group_shape(self, shape: tuple[int, ...], filter_axes: Axes) -> tuple[int, ...]:
        """The shape of one value for each grid."""
        if self.for_activations:
            return ()
        return scale_shape(shape, filter_axes, self.base.granularity)
