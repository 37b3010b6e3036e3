"""Integer codes and the reals they stand for.

One number contract holds everywhere:  ``real = scale * (code - zero_point)``.
`scale` is the size of one step in real units, never its reciprocal.
"""

from typing import Any, NamedTuple

import numpy as np
from keras import ops

Tensor = Any


class Quantized(NamedTuple):
    """Codes with what is needed to read them: ``real = scale * (codes - zero_point)``.

    codes: integers (stored as float32 while training, int8 once exported), the layout of the real tensor.
    scale: size of one step, broadcasts against `codes`.   zero_point: the code of real 0.0, an integer.

    >>> found = klb.quantizers.Quantized(np.array([-1, 0, 1]), np.float32(0.5))
    >>> found.real
    array([-0.5,  0. ,  0.5], dtype=float32)
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor = 0

    @property
    def real(self) -> Tensor:
        """The reals on the grid, exactly what a forward pass uses (float32)."""
        return dequantize(self.codes, self.scale, self.zero_point)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor = 0) -> Tensor:
    """``scale * (codes - zero_point)``, for backend tensors and NumPy arrays alike (float32)."""
    if isinstance(codes, np.ndarray):
        return (codes.astype(np.float32) - np.float32(zero_point)) * np.asarray(scale, np.float32)
    if isinstance(zero_point, int) and zero_point == 0:
        return codes * scale
    return (codes - zero_point) * scale


def symmetric_limit(bits: int) -> int:
    """Largest code of the narrow symmetric grid: ``2^(bits-1) - 1`` (8 bits: 127)."""
    return 2 ** (bits - 1) - 1


def encode_symmetric(real: Tensor, scale: Tensor, bits: int) -> Tensor:
    """``clip(round(real / scale), -limit, limit)``, half to even; all zeros where `scale` is 0."""
    limit = symmetric_limit(bits)
    safe = ops.where(scale > 0, scale, ops.ones_like(scale))
    codes = ops.clip(ops.round(real / safe), -limit, limit)
    return ops.where(scale > 0, codes, ops.zeros_like(codes))


def affine_parameters(minimum: Tensor, maximum: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the asymmetric grid that covers [minimum, maximum] and holds 0.0 exactly.

    ``scale = (max - min) / (2^bits - 1)``, ``zero_point = round(-2^(bits-1) - min / scale)``, after the
    range has been widened to contain 0. An empty range gets ``scale = 1 / (2^bits - 1)``.
    Jacob et al. 2018, arXiv:1712.05877, section 2.1 and eq. 13.
    """
    minimum, maximum = ops.minimum(minimum, 0.0), ops.maximum(maximum, 0.0)
    scale = affine_scale(maximum - minimum, bits)
    return scale, affine_zero_point(minimum, scale, bits)


def affine_scale(width: Tensor, bits: int) -> Tensor:
    """``width / (2^bits - 1)``, as if the width were 1 where it is 0."""
    # Not a division by a constant: compilers turn that into this multiplication, which may differ in the last bit.
    scale = ops.where(width > 0, width, ops.ones_like(width)) * (1.0 / (2**bits - 1))
    # The product can underflow to 0 when the range is denormal.
    return ops.maximum(scale, float(np.finfo(np.float32).tiny))


def affine_zero_point(minimum: Tensor, scale: Tensor, bits: int) -> Tensor:
    """``round(-2^(bits-1) - minimum / scale)``, the code of 0.0 for a minimum <= 0, kept on the grid."""
    low = -(2 ** (bits - 1))
    return ops.clip(ops.round(low - minimum / scale), low, low + 2**bits - 1)


def symmetric_scale(minimum: Tensor, maximum: Tensor, bits: int) -> Tensor:
    """``max(-min, max) / (2^(bits-1) - 1)``, the step of a grid around 0 that covers [minimum, maximum]; of 1 if that is empty.

    Times the reciprocal, as in `affine_scale`.
    """
    largest = ops.maximum(-minimum, maximum)
    scale = ops.where(largest > 0, largest, ops.ones_like(largest)) * (1.0 / symmetric_limit(bits))
    return ops.maximum(scale, float(np.finfo(np.float32).tiny))


def encode_affine(real: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """``clip(round(real / scale) + zero_point, -2^(bits-1), 2^(bits-1) - 1)``, half to even."""
    low = -(2 ** (bits - 1))
    return ops.clip(ops.round(real / scale) + zero_point, low, low + 2**bits - 1)
