"""Images of other sizes: LiteRT's resizing where its positions are exact, else a product with the weights of neighbours."""

import math
from typing import Any

import numpy as np

from keras_lowbit.convert.analysis.resizing import meets_positions
from keras_lowbit.convert.analysis.supported import RESIZES
from keras_lowbit.deploy.lowering.data_movement import moves
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.keras_graph.calls import Call

_LARGEST = 127  # of the codes of weights
_COLUMNS, _TO_ROWS, _BACK = (0, 3, 2, 1), (0, 1, 3, 2), (0, 2, 3, 1)  # [B, C, W, H], [B, C, H, W], and pixels again


@moves("UpSampling2D")
def _upsample(state: Lowering, call: Call, tensor: str) -> str:
    layer, builder, sizes = call.operation, state.builder, state.static_shape(tensor)
    factor: Any = layer.size
    size = (sizes[0] * factor[0], sizes[1] * factor[1])
    if layer.interpolation == "nearest":
        # Whole factors: without half-pixel centers this repeats every pixel, as Keras does.
        return builder.resize_nearest(tensor, state.name(call.path), size, half_pixel_centers=False)
    if all(each % 2 for each in factor):
        # Every pixel repeated, then means of as many neighbours: the same weights, in whole numbers.
        repeated = builder.resize_nearest(tensor, state.name(f"{call.path}/repeated"), size, half_pixel_centers=False)
        return builder.average_pool2d(repeated, state.name(call.path), factor, (1, 1), "same")
    return _bilinear(state, call, tensor, size)


@moves(*RESIZES)
def _resize(state: Lowering, call: Call, tensor: str) -> str:
    height, width = call.results[0].shape[1:3]
    if call.operation.interpolation == "nearest":
        return state.builder.resize_nearest(tensor, state.name(call.path), (height, width))
    return _bilinear(state, call, tensor, (height, width))


def _bilinear(state: Lowering, call: Call, tensor: str, size: tuple[int, int]) -> str:
    builder, name, before = state.builder, state.name(call.path), state.static_shape(tensor)[:2]
    if all(map(meets_positions, before, size)):
        return builder.resize_bilinear(tensor, name, size)
    grid = builder.tensor(tensor).range
    columns = builder.transpose(tensor, state.name(f"{name}/columns"), _COLUMNS)
    high = builder.fully_connected(columns, *_neighbours(before[0], size[0]), None, grid, state.name(f"{name}/high"))
    rows = builder.transpose(high, state.name(f"{name}/rows"), _TO_ROWS)
    wide = builder.fully_connected(rows, *_neighbours(before[1], size[1]), None, grid, state.name(f"{name}/wide"))
    return builder.transpose(wide, name, _BACK)


def _neighbours(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [before, after] and scales of the weights that the pixels of a row have in those of the resized one.

    They are fractions of one denominator: exact where that is small enough.
    """
    doubled = (2 * np.arange(after) + 1) * before - after  # twice the positions, times their number
    common = math.gcd(2 * after, *(int(each) for each in doubled))
    parts = 2 * after // common
    step = max(_LARGEST // parts, 1) * parts if parts <= _LARGEST else _LARGEST
    lower, share = np.divmod(doubled / (2 * after), 1)
    upper = np.round(share * step).astype(np.int8)
    codes = np.zeros((before, after), np.int8)
    for row, weight in ((lower, step - upper), (lower + 1, upper)):
        np.add.at(codes, (np.clip(row.astype(int), 0, before - 1), np.arange(after)), weight.astype(np.int8))
    return codes, np.full(after, 1 / step)
