"""Parts of an operation in the range that all of them share."""

from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.deploy.lowering.values import DeferredOp


def as_float32(grid: Range) -> Range:
    """The grid as a tensor has it."""
    return grid._replace(scale=float(np.float32(grid.scale)))


def with_range(state: Lowering, part: Any, grid: Range, name: str) -> str:
    """The tensor of a part in a range: made in it where the part waits, else requantized to it if need be."""
    if isinstance(part, DeferredOp):
        return state.emit(part, grid)
    if state.builder.tensor(part.tensor).range == as_float32(grid):
        return str(part.tensor)
    return state.builder.quantize(part.tensor, grid, state.name(name))
