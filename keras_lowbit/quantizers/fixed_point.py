"""Dynamic fixed point: power-of-two steps for weights and for activations."""

import dataclasses
from typing import ClassVar

from keras import ops

from keras_lowbit.numerics import dynamic_fixed_point as dfp
from keras_lowbit.numerics.grids import Quantized, symmetric_limit
from keras_lowbit.quantizers.base import (
    GRANULARITIES,
    Axes,
    Quantizer,
    State,
    StateSpec,
    Tensor,
    as_float32,
    register,
    require_bits,
    require_choice,
    scale_axes,
)
from keras_lowbit.quantizers.uniform import ActivationRange


@register
@dataclasses.dataclass(frozen=True)
class DynamicFixedPoint(ActivationRange):
    """Integers that share an exponent: ``q = 2^E * clip(round(x / 2^E))``, for kernels and for activations.

    ``Emax = floor(log2(max |x|))``. Signed, P bits: ``E = Emax - (P - 2)``, codes in ``+-(2^(P-1) - 1)``, zero point 0.
    Unsigned: ``E = Emax - (P - 1)``, P magnitude bits, stored with zero point ``-2^(P-1)`` (8 bits: -128). A tensor of
    zeros has E = 0.

    On a kernel it has no state and E follows the weights: one exponent per "channel" or per "tensor" (`granularity`; the
    paper has one per tensor). Gradient: identity.
    On activations it is an `ActivationRange` whose scale is a power of two: signed if the range reaches below 0. The
    exponent is what `calibrate` finds and stays there while `fit` runs (its `frozen` is 1; `freeze_ranges(model, False)`
    lets it follow the data); without `calibrate` it follows the moving average. Signed activations may use the code
    -2^(P-1), to which int8 arithmetic saturates. Gradient: 1 inside the grid, 0 outside.
    One class for both, since files and recipes name the format once: a tensor with `filter_axes` is a kernel.
    bits: 2 to 8.   signed: None decides by the data; kernels are always signed.
    momentum, minimum, maximum, hold, room_below: of activations, as in `ActivationRange`.
    granularity: of kernels: an exponent for each "channel" or one for the "tensor".
    Raises ValueError for other bits or choices, and for signed=False with a minimum below 0.
    Mellempudi et al. 2017, arXiv:1701.08978 (reconstructed, see the study), with the formulas of arXiv:1802.00930.

    >>> host = klb.layers.QuantizerHost(klb.quantizers.DynamicFixedPoint(bits=4), filter_axes=(-1,))
    >>> host(np.array([[-1.75], [0.3], [1.0]], "float32")).numpy().ravel()  # steps of 1/4
    array([-1.75,  0.25,  1.  ], dtype=float32)
    """

    name: ClassVar[str] = "dynamic_fixed_point"
    granularity: str = "tensor"
    signed: bool | None = None

    def __post_init__(self) -> None:
        require_bits("DynamicFixedPoint", self.bits, "For 16-bit activations use ActivationRange(16).")
        super().__post_init__()
        require_choice("DynamicFixedPoint", "granularity", self.granularity, GRANULARITIES)
        if self.signed is False and self.minimum is not None and self.minimum < 0:
            raise ValueError(f"DynamicFixedPoint got signed=False and minimum={self.minimum}. Leave signed out.")

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """None for a kernel (it has filter axes), those of `ActivationRange` for anything else."""
        return {} if filter_axes else super().state_specs(shape)

    def state_from_min_max(self, minimum: float, maximum: float, count: int) -> dict[str, float]:
        """The range found, frozen: exponents are fixed at calibration."""
        found = super().state_from_min_max(minimum, maximum, count)
        return found | {"frozen": 1.0} if "frozen" in self.state_specs(()) else found

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes in the layout of `real`, scale 2^E and zero point; of the known range, or of `real` itself."""
        real = as_float32(real)
        if self._knows_range(state, filter_axes):
            return super().encode(real, state)
        axes = scale_axes(real, filter_axes, self.granularity)
        largest = ops.max(ops.abs(real), axis=axes, keepdims=True)
        if filter_axes or self.signed:
            return self._symmetric(real, dfp.shared_step(largest, self.bits - 1))
        low = ops.min(real, axis=axes, keepdims=True)
        step, zero_point = self._affine(low, largest)
        codes = ops.clip(ops.round(real / step) + zero_point, self._lowest(low), 2 ** (self.bits - 1) - 1)
        return Quantized(codes, step, zero_point)

    def grid(self, state: State) -> tuple[Tensor, Tensor]:
        """Scale 2^E and zero point (scalars) of the known range."""
        low, high = self.ends(state)
        return self._affine(low, ops.maximum(ops.abs(low), ops.abs(high)))

    def observe(self, real: Tensor, state: State) -> dict[str, Tensor]:
        """The moving average of an activation after one more batch; nothing for a kernel."""
        return super().observe(real, state) if "count" in state else {}

    def snap(self, real: Tensor, scale: Tensor) -> Tensor:
        """Signed codes on the grid of a given scale."""
        return self._symmetric(real, scale).codes

    def gradient_mask(self, real: Tensor, quantized: Quantized) -> Tensor | None:
        """1 inside an activation's grid; None (all ones) for weights."""
        if isinstance(quantized.zero_point, int):
            return None
        return super().gradient_mask(real, quantized)

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """Values on the grid; an activation passes as it is until its range is known."""
        if self._knows_range(state or {}, filter_axes):
            return super().__call__(real, state, filter_axes, training)
        return Quantizer.__call__(self, as_float32(real), state, filter_axes, training)

    def _knows_range(self, state: State, filter_axes: Axes) -> bool:
        return not filter_axes and (self.has_static_range or "count" in state)

    def _symmetric(self, real: Tensor, step: Tensor) -> Quantized:
        limit = symmetric_limit(self.bits)
        return Quantized(dfp.encode_shared(real, step, -limit, limit), step)

    def _affine(self, low: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """Step and zero point for values from `low` with that largest magnitude."""
        signed, lowest = self._is_signed(low), -float(2 ** (self.bits - 1))
        step = ops.where(signed, dfp.shared_step(largest, self.bits - 1), dfp.shared_step(largest, self.bits))
        return step, ops.where(signed, ops.zeros_like(step), ops.full_like(step, lowest))

    def _is_signed(self, low: Tensor) -> Tensor:
        if self.signed is None:
            return low < 0
        return ops.full_like(low, self.signed, dtype="bool")

    def _lowest(self, low: Tensor) -> Tensor:
        """The paper's range: symmetric where signed."""
        limit = symmetric_limit(self.bits)
        return ops.where(self._is_signed(low), -float(limit), -float(limit + 1))
