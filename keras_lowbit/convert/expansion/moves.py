"""What only moves values, in operations that have integers: blocks of pixels to channels and back, other orders of axes, and
functions of TensorFlow of which it is found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, expands, sizes_of
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.depth import build_model
from keras_lowbit.keras_graph.variables import to_numpy

_MOST_PLACES = 16384  # that a function moves in an order of its own: each has four bytes in the file
_EXACT = 2**24  # whole numbers that float32 holds


@expands("DepthToSpace", "SpaceToDepth")
def blocks(call: Call) -> Compose | None:
    """Blocks of pixels from channels, or to them."""
    operation, sizes = call.operation, sizes_of(call.tensors[0])
    if sizes is None or operation.data_format != "channels_last":
        return None
    move = depth_to_space if call.kind == "DepthToSpace" else space_to_depth
    return lambda parts, values: move(parts, values[call.inputs[0]], operation.block_size)


def depth_to_space(parts: Parts, x: Any, size: int) -> Any:
    """[H, W, size^2 C] as [size H, size W, C]."""
    height, width, channels = (int(length) for length in x.shape[1:])
    blocks = parts.named(ops.reshape(x, (-1, height, width, size, size * channels // size**2)), "blocks")
    rows = parts.named(ops.transpose(blocks, (0, 1, 3, 2, 4)), "rows")
    return parts.named(ops.reshape(rows, (-1, height * size, width * size, channels // size**2)))


def space_to_depth(parts: Parts, x: Any, size: int) -> Any:
    """[size H, size W, C] as [H, W, size^2 C]."""
    height, width, channels = (int(length) for length in x.shape[1:])
    rows = parts.named(ops.reshape(x, (-1, height // size, size, width // size, size * channels)), "rows")
    blocks = parts.named(ops.transpose(rows, (0, 1, 3, 2, 4)), "blocks")
    return parts.named(ops.reshape(blocks, (-1, height // size, width // size, channels * size**2)))


@expands("Swapaxes", "Moveaxis")
def other_order(call: Call) -> Compose | None:
    """A transpose."""
    operation, rank = call.operation, len(call.tensors[0].shape)
    probe = np.empty(range(1, rank + 1))
    if call.kind == "Swapaxes":
        moved = np.swapaxes(probe, operation.axis1, operation.axis2)
    else:
        moved = np.moveaxis(probe, operation.source, operation.destination)
    order = [size - 1 for size in moved.shape]
    return (lambda parts, values: parts.named(ops.transpose(values[call.inputs[0]], order))) if order[0] == 0 else None


def moved_by_function(call: Call) -> Compose | None:
    """A function of one tensor that only moves values: blocks of pixels, or places picked one by one."""
    sizes, wanted = sizes_of(call.tensors[0]), sizes_of(call.results[0])
    if sizes is None or wanted is None or not wanted or call.tensors[0].dtype != call.results[0].dtype:
        return None
    places = _places(lambda x: call.run({call.inputs[0]: x})[0], sizes)
    if places is None or places.shape != wanted:
        return None
    if (compose := _as_blocks(call, places, sizes)) is not None:
        return compose
    if places.size > _MOST_PLACES:
        return None

    def compose_places(parts: Parts, values: Values) -> Any:
        flat = parts.named(ops.reshape(values[call.inputs[0]], (-1, math.prod(sizes))), "flat")
        picked = parts.named(ops.take(flat, places.reshape(-1), axis=1), "picked")
        return parts.named(ops.reshape(picked, (-1, *wanted)))

    return compose_places


def _as_blocks(call: Call, places: np.ndarray, sizes: tuple[int, ...]) -> Compose | None:
    """The move of blocks of pixels that has these places."""
    if len(sizes) != 3 or places.ndim != 3 or places.size != math.prod(sizes):
        return None
    grows = places.shape[0] > sizes[0]
    size = max(places.shape[0], sizes[0]) // min(places.shape[0], sizes[0])
    inner, outer = (sizes, places.shape) if grows else (places.shape, sizes)
    if size < 2 or outer != (inner[0] * size, inner[1] * size, inner[2] // size**2) or inner[2] % size**2:
        return None
    move = depth_to_space if grows else space_to_depth
    entry = keras.Input(sizes)
    known = _places(build_model(entry, move(Parts(call, {}, {}), entry, size)), sizes)
    if known is None or not np.array_equal(known, places):
        return None
    return lambda parts, values: move(parts, values[call.inputs[0]], size)


def _places(function: Callable[[Any], Any], sizes: tuple[int, ...]) -> np.ndarray | None:
    """Where each value of the result of one sample comes from, flat; None of a function that does anything else than move.

    Tried with the numbers of the places of two samples, then with others there.
    """
    count = math.prod(sizes)
    if 2 * count > _EXACT:
        return None
    numbers = np.arange(2 * count, dtype=np.float32)
    other = np.random.default_rng(0).normal(size=2 * count).astype(np.float32)
    try:
        first, second = (
            to_numpy(function(ops.convert_to_tensor(given.reshape(2, *sizes)))) for given in (numbers, other)
        )
    except Exception:  # whatever a user's function raises for another batch: it then runs in float, as it is
        return None
    if first.shape[:1] != (2,) or second.shape != first.shape or not np.isin(first, numbers).all():
        return None
    places = first.astype(np.int64)
    apart = (places[0] < count).all() and np.array_equal(places[0] + count, places[1])
    return places[0] if apart and np.array_equal(other[places], second) else None
