"""What follows a sum: nothing (int32), requantization to int8 with a residual addition, or a factor (float32).

Data and checks only: the compiled ops compute it, or `tf_fallback.apply_epilogue`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_lowbit.ops.packing import INT32_MAX

LOW, HIGH = -128, 127
LARGEST_SHIFT = 31
FLOAT_LIMIT = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class Requantize:
    """int8 codes of an int32 sum, as LiteRT's reference kernels make them.

    multiplier, shift: int32 [channels] or one: `total * multiplier * 2**(shift - 31)`, rounded twice (convolutions); shift
    from -31 to 31.   factor: float64 [channels] or one, in place of both: `total * factor`, rounded once (dense layers).
    zero_point: of the output.   low, high: codes that a fused activation lets through. ValueError for what does not fit.

    >>> codes, kernel = np.full((1, 8), 100, "int8"), klb.ops.pack_kernel(np.ones((8, 3), "int8"))
    >>> klb.ops.ternary_dense(codes, kernel, output=klb.ops.Requantize(factor=0.1)).numpy()
    array([[80, 80, 80]], dtype=int8)
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
        check_codes("Requantize", self.low, self.high, zero_point=self.zero_point)
        if self.factor is None:
            _check_whole("multiplier", self.multiplier)
            _check_whole("shift", self.shift, -LARGEST_SHIFT, LARGEST_SHIFT)


@dataclasses.dataclass(frozen=True, eq=False)
class Rescale:
    """float32 `clip(float(total) * scale, low, high)`.   scale: float32 [channels] or one.

    low, high: reals that a fused activation lets through.

    >>> codes, kernel = np.full((1, 8), 100, "int8"), klb.ops.pack_kernel(np.ones((8, 3), "int8"))
    >>> klb.ops.ternary_dense(codes, kernel, output=klb.ops.Rescale(0.5)).numpy()
    array([[400., 400., 400.]], dtype=float32)
    """

    scale: Any
    low: float = -FLOAT_LIMIT
    high: float = FLOAT_LIMIT


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualAdd:
    """LiteRT's int8 ADD of a layer's codes and `codes`: both on the grid `2 * max(s_1, s_2) / 2**20`, summed, requantized.

    codes: int8, of the layer's output shape.   first, second, output: (multiplier, shift) of the layer's own scale, of the
    scale of `codes`, and of the way back.   zero_point: of `codes`.   output_zero_point, low, high: of the result.
    ValueError for what does not fit.

    >>> one = (1 << 30, 0)  # multiplier and shift of a factor of 1/2
    >>> shortcut = klb.ops.ResidualAdd(np.zeros((1, 3), "int8"), first=one, second=one, output=one)
    """

    codes: Any
    first: tuple[int, int]
    second: tuple[int, int]
    output: tuple[int, int]
    zero_point: int = 0
    output_zero_point: int = 0
    low: int = LOW
    high: int = HIGH

    def __post_init__(self) -> None:
        zeros = {"zero_point": self.zero_point, "output_zero_point": self.output_zero_point}
        check_codes("ResidualAdd", self.low, self.high, **zeros)
        for multiplier, shift in (self.first, self.second, self.output):
            _check_whole("multiplier", multiplier)
            _check_whole("shift", shift, -LARGEST_SHIFT, LARGEST_SHIFT)


Epilogue = Requantize | Rescale | None


def check(channels: int | None, bias: Any, output: Epilogue, residual: ResidualAdd | None) -> None:
    """What the compiled ops take, and no more, of the epilogue of a layer of so many channels (None: not known).

    ValueError for wrong shapes, for numbers that are not whole or too large, and for a residual addition where there are no
    int8 codes; TypeError for an unknown epilogue.
    """
    if output is not None and not isinstance(output, (Requantize, Rescale)):
        raise TypeError(
            f"output is {type(output).__name__}; expected None (int32), Requantize (int8) or Rescale (float32)"
        )
    if bias is not None:
        _check_whole("bias", bias)
        _check_channels("bias", bias, [(channels,)])
    for field in () if output is None else dataclasses.fields(output):
        if field.name in ("multiplier", "shift", "factor", "scale"):
            _check_channels(field.name, getattr(output, field.name), [(), (1,), (channels,)])
    if residual is None:
        return
    if not isinstance(output, Requantize):
        raise ValueError("a residual is added to int8 codes: give output=Requantize(...) with it")
    if _about(residual.codes)[0] != np.int8:
        raise ValueError(f"a residual is {_about(residual.codes)[0]}; expected int8 codes")


def check_codes(what: str, low: Any, high: Any, **others: Any) -> None:
    """ValueError unless all are int8 codes, low not above high."""
    given = {**others, "low": low, "high": high}
    if all(isinstance(value, (int, np.integer)) and LOW <= value <= HIGH for value in given.values()) and low <= high:
        return
    values = ", ".join(f"{name}={value!r}" for name, value in given.items())
    raise ValueError(f"{what} got {values}; expected int8 codes, low not above high")


def _check_whole(name: str, value: Any, low: int = -INT32_MAX - 1, high: int = INT32_MAX) -> None:
    """ValueError unless these are whole numbers from low to high; of a tensor, its type alone is looked at."""
    remedy = "divide it by input scale times weight scale and round" if name == "bias" else "use quantize_multiplier"
    dtype, _ = _about(value)
    if not np.issubdtype(dtype, np.integer) or (not _is_plain(value) and dtype != np.int32):
        raise ValueError(f"{name} is {dtype}; expected whole numbers, int32: {remedy}")
    values = np.asarray(value) if _is_plain(value) else np.zeros(0)
    wrong = values[(values < low) | (values > high)]
    if wrong.size:
        raise ValueError(f"{name} is {wrong.flat[0]}; expected {low} to {high}: {remedy}")


def _check_channels(name: str, value: Any, wanted: list[tuple[int | None, ...]]) -> None:
    """ValueError if the shape is none of those wanted, as far as it is known."""
    shape = None if value is None else _about(value)[1]
    if shape is None:
        return
    for want in wanted:
        if len(shape) == len(want) and all(a == b or a is None or b is None for a, b in zip(shape, want, strict=True)):
            return
    expected = " or ".join(map(str, wanted))
    raise ValueError(f"{name} has shape {shape}; expected {expected}, the last with one number for each output channel")


def _is_plain(value: Any) -> bool:
    """Whether these are numbers: no tensor of TensorFlow's or JAX', which may have no values yet."""
    return not hasattr(getattr(value, "dtype", None), "as_numpy_dtype") and not hasattr(value, "aval")


def _about(value: Any) -> tuple[np.dtype, tuple[int | None, ...] | None]:
    """Type and shape of numbers or a tensor; None where the rank is not known."""
    if _is_plain(value):
        return np.asarray(value).dtype, np.shape(value)
    dtype = np.dtype(getattr(value.dtype, "as_numpy_dtype", value.dtype))
    return dtype, None if getattr(value.shape, "rank", 0) is None else tuple(value.shape)
