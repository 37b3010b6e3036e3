"""What follows a sum: nothing (int32), requantisation to int8 with a residual addition, or a factor (float32)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

LOW, HIGH = -128, 127
FLOAT_LIMIT = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class Requantize:
    """int8 codes of an int32 sum, as LiteRT's reference kernels make them.

    multiplier, shift: int32 [channels] or one: `total * multiplier * 2**(shift - 31)`, rounded twice (convolutions).
    factor: float64 [channels] or one, in place of both: `total * factor`, rounded once (dense layers).   zero_point: of
    the output.   low, high: codes that a fused activation lets through.
    """

    multiplier: Any = None
    shift: Any = None
    factor: Any = None
    zero_point: int = 0
    low: int = LOW
    high: int = HIGH

    def __post_init__(self) -> None:
        if (self.factor is None) == (self.multiplier is None) or (self.multiplier is None) != (self.shift is None):
            raise ValueError("Requantize needs multiplier and shift, or factor: give one of the two")
        if not LOW <= self.zero_point <= HIGH or not LOW <= self.low <= self.high <= HIGH:
            raise ValueError(
                f"Requantize got zero_point={self.zero_point}, low={self.low}, high={self.high}; expected int8 codes, low not "
                "above high"
            )

    def apply(self, total: Any) -> Any:
        """The codes in plain TensorFlow."""
        from keras_lowbit.ops import composite

        if self.factor is not None:
            return composite.requantize_once(total, self.factor, self.zero_point, self.low, self.high)
        return composite.requantize(total, self.multiplier, self.shift, self.zero_point, self.low, self.high)


@dataclasses.dataclass(frozen=True, eq=False)
class Rescale:
    """float32 `clip(float(total) * scale, low, high)`.   scale: float32 [channels] or one."""

    scale: Any
    low: float = -FLOAT_LIMIT
    high: float = FLOAT_LIMIT

    def apply(self, total: Any) -> Any:
        """The reals in plain TensorFlow."""
        from keras_lowbit.ops import composite

        return composite.rescale(total, self.scale, self.low, self.high)


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualAdd:
    """LiteRT's int8 ADD of a layer's codes and `codes`: both on the grid `2 * max(s_1, s_2) / 2**20`, summed, requantised.

    codes: int8, of the layer's output shape.   first, second, output: (multiplier, shift) of the layer's own scale, of the
    scale of `codes`, and of the way back.   zero_point: of `codes`.   output_zero_point, low, high: of the result.
    """

    codes: Any
    first: tuple[int, int]
    second: tuple[int, int]
    output: tuple[int, int]
    zero_point: int = 0
    output_zero_point: int = 0
    low: int = LOW
    high: int = HIGH

    def apply(self, codes: Any, zero_point: int) -> Any:
        """The sum in plain TensorFlow; codes: the layer's own, with their zero point."""
        from keras_lowbit.ops import composite

        terms = (
            composite.raised(codes, zero_point, self.first),
            composite.raised(self.codes, self.zero_point, self.second),
        )
        total = composite.wrapped(terms[0] + terms[1])
        return composite.requantize(total, *self.output, self.output_zero_point, self.low, self.high)


Epilogue = Requantize | Rescale | None


def apply(total: Any, bias: Any, output: Epilogue, residual: ResidualAdd | None) -> Any:
    """Bias, output stage and residual addition of an int32 sum in plain TensorFlow."""
    from keras_lowbit.ops import composite

    check(output, residual)
    total = composite.add_bias(total, bias)
    if output is None:
        return total
    codes = output.apply(total)
    return codes if residual is None or not isinstance(output, Requantize) else residual.apply(codes, output.zero_point)


def check(output: Epilogue, residual: ResidualAdd | None) -> None:
    """ValueError for a residual addition where there are no int8 codes; TypeError for an unknown output stage."""
    if output is not None and not isinstance(output, (Requantize, Rescale)):
        raise TypeError(
            f"output is {type(output).__name__}; expected None (int32), Requantize (int8) or Rescale (float32)"
        )
    if residual is not None and not isinstance(output, Requantize):
        raise ValueError("a residual is added to int8 codes: give output=Requantize(...) with it")
