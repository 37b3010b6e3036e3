"""Power-of-two weights, the grid of INQ."""

import dataclasses
from typing import ClassVar

from keras import ops

from keras_lowbit.numerics import powers
from keras_lowbit.numerics.grids import Quantized
from keras_lowbit.quantizers.base import (
    GRANULARITIES,
    Axes,
    Quantizer,
    State,
    Tensor,
    as_float32,
    register,
    require_choice,
    scale_axes,
)


@register
@dataclasses.dataclass(frozen=True)
class PowerOfTwo(Quantizer):
    """Weights ``0`` or ``+-2^n``, ``n2 <= n <= n1``, nearest value.

    ``s = max |w|``, ``n1 = floor(log2(4 s / 3))``, ``n2 = n1 + 1 - 2^(bits-1) / 2``: ``2^(bits-2)`` magnitudes, that is
    1, 2, 4, 8 for 2, 3, 4, 5 bits. Zero below ``2^(n2-1)``; borders at ``0.75 * 2^n``, ties to the larger magnitude;
    saturation above. As codes: 0 and ``+-2^k`` times ``scale = 2^n2``. Gradient: identity.
    bits: 2 to 5, a flag for zero and a signed index (a variable-length code).
    granularity: one n1 per "tensor" (the paper) or per "channel".
    int8_exact: at 5 bits leave the lowest of the eight magnitudes out, so that codes reach 64 and fit int8.
    calibration: "max", n1 as above, or "mse": the n1 of least squared error, at or below it. At 2 and 3 bits "max" turns most
        weights of a trained kernel into 0 (98 and 85 % of a ResNet-20 with one n1 per kernel, relative squared error 0.91 and
        0.52; "mse": 57 and 43 %, 0.25 and 0.13); at 4 and 5 bits they differ little.
    Raises ValueError for bits outside 2 to 5, and for another granularity or calibration.
    Zhou et al. 2017, arXiv:1702.03044, eq. 1 to 4. Differs: saturates where eq. 4 gives 0 above ``1.5 * 2^n1``, which
    with "max" only values that grew after n1 was fixed can reach; "mse" is not from the paper.

    >>> host = klb.layers.QuantizerHost(klb.quantizers.PowerOfTwo(bits=3))
    >>> host(np.array([-1.0, -0.4, 0.1, 0.7, 1.0], "float32")).numpy()
    array([-1. , -0.5,  0. ,  0.5,  1. ], dtype=float32)
    """

    name: ClassVar[str] = "power_of_two"
    bits: int = 5
    granularity: str = "tensor"
    int8_exact: bool = False
    calibration: str = "max"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 5:
            raise ValueError(
                f"PowerOfTwo needs 2 to 5 bits, got bits={self.bits!r}. 6 bits span 2^15 and fit no 8-bit runtime."
            )
        require_choice("PowerOfTwo", "granularity", self.granularity, GRANULARITIES)
        require_choice("PowerOfTwo", "calibration", self.calibration, ("max", "mse"))

    @property
    def magnitudes(self) -> int:
        """How many powers of two the grid has."""
        count = 2 ** (self.bits - 2)
        return count - 1 if self.int8_exact and self.bits == 5 else count

    def encode(self, real: Tensor, state: State, filter_axes: Axes = ()) -> Quantized:
        """Codes 0 and +-2^k in the layout of `real`; scale 2^n2 with size 1 along the reduced axes."""
        real = as_float32(real)
        axes = scale_axes(real, filter_axes, self.granularity)
        if self.calibration == "mse":
            top = powers.least_error_power(real, axes, self.magnitudes)
        else:
            top = powers.top_power(ops.max(ops.abs(real), axis=axes, keepdims=True))
        scale = top * 2.0 ** (1 - self.magnitudes)
        return Quantized(self.snap(real, scale), scale)

    def snap(self, real: Tensor, scale: Tensor) -> Tensor:
        """Nearest codes on the grid of a given scale."""
        return powers.encode_powers(real, scale, self.magnitudes)
