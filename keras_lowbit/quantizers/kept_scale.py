"""KeptScale: an even grid of weights whose scale was given for them as they are."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import Axes, State, StateSpec, Tensor, as_float32, register, scale_axes, scale_shape
from keras_lowbit.quantizers.uniform import Uniform


@register
@dataclasses.dataclass(frozen=True)
class KeptScale(Uniform):
    """`Uniform` that keeps a scale given for the weights as they are, until they change.

    For models whose scales are not those of their weights: TFMOT's inference has those of before the last training step.
    ``s`` is the state `scale` of a group whose largest |w| is the state `largest`, for which it was given. Otherwise, in
    training, and before any was given, s comes from the weights as `Uniform` says: a scale never meets other weights.
    Weights beyond the grid saturate. `scale_state` makes the state.
    bits, granularity, calibration, percentile: as in `Uniform`.
    State: scale, largest; one for each group of weights that share a scale.

    >>> kept = klb.quantizers.KeptScale(bits=8)
    >>> sorted(kept.state_specs((3, 3, 8, 16), filter_axes=(-1,)))
    ['largest', 'scale']
    """

    name: ClassVar[str] = "kept_scale"

    def state_specs(self, shape: tuple[int, ...], filter_axes: Axes = ()) -> dict[str, StateSpec]:
        """Scale and largest |w| of each channel, or of the tensor."""
        groups = scale_shape(shape, filter_axes, self.granularity)
        return {name: StateSpec(groups, setting=True) for name in ("scale", "largest")}

    def scale_state(self, real: Tensor, scale: Any, filter_axes: Axes = ()) -> dict[str, np.ndarray]:
        """The state that keeps `scale` for the weights `real`. scale: broadcasts against one value for each group."""
        real = as_float32(real)
        largest = ops.convert_to_numpy(self._largest(real, filter_axes))
        return {"scale": np.broadcast_to(np.asarray(scale, np.float32), largest.shape), "largest": largest}

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes in [-n, n] in the layout of `real`; scale with size 1 along the reduced axes."""
        found = super().encode(real, state, filter_axes)
        if not state:
            return found
        real = as_float32(real)
        given = self._largest(real, filter_axes) == state["largest"]
        scale = ops.where(given, state["scale"], found.scale)
        return Quantized(self.snap(real, scale), scale)

    def __call__(
        self, real: Tensor, state: State | None = None, filter_axes: Axes = (), training: bool = False
    ) -> Tensor:
        """``scale * codes``, exactly, with the gradient of `Uniform`; in training with the scale of the weights."""
        return super().__call__(real, None if training else state, filter_axes, training)

    def _largest(self, real: Tensor, filter_axes: Axes) -> Tensor:
        return ops.max(ops.abs(real), axis=scale_axes(real, filter_axes, self.granularity), keepdims=True)
