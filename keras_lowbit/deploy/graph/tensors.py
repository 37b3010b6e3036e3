"""What an integer graph is made of: tensors with their grids, and nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_PIXELS = 1.0, -128  # of int8 codes that are bytes less 128
PLAIN = ("int32", "float32", "int64", "uint8", "bool")  # what operations in float read and make: values, not codes
CODES = {"int8": (-128, 127), "int16": (-(2**15), 2**15 - 1)}  # the types of codes: the lowest and the highest one
DTYPES = (*CODES, *PLAIN)
BIASES = ("int32", "int64")
MOST_ELEMENTS = 2**31 - 1  # of one sample: LiteRT counts them in int32
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # XNNPACK takes normal numbers only


class Range(NamedTuple):
    """Grid of an activation: `real = scale * (code - zero_point)`; scale in real units.

    scale: of one step, above 0.   zero_point: the code of real 0.
    dtype: of the codes. "int8": any zero point from -128 to 127. "int16": LiteRT's 16x8 mode, zero point 0.

    >>> pixels = klb.deploy.Range(scale=1 / 255, zero_point=-128)  # 0 to 1
    """

    scale: float
    zero_point: int = 0
    dtype: str = "int8"

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return CODES[self.dtype]

    @property
    def is_of_bytes(self) -> bool:
        """Whether its int8 codes are bytes, pixels of 0 to 255, less 128."""
        return self[:2] == _PIXELS and self.dtype == "int8"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named array of the graph.

    name: unique in the graph.   shape: activations have the batch axis first, written None; constants have
    their full shape.
    dtype: "int8" or "int16" for codes; one of `PLAIN` for values of operations in float; "int32" or "int64" for a
    constant bias.
    scale: float32 array, shape () per tensor or (channels,) per channel; None for values.   zero_point: integer code of
    real 0.   data: the codes, for constants only (kept read-only).
    Raises ValueError for arrays that do not fit shape or type.

    >>> graph.tensors[graph.inputs[0]].dtype
    'int8'
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: np.ndarray | None = None
    zero_point: int = 0
    data: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(None if d is None else _whole(d) for d in self.shape))
        object.__setattr__(self, "zero_point", _whole(self.zero_point))
        for key in ("scale", "data"):
            value = getattr(self, key)
            if value is None:
                continue
            array = np.array(value, dtype=np.float32 if key == "scale" else None, order="C")
            array.setflags(write=False)
            object.__setattr__(self, key, array)

    @property
    def is_constant(self) -> bool:
        """True if the tensor carries its codes."""
        return self.data is not None

    @property
    def range(self) -> Range:
        """Scale and zero point of a per-tensor quantized tensor. ValueError if it has none or one per
        channel."""
        if self.scale is None or self.scale.ndim:
            raise ValueError(
                f"tensor {self.name!r} has no single scale (dtype {self.dtype}, scale shape "
                f"{None if self.scale is None else self.scale.shape}); read .scale instead"
            )
        return Range(float(self.scale), self.zero_point, self.dtype)

    def static_shape(self, batch_size: int) -> tuple[int, ...]:
        """The shape with the batch axis filled in."""
        return tuple(batch_size if d is None else d for d in self.shape)

    def check(self) -> None:
        """ValueError, with the offending values, unless name, dtype, shape, grid and codes are sound."""
        where = f"tensor {self.name!r}"
        check_name(self.name, "a tensor")
        if self.dtype not in DTYPES:
            raise ValueError(f"{where} has dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        self._check_shape(where)
        self._check_grid(where)
        if self.data is not None and (self.data.shape != self.shape or self.data.dtype != np.dtype(self.dtype)):
            raise ValueError(
                f"{where} holds {self.data.dtype} codes of shape {self.data.shape}: "
                f"expected {self.dtype} of shape {self.shape}"
            )

    def _check_shape(self, where: str) -> None:
        sizes = self.shape if self.is_constant else self.shape[1:]
        if any(d is None or d < 1 for d in sizes) or (not self.is_constant and self.shape[:1] != (None,)):
            raise ValueError(
                f"{where} has shape {self.shape}: expected sizes of at least 1, after a batch axis written None unless it "
                "is a constant"
            )
        if math.prod(sizes) > MOST_ELEMENTS:  # type: ignore[arg-type]
            raise ValueError(f"{where} has shape {self.shape}: expected at most {MOST_ELEMENTS:,} elements in a sample")

    def _check_grid(self, where: str) -> None:
        if (self.scale is None) != (self.dtype in PLAIN and not (self.dtype in BIASES and self.is_constant)):
            raise ValueError(
                f"{where} is {self.dtype} with scale {self.scale}: integers need a scale, values of operations in float "
                "have none"
            )
        if not -128 <= self.zero_point <= 127 or (self.zero_point and self.dtype != "int8"):
            raise ValueError(
                f"{where} is {self.dtype} with zero point {self.zero_point}: expected -128 to 127 for int8, else 0"
            )
        if self.scale is None:
            return
        check_scale(self.scale, where)
        if not self.is_constant and self.scale.ndim:
            raise ValueError(f"{where} is an activation with {self.scale.size} scales: activations have one scale")

    def equals(self, other: Tensor) -> bool:
        """Bit equality of every field, codes and scales included."""
        plain = ("name", "shape", "dtype", "zero_point")
        return all(getattr(self, k) == getattr(other, k) for k in plain) and all(
            same_bits(getattr(self, k), getattr(other, k)) for k in ("scale", "data")
        )


@dataclass(frozen=True)
class Node:
    """One integer operation. `attributes` are plain JSON values; only a float subgraph holds
    bytes (`model`).
    op: the operation, as in `deploy.graph.operations`.   name: unique in the graph.   inputs, outputs: names of tensors, in the
    operation's order.

    >>> [node.op for node in graph.nodes][:2]
    ['conv2d', 'depthwise_conv2d']
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def check_name(name: Any, what: str) -> None:
    """ValueError unless a name can stand in every file: a string that is not empty, of characters that UTF-8 has."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} is named {name!r}: expected a non-empty string")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is named {name!r}, which UTF-8 cannot write ({error.reason})") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise ValueError(f"a size or zero point is {value!r}: expected a whole number")
    return int(value)


def same_bits(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two arrays, or two Nones, are equal in type, shape and every bit."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check_scale(scale: np.ndarray, where: str) -> None:
    """ValueError that names the first bad one unless every scale is a positive normal float32."""
    flat = np.asarray(scale, np.float32).reshape(-1)
    bad = np.flatnonzero(~(np.isfinite(flat) & (flat >= SMALLEST_SCALE)))
    if bad.size:
        at = f" in channel {bad[0]}" if flat.size > 1 else ""
        raise ValueError(
            f"{where} has scale {flat[bad[0]]}{at} ({bad.size} bad of {flat.size}): expected a finite step size of at least "
            f"{SMALLEST_SCALE:.3g}. Calibrate again, or give an all-zero channel any positive scale"
        )
