"""Operations that pick places of axes in another order, or some of them more than once: flip, roll, repeat, tile, take."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_lowbit.keras_graph.calls import Call

Places = dict[int, list[int]]  # axis, the batch being 0 -> the places on it, in their new order


def picks(call: Call, kind: str, sizes: Sequence[int]) -> Places | None:
    """Which places of which axes a call picks; None if it picks parts of the batch, or unknown places. kind: class name of it.

    sizes: of its tensor, without the batch.
    """
    rule = _RULES.get(kind)
    found = None if rule is None else rule(call, [1, *sizes])
    if found is None or 0 in found:
        return None
    return {axis: places for axis, places in found.items() if places != list(range(sizes[axis - 1]))}


def _axis(axis: Any, sizes: Sequence[int]) -> int | None:
    return None if axis is None else int(axis) % len(sizes)


def _flip(call: Call, sizes: Sequence[int]) -> Places | None:
    given = call.operation.axis
    axes = [given] if given is None or isinstance(given, int) else given
    found = [_axis(axis, sizes) for axis in axes]
    return None if None in found else {axis: list(range(sizes[axis]))[::-1] for axis in found if axis is not None}


def _roll(call: Call, sizes: Sequence[int]) -> Places | None:
    axis, shift = call.operation.axis, call.operation.shift
    if not isinstance(axis, int) or not isinstance(shift, int):
        return None
    axis = axis % len(sizes)
    return {axis: np.roll(np.arange(sizes[axis]), shift).tolist()}


def _repeat(call: Call, sizes: Sequence[int]) -> Places | None:
    axis, repeats = _axis(call.operation.axis, sizes), np.atleast_1d(call.operation.repeats)
    if axis is None or repeats.size not in (
        1,
        sizes[axis],
    ):  # one for each place of an axis of another size: not yet known
        return None
    return {axis: np.repeat(np.arange(sizes[axis]), repeats).tolist()}


def _upsample(call: Call, sizes: Sequence[int]) -> Places | None:
    return {1: np.repeat(np.arange(sizes[1]), call.operation.size).tolist()}


def _tile(call: Call, sizes: Sequence[int]) -> Places | None:
    given = call.operation.repeats
    repeats = [given] if isinstance(given, int) else list(given)
    if len(repeats) > len(sizes):
        return None
    repeats = [1] * (len(sizes) - len(repeats)) + repeats
    return {
        axis: list(range(size)) * count
        for axis, (size, count) in enumerate(zip(sizes, repeats, strict=True))
        if count != 1
    }


def _take(call: Call, sizes: Sequence[int]) -> Places | None:
    axis, given = _axis(call.operation.axis, sizes), [*call.arguments.args, *call.arguments.kwargs.values()]
    if axis is None or len(call.inputs) != 1 or given[0] is not call.tensors[0]:
        return None
    indices = np.asarray(given[1])
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        return None
    places = indices.tolist()
    inside = all(-sizes[axis] <= place < sizes[axis] for place in places)
    return {axis: [place % sizes[axis] for place in places]} if inside else None


_RULES: dict[str, Callable[[Call, Sequence[int]], Places | None]] = {
    "Flip": _flip,
    "Roll": _roll,
    "Repeat": _repeat,
    "Tile": _tile,
    "Take": _take,
    "UpSampling1D": _upsample,
}
KINDS = tuple(_RULES)
