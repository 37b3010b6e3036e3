"""How many of a layer's multiplications its weights leave: none inside a sum of +-x, one for each scale."""

from typing import Any

import numpy as np

from keras_lowbit.numerics.thresholds import reduced_axes
from keras_lowbit.quantizers import Binary, Clustered, PowerOfTwo, Quantizer, Ternary


def multiplications_left(quantizer: Quantizer | None, shape: tuple[int, ...], filter_axes: tuple[int, ...]) -> int:
    """Multiplications for one output value of a layer with that kernel.

    Codes -1, 0, +1 only add and powers of two only shift: what is left is one multiplication for each scale, that is one a
    cluster (`quantizers.Clustered`) or one a filter (binary, ternary, powers of two). Any other weight multiplies.
    """
    inner = _inner(quantizer)
    if isinstance(inner, Clustered):
        return inner.multiplications(shape, filter_axes)
    if isinstance(inner, (Binary, Ternary, PowerOfTwo)):
        return 1
    return filter_size(shape, filter_axes)


def filter_size(shape: tuple[int, ...], filter_axes: tuple[int, ...]) -> int:
    """Weights of one filter."""
    return int(np.prod([shape[axis] for axis in reduced_axes(len(shape), filter_axes)], dtype=np.int64))


def _inner(quantizer: Any) -> Any:
    """The grid inside wrappers such as `Stochastic` and `Incremental`."""
    while not isinstance(quantizer, Clustered) and isinstance(getattr(quantizer, "base", None), Quantizer):
        quantizer = quantizer.base
    return quantizer
