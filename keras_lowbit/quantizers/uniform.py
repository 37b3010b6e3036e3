"""Evenly spaced grids: `Uniform` for weights (symmetric), `ActivationRange` for activations (asymmetric)."""

import dataclasses
from typing import ClassVar

from keras import ops

from keras_lowbit.numerics import grids, thresholds
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import (
    GRANULARITIES,
    WIDE,
    ActivationQuantizer,
    Axes,
    Quantizer,
    State,
    StateSpec,
    Tensor,
    as_float32,
    register,
    require_activation_bits,
    require_bits,
    require_choice,
    scale_axes,
)


@register
@dataclasses.dataclass(frozen=True)
class Uniform(Quantizer):
    """Symmetric, narrow-range weights: ``codes = clip(round(w / s), -n, n)``, ``n = 2^(bits-1) - 1``.

    Gradient: 1 inside ``|w| <= n s``, 0 where the weight saturates (never with calibration="max").
    bits: 2 to 8.   granularity: one s per "channel" or per "tensor".
    calibration: s from the "max" of |w|, from a "percentile" of |w| (in 0..100), or of least squared
    error ("mse").
    s is the size of one step, in the units of w; 0 for a group of zeros, whose codes are 0.
    percentile: in (0, 100], for calibration="percentile".
    Raises ValueError for other bits or choices, and for a percentile out of range.
    Jacob et al. 2018, arXiv:1712.05877, section 2; narrow range as the LiteRT int8 specification asks.

    >>> klb.quantizers.get({"name": "uniform", "bits": 4})
    Uniform(bits=4, granularity='channel', calibration='max', percentile=99.99)
    """

    name: ClassVar[str] = "uniform"
    bits: int = 8  # a field here, a property in the base
    granularity: str = "channel"
    calibration: str = "max"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        require_bits("Uniform", self.bits, "For -1/0/+1 weights use Ternary, for signs use Binary.")
        require_choice("Uniform", "granularity", self.granularity, GRANULARITIES)
        require_choice("Uniform", "calibration", self.calibration, ("max", "percentile", "mse"))
        if not 0 < self.percentile <= 100:
            raise ValueError(f"Uniform needs a percentile in (0, 100], got {self.percentile!r}; usual is 99.99.")

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes in [-n, n] in the layout of `real`; scale with size 1 along the reduced axes."""
        real = as_float32(real)
        axes = scale_axes(real, filter_axes, self.granularity)
        if self.calibration == "max":
            scale = thresholds.max_scale(real, axes, self.bits)
        elif self.calibration == "percentile":
            scale = thresholds.percentile_scale(real, axes, self.bits, self.percentile)
        else:
            scale = thresholds.mse_scale(ops.stop_gradient(real), axes, self.bits)
        return Quantized(self.snap(real, scale), scale)

    def snap(self, real: Tensor, scale: Tensor) -> Tensor:
        """``clip(round(w / s), -n, n)``, 0 where the scale is 0."""
        return grids.encode_symmetric(real, scale, self.bits)

    def gradient_mask(self, real: Tensor, quantized: Quantized) -> Tensor | None:
        """1 inside the range, 0 outside; None (all ones) when nothing can saturate."""
        if self.calibration == "max":
            return None
        return ops.abs(real) <= quantized.scale * grids.symmetric_limit(self.bits)


@register
@dataclasses.dataclass(frozen=True)
class ActivationRange(ActivationQuantizer):
    """Activations with an exact 0.0: ``codes = clip(round(x / s) + z, -2^(b-1), 2^(b-1) - 1)``.

    Up to 8 bits asymmetric: ``s = (max - min) / (2^bits - 1)``, z the code of zero. 16 bits, for LiteRT's 16x8 mode, symmetric:
    ``s = max(-min, max) / 32767``, ``z = 0``. float32 holds every such code; it rounds x / s by up to 2^-9 of a step, so that
    a value that close to the middle of two codes may get either.
    Gradient: 1 where x lies on the grid's range, else 0.
    The range is an exponential moving average that starts from the first training batch, or from what `calibrate`
    found (``range <- m * range + (1 - m) * batch range``), or it is fixed by `minimum` and `maximum`. Until a range
    is known the values pass through as they are.
    ``m = min(momentum, (1 + count) / (10 + count))`` with `count` batches seen, and 0 for the first one: a young
    average follows the batches, so that few steps are enough for a range that fits (TensorFlow's
    ExponentialMovingAverage(num_updates) warms up the same way).
    bits: 2 to 8, or 16.   momentum: in [0, 1), of an average that has seen many batches (0.99: 891 of them).
    minimum, maximum: both or neither, in the units of x.
    room_below: by how much a range of data goes on below the smallest value, in the units of x: for a code that means "less
    than all of them", as a mask in front of a softmax needs.
    hold: the average only ever widens the range. For a range that several tensors share: with plain averaging
    the narrow ones would cut the wide ones off.
    Raises ValueError for other bits or momentum, for one of minimum and maximum alone, unless minimum < maximum, and for
    room_below < 0.
    State: minimum, maximum; count (batches seen, 0 = no range yet); frozen (1: `fit` leaves the range alone, as it does in
    layers with ``trainable=False``).
    Jacob et al. 2018, arXiv:1712.05877, section 3.1; 16 bits: LiteRT's quantization specification.

    >>> six = klb.quantizers.ActivationRange(minimum=0.0, maximum=6.0)  # a fixed range
    >>> len(np.unique(klb.layers.QuantizerHost(six)(np.linspace(-1, 7, 1000, dtype="float32"))))
    256
    """

    name: ClassVar[str] = "activation"
    bits: int = 8  # a field here, a property in the base
    momentum: float = 0.99
    minimum: float | None = None
    maximum: float | None = None
    hold: bool = False
    room_below: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        require_activation_bits("ActivationRange", self.bits)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"ActivationRange needs momentum in [0, 1), got {self.momentum!r}; usual is 0.99.")
        if (self.minimum is None) != (self.maximum is None):
            raise ValueError(
                f"ActivationRange got minimum={self.minimum}, maximum={self.maximum}. Give both for a fixed "
                "range, neither for one that is learned from data."
            )
        if self.minimum is not None and self.maximum is not None and not self.minimum < self.maximum:
            raise ValueError(f"ActivationRange needs minimum < maximum, got {self.minimum} and {self.maximum}.")
        if not 0 <= self.room_below < float("inf"):
            raise ValueError(f"ActivationRange needs room_below of at least 0, got {self.room_below!r}; usual is 0.")

    @property
    def has_static_range(self) -> bool:
        """Whether the range is given by the arguments and not by data."""
        return self.minimum is not None

    def widen_only(self) -> "ActivationRange":
        """The same with hold=True."""
        return dataclasses.replace(self, hold=True)

    def with_room_below(self, room: float) -> "ActivationRange":
        """The same with more room below, if data decide the range."""
        return self if self.has_static_range else dataclasses.replace(self, room_below=room)

    def state_from_min_max(self, minimum: float, maximum: float, count: int) -> dict[str, float]:
        """The range found; `fit` goes on from it unless it is frozen. Nothing for a static one."""
        return {} if self.has_static_range else {"minimum": minimum, "maximum": maximum, "count": float(count)}

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """Four scalars, none when the range is static."""
        names = () if self.has_static_range else ("minimum", "maximum", "count", "frozen")
        return {name: StateSpec(setting=name == "frozen") for name in names}

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """The moving average after one more batch; unchanged where frozen.

        A batch that is empty or holds a NaN or an infinity changes nothing: it would spoil the range for good.
        """
        if self.has_static_range:
            return {}
        real = as_float32(real)
        # A replica may get an empty last batch; min and max of nothing are an error unless they have a start.
        batch_low = ops.min(real, initial=float("inf"))
        batch_high = ops.max(real, initial=-float("inf"))
        count = state["count"]
        keep = ops.where(count > 0, ops.minimum(self.momentum, (1.0 + count) / (10.0 + count)), 0.0)
        low = keep * state["minimum"] + (1.0 - keep) * batch_low
        high = keep * state["maximum"] + (1.0 - keep) * batch_high
        if self.hold:
            started = count > 0
            low = ops.where(started, ops.minimum(low, state["minimum"]), low)
            high = ops.where(started, ops.maximum(high, state["maximum"]), high)
        new = {"minimum": low, "maximum": high, "count": count + 1.0}
        # Minimum and maximum may skip a NaN; the sum does not, and an overflow there only skips a batch.
        usable = ops.logical_and(ops.isfinite(batch_high - batch_low), ops.isfinite(ops.sum(real)))
        stays = ops.logical_or(state["frozen"] > 0, ops.logical_not(usable))
        return {key: ops.where(stays, state[key], value) for key, value in new.items()}

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes of `real` with the scalar scale and zero point of the current range."""
        scale, zero_point = self.grid(state)
        return Quantized(grids.encode_affine(as_float32(real), scale, zero_point, self.bits), scale, zero_point)

    def grid(self, state: State) -> tuple[Tensor, Tensor]:
        """Scale and zero point (scalars) of the current range."""
        if self.bits == WIDE:
            scale = grids.symmetric_scale(*self.ends(state), self.bits)
            return scale, ops.zeros_like(scale)
        return grids.affine_parameters(*self.ends(state), self.bits)

    def ends(self, state: State) -> tuple[Tensor, Tensor]:
        """Minimum and maximum (scalars) of the current range."""
        if self.has_static_range:
            return ops.convert_to_tensor(self.minimum, "float32"), ops.convert_to_tensor(self.maximum, "float32")
        return state["minimum"] - self.room_below, state["maximum"]

    def gradient_mask(self, real: Tensor, quantized: Quantized) -> Tensor | None:
        """1 where x lies between the smallest and the largest real on the grid."""
        lowest = -(2 ** (self.bits - 1))
        low = (lowest - quantized.zero_point) * quantized.scale
        high = (lowest + 2**self.bits - 1 - quantized.zero_point) * quantized.scale
        return ops.logical_and(real >= low, real <= high)

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """Values on the grid once there is a range, `real` itself before."""
        real = as_float32(real)
        on_grid = super().__call__(real, state, filter_axes, training)
        if self.has_static_range:
            return on_grid
        return ops.where((state or {})["count"] > 0, on_grid, real)
