"""Several axes of a tensor, or one that is not the last, as its last axis, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_lowbit.convert.expansion.registry import Parts

_MOST_AXES = 4  # of tensors of which LiteRT multiplies two


def axes_of(axis: Any, rank: int) -> tuple[int, ...] | None:
    """The axes that an operation names, the batch being 0; None if that is one of them, or the order is another."""
    given = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(a % rank for a in given)
    return None if not axes or 0 in axes or list(axes) != sorted(set(axes)) else axes


class LastAxis:
    """A tensor of known sizes with some axes as its last one. rows: that form, the tensor itself where it has it."""

    def __init__(self, parts: Parts, x: Any, axes: Sequence[int]) -> None:
        rank, self._parts = len(x.shape), parts
        sizes = [int(size) for size in x.shape[1:]]
        self._order = [0, *(axis for axis in range(1, rank) if axis not in axes), *axes]
        self._turns, self._joins = self._order != sorted(self._order), len(axes) > 1 or rank > _MOST_AXES
        self._sizes = [sizes[axis - 1] for axis in self._order[1:]]
        self.moves = self._turns or self._joins
        if self._turns:
            x = parts.named(ops.transpose(x, self._order), "turn")
        if self._joins:
            joined = math.prod(self._sizes[-len(axes) :])
            x = parts.named(ops.reshape(x, (-1, math.prod(sizes) // joined, joined)), "rows")
        self.rows = x

    def inner(self, part: str) -> str:
        """The name of an operation behind which `back` stands: "" where it stands for nothing."""
        return part if self.moves else ""

    def back(self, x: Any) -> Any:
        """Values of the form of `rows` in the form of the tensor."""
        if self._joins:
            x = self._parts.named(ops.reshape(x, (-1, *self._sizes)), "apart" if self._turns else "")
        if self._turns:
            places = [self._order.index(axis) for axis in range(len(self._order))]
            x = self._parts.named(ops.transpose(x, places))
        return x
