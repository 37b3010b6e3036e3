"""What the integer layers' functions are given beside arrays, on every backend: checked, and in one form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_lowbit.ops.epilogue import ResidualAdd
from keras_lowbit.ops.packing import PackedWeights

Padding = str | Sequence[Sequence[int]]  # "SAME", "VALID" or ((top, bottom), (left, right))


def packed(value: Any) -> PackedWeights:
    """The weights, whose arrays fit their layout. TypeError for anything else, ValueError for arrays that do not fit."""
    if not isinstance(value, PackedWeights):
        raise TypeError(f"got weights of type {type(value).__name__}; expected the result of pack_ternary or pack_int8")
    value.check()
    return value


def dense(weights: PackedWeights) -> PackedWeights:
    """The weights of a dense layer. ValueError for those of a convolution."""
    if weights.layout.window[:2] != (1, 1) or weights.layout.groups != 1:
        raise ValueError(f"a dense layer got a kernel {weights.layout.kernel_shape}; expected [inputs, outputs]")
    return weights


def zero_point(value: int) -> None:
    """ValueError unless this is an int8 code."""
    if not isinstance(value, (int, np.integer)) or not -128 <= value <= 127:
        raise ValueError(f"input_zero_point is {value!r}; expected a whole number from -128 to 127")


def sizes(window: Any) -> tuple[int, int]:
    """Rows and columns of a window, from one number or two."""
    found = tuple(window) if isinstance(window, Iterable) else (window, window)
    if len(found) != 2 or not all(_is_whole(size) and size >= 1 for size in found):
        raise ValueError(f"window is {window!r}; expected two whole numbers of at least 1")
    return int(found[0]), int(found[1])


def sliding(strides: Any, dilations: Any, padding: Any) -> tuple[tuple[int, int], tuple[int, int], Padding]:
    """Strides and dilations as pairs; padding as "SAME", "VALID" or ((top, bottom), (left, right))."""
    pairs = []
    for name, value in (("strides", strides), ("dilations", dilations)):
        pair = tuple(value) if isinstance(value, Iterable) else (value, value)
        if len(pair) != 2 or not all(_is_whole(step) and step >= 1 for step in pair):
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1, or two of them")
        pairs.append((int(pair[0]), int(pair[1])))
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"padding is {padding!r}; expected 'SAME', 'VALID' or ((top, bottom), (left, right))")
        return pairs[0], pairs[1], padding.upper()
    edges = tuple(tuple(pair) for pair in padding)
    if len(edges) != 2 or not all(len(pair) == 2 and all(_is_whole(e) and e >= 0 for e in pair) for pair in edges):
        raise ValueError(f"padding is {padding!r}; expected 'SAME', 'VALID' or ((top, bottom), (left, right))")
    return pairs[0], pairs[1], edges


def residual_numbers(residual: ResidualAdd) -> dict[str, int]:
    """The numbers of a `ResidualAdd` by the names that the compiled calls have for them."""
    numbers = {name: getattr(residual, name) for name in ("zero_point", "output_zero_point", "low", "high")}
    for name in ("first", "second", "output"):
        numbers[f"{name}_multiplier"], numbers[f"{name}_shift"] = getattr(residual, name)
    return {f"residual_{name}": int(value) for name, value in numbers.items()}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
