"""INQ, incremental network quantization: freeze a growing part of the weights on the grid, train the rest."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.numerics.selection import partition_sizes, pick_new
from keras_lowbit.numerics.thresholds import per_filter_shape
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


@register
@dataclasses.dataclass(frozen=True)
class Incremental(Quantizer):
    """INQ over any base grid: ``w~ = q`` (a constant) on the frozen weights, ``w~ = w`` on the others.

    `partition` freezes more weights; `callbacks.PartitionSchedule` calls it at each step. The grid (the base's scale) is
    fixed by the first partition. Gradient: 0 on frozen weights, 1 on the others; no straight-through anywhere.
    The frozen values are state, not part of the kernel: no optimizer, momentum, weight decay or weight averaging
    reaches them. Weights that are exactly 0 at the first partition (a pruned network) stay 0 and are not counted.
    base: the grid, a quantizer of weights such as `PowerOfTwo(5)`, or its short name.
    partition: "magnitude" freezes the largest first (the paper), "random" draws them.
    hybrid_evaluation: evaluate frozen and float weights as they are; by default inference snaps all to the grid.
    Raises ValueError for a base that is no such grid, and for another partition.
    State: mask (1 = frozen), codes, scale, portion in [0, 1], zeros (count of pruned weights).
    Zhou et al. 2017, arXiv:1702.03044, sections 2.2 and 2.3, eq. 5 to 8, Algorithm 1.

    >>> inq = klb.quantizers.Incremental(klb.quantizers.PowerOfTwo(5))
    >>> recipe = klb.recipes.get("inq-5").replace(plan=[klb.recipes.Rule(inq)])
    """

    name: ClassVar[str] = "incremental"
    base: Any = "power_of_two"
    partition: str = "magnitude"
    hybrid_evaluation: bool = False

    def __post_init__(self) -> None:
        base = get(self.base)
        if base is None or type(base).snap is Quantizer.snap or base.state_specs((1,), ()):
            raise ValueError(
                f"Incremental needs a base grid such as PowerOfTwo(5), Ternary() or Uniform(4), got {self.base!r}."
            )
        object.__setattr__(self, "base", base)
        require_choice("Incremental", "partition", self.partition, ("magnitude", "random"))

    @property
    def bits(self) -> float:
        """The bits of the base grid."""
        return self.base.bits

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """Mask and codes in the shape of the weights, a scale for each channel, two scalars."""
        scale = per_filter_shape(shape, filter_axes)
        return {
            "mask": StateSpec(shape),
            "codes": StateSpec(shape),
            "scale": StateSpec(scale),
            "portion": StateSpec(),
            "zeros": StateSpec(),
        }

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Frozen codes, and the nearest ones for weights still free; the base's own before the first partition."""
        real = as_float32(real)
        fresh = self.base.encode(real, {}, filter_axes)
        begun = state["portion"] > 0
        scale = ops.where(begun, state["scale"], ops.broadcast_to(fresh.scale, state["scale"].shape))
        snapped = ops.where(begun, self.base.snap(real, scale), fresh.codes)
        return Quantized(ops.where(state["mask"] > 0, state["codes"], snapped), scale)

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """Frozen and float weights while training, all on the grid at inference."""
        real, state = as_float32(real), state or {}
        if not (training or self.hybrid_evaluation):
            return super().__call__(real, state, filter_axes, training)
        return ops.where(state["mask"] > 0, ops.stop_gradient(state["codes"] * state["scale"]), real)

    def partitioned(
        self,
        real: np.ndarray,
        state: dict[str, np.ndarray],
        portion: float,
        filter_axes: Axes,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """The state after freezing weights up to `portion` of the non-zero ones; what is frozen stays as it is.

        real: float32 weights as they are now.   state: NumPy values of the variables.   portion: in (0, 1], not below
        the one reached.   rng: for partition="random".   Returns new values of all state variables.
        """
        if not (portion > 0 and np.float32(state["portion"]) <= np.float32(portion) <= 1):
            raise ValueError(
                f"Incremental has frozen a portion of {float(state['portion'])}; it cannot go to {portion}. Portions lie in "
                "(0, 1] and never shrink: frozen weights stay frozen."
            )
        state = dict(state)
        if state["portion"] == 0:
            fresh = self.base.encode(real, {}, filter_axes).scale
            state["scale"] = np.broadcast_to(ops.convert_to_numpy(fresh), state["scale"].shape)
            state["mask"] = (real == 0).astype(np.float32)
            state["zeros"] = np.asarray(state["mask"].sum(), np.float32)
        frozen = state["mask"] > 0
        count = partition_sizes(portion, real.size, int(state["zeros"]), int(frozen.sum()))
        chosen = pick_new(np.abs(real), frozen, count, self.partition, rng)
        codes = ops.convert_to_numpy(self.base.snap(ops.convert_to_tensor(real), ops.convert_to_tensor(state["scale"])))
        state["codes"] = np.where(chosen, codes, state["codes"] * frozen).astype(np.float32)
        state["mask"] = (frozen | chosen).astype(np.float32)
        state["portion"] = np.asarray(portion, np.float32)
        return state
