"""Sums of products of codes, exact and fast: by a float32 matrix product whose every partial sum is a whole number that
float32 holds, in whatever order and with whatever fused operations a BLAS forms it.

int8 codes less their zero point are in [-255, 255], weights in [-128, 127]. Their sums are int32 as LiteRT holds them: equal to
the true sum modulo 2**32. Of int16 codes, which are given as float64, products are formed in float64 and sums are int64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT = {np.dtype(np.float32): 2**24, np.dtype(np.float64): 2**53}  # each holds every whole number up to here
CHUNK = 2**22  # elements of an unfolded image at a time: 16 MB

Sums = NDArray[np.int32] | NDArray[np.int64]
Pair = tuple[int, int]


def matmul(x: np.ndarray, weights: np.ndarray) -> Sums:
    """`x @ weights`, [..., K] times [K, N].

    Where K products may add up to more than float32 holds, the sum is formed of blocks that may not.
    """
    # One product of all rows: NumPy would form one for each row of an image, and a BLAS wakes its threads for each.
    kind = _kind(x)
    rows, weights = x.reshape(-1, x.shape[-1]).astype(kind, copy=False), weights.astype(kind, copy=False)
    return _by_blocks(rows, weights, exact_terms(rows, weights)).reshape(*x.shape[:-1], weights.shape[-1])


def stacked(x: np.ndarray, y: np.ndarray) -> Sums:
    """`x @ y` of two stacks of matrices, [..., n, K] times [..., K, N]."""
    kind = _kind(x)
    x, y = x.astype(kind, copy=False), y.astype(kind, copy=False)
    return _by_blocks(x, y, exact_terms(x, y))


def _kind(x: np.ndarray) -> Any:
    """The type in which products are formed."""
    return np.float64 if x.dtype == np.float64 else np.float32


def sum_type(x: np.ndarray) -> Any:
    """The type of sums of products of such codes."""
    return np.int64 if x.dtype == np.float64 else np.int32


def _by_blocks(x: np.ndarray, weights: np.ndarray, block: int) -> Sums:
    """[n, K] times [K, N], or stacks of such matrices."""
    depth = weights.shape[-2]
    parts = (x[..., k : k + block] @ weights[..., k : k + block, :] for k in range(0, depth, block))
    total = next(parts).astype(sum_type(x))
    for part in parts:
        total += part.astype(sum_type(x))
    return total


def exact_terms(x: np.ndarray, weights: np.ndarray) -> int:
    """How many products may be added so that no partial sum can exceed `EXACT`: all K where the weights show it."""
    largest, exact = float(np.abs(x).max(initial=0)), EXACT[weights.dtype]
    if largest * float(np.abs(weights).sum(axis=-2).max(initial=0)) <= exact:
        return max(weights.shape[-2], 1)
    return max(int(exact // (largest * float(np.abs(weights).max()))), 1)


def conv2d(image: np.ndarray, kernel: np.ndarray, strides: Pair, dilation: Pair, groups: int) -> Sums:
    """Convolution of a padded image [n, h, w, IC] with [KH, KW, IC / groups, OC], as matrix products of its windows."""
    if groups > 1 and kernel.shape[2] == 1:
        return depthwise(image, kernel.reshape(*kernel.shape[:2], groups, -1), strides, dilation)
    met = windows(image, (kernel.shape[0], kernel.shape[1]), strides, dilation)
    (batch, height, width), depth, channels = met.shape[:3], int(np.prod(kernel.shape[:3])), kernel.shape[3]
    weights = kernel.reshape(depth, groups, channels // groups).transpose(1, 0, 2).astype(_kind(image))
    block = exact_terms(image, weights)
    total = np.empty((batch, height, width, channels), sum_type(image))
    rows = max(CHUNK // max(width * depth * groups, 1), 1)
    for sample, top in np.ndindex(batch, -(-height // rows)):
        part = met[sample, top * rows : (top + 1) * rows]
        taps = part.reshape(-1, int(np.prod(kernel.shape[:2])), groups, kernel.shape[2]).astype(
            _kind(image), copy=False
        )
        unfolded = taps.transpose(2, 0, 1, 3).reshape(groups, -1, depth)
        sums = _by_blocks(unfolded, weights, block).transpose(1, 0, 2)
        total[sample, top * rows : (top + 1) * rows] = sums.reshape(-1, width, channels)
    return total


def depthwise(image: np.ndarray, kernel: np.ndarray, strides: Pair, dilation: Pair) -> Sums:
    """Each channel c of a padded image with its own windows [KH, KW, C, DM]; output channel `c * DM + m`."""
    kind = sum_type(image)
    wide = np.repeat(image.astype(kind), kernel.shape[3], axis=3)
    taps = windows(wide, (kernel.shape[0], kernel.shape[1]), strides, dilation)
    total = np.zeros((*taps.shape[:3], taps.shape[-1]), kind)
    product = np.empty_like(total)
    for i, j in np.ndindex(*kernel.shape[:2]):
        total += np.multiply(taps[:, :, :, i, j], kernel[i, j].reshape(-1).astype(kind), out=product)
    return total


def windows(image: np.ndarray, size: Pair, strides: Pair, dilation: Pair) -> np.ndarray:
    """[n, out h, out w, KH, KW, c]: what each output pixel meets; a view."""
    reach = [(size[k] - 1) * dilation[k] + 1 for k in (0, 1)]
    view = np.lib.stride_tricks.sliding_window_view(image, reach, axis=(1, 2))
    view = view[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return view.transpose(0, 1, 2, 4, 5, 3)
