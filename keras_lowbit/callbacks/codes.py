"""The integer codes of a model's kernels, and how many of them changed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.base import kernel_layers


def weight_codes(model: Any) -> list[np.ndarray]:
    """The int16 codes (5-bit powers of two reach 128) of every quantized kernel of `model`, in the order of its layers.

    model: quantized.
    Returns a list of NumPy arrays, each of its kernel's shape.

    >>> [codes.shape for codes in klb.callbacks.weight_codes(ternary)][0]
    (3, 3, 3, 8)
    """
    return [codes_of(layer) for layer in kernel_layers(model)]


def codes_of(layer: Any) -> np.ndarray:
    """Those of one quantized layer."""
    codes = to_numpy(layer.kernel_host.encode(layer.kernel).codes)
    with np.errstate(invalid="ignore"):  # NaN weights have no code; the loss will say so
        return codes.astype(np.int16)


def flip_rate(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """Fraction (0..1) of elements that differ between two lists of equally shaped arrays; 0 if empty.

    before, after: such lists, as `weight_codes` gives them.
    Returns a float.

    >>> before = klb.callbacks.weight_codes(ternary)
    >>> klb.callbacks.flip_rate(before, klb.callbacks.weight_codes(ternary))
    0.0
    """
    total = sum(codes.size for codes in before)
    changed = sum(int(np.count_nonzero(old != new)) for old, new in zip(before, after, strict=True))
    return changed / total if total else 0.0
