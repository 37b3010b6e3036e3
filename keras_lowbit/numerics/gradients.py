"""Exact forward values with stated gradients.

``x + stop_gradient(q - x)`` equals ``q`` only up to float rounding: a ternary kernel written so has more
than three values. Here the forward value is `on_grid` itself.
"""

import sys
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensor = Any


def straight_through(real: Tensor, on_grid: Tensor, passes: Tensor | None = None) -> Tensor:
    """Value of `on_grid`, bit for bit; gradient of `real`, times `passes` (default 1).

    ``y = on_grid``,  ``dy/d real = passes``,  ``dy/d on_grid = 0``.
    All three have the shape of `real`. Bengio et al. 2013, arXiv:1308.3432, section 3 (straight-through).
    """
    return straight_through_where(real, on_grid, lambda: passes)


def straight_through_where(real: Tensor, on_grid: Tensor, passes: Callable[[], Tensor | None]) -> Tensor:
    """`straight_through` whose `passes` are a function; TensorFlow's eager calls ask for them on the way back alone.

    A forward pass without a gradient, as in `calibrate` and `verify`, never computes them. In graphs what nobody reads falls
    away, and the branches of a conditional let no gradient read what another branch has made.
    """
    on_grid = ops.stop_gradient(on_grid)
    if keras.backend.backend() == "tensorflow" and sys.modules["tensorflow"].executing_eagerly():
        return _swap_lazily(passes)(real, on_grid)
    found = passes()
    if found is None:
        return _swap(real, on_grid)
    return _swap_where(real, on_grid, ops.stop_gradient(ops.cast(found, real.dtype)))


def _swap_lazily(passes: Callable[[], Tensor | None]) -> Callable[[Tensor, Tensor], Tensor]:
    @ops.custom_gradient
    def swap(real: Tensor, on_grid: Tensor) -> Any:
        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            found = passes()
            own = upstream if found is None else upstream * ops.stop_gradient(ops.cast(found, real.dtype))
            return own, ops.zeros_like(upstream)

        return on_grid * 1.0, gradient

    return swap


@ops.custom_gradient
def _swap(real: Tensor, on_grid: Tensor) -> Any:
    def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
        upstream = args[0] if upstream is None else upstream
        return upstream, ops.zeros_like(upstream)

    return on_grid * 1.0, gradient


@ops.custom_gradient
def _swap_where(real: Tensor, on_grid: Tensor, passes: Tensor) -> Any:
    def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        upstream = args[0] if upstream is None else upstream
        return upstream * passes, ops.zeros_like(upstream), ops.zeros_like(upstream)

    return on_grid * 1.0, gradient
