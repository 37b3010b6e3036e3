"""Operations on windows of an image: pools, means, resizing. Windows follow TensorFlow.

"same" gives `ceil(in / stride)` windows, "valid" gives `floor((in - reach) / stride) + 1` with
`reach = (kernel - 1) * dilation + 1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from keras_lowbit.deploy.graph.operations.attributes import FLAG, PADDING, wholes
from keras_lowbit.deploy.graph.operations.operation import (
    FREE,
    Attributes,
    Builtin,
    Limit,
    Operation,
    Shape,
    Use,
    image_of,
    only_int16,
    output_scale,
    scales,
)


def windows(size: int, kernel: int, stride: int, padding: str, dilation: int = 1) -> int:
    """How many windows fit into `size`. ValueError if none does."""
    reach = (kernel - 1) * dilation + 1
    count = -(-size // stride) if padding == "same" else (size - reach) // stride + 1
    if count < 1:
        raise ValueError(
            f"a window of {reach} (kernel {kernel}, dilation {dilation}) does not fit into size {size} with padding 'valid'; "
            "pad first or use padding 'same'"
        )
    return count


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one axis with padding "same": the smaller half comes first."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def litert_window(attributes: Attributes) -> dict[str, Any]:
    """The fields of LiteRT's options for strides, dilation, window and padding."""
    sides = (("H", "Height"), ("W", "Width"))
    found: dict[str, Any] = {"padding": attributes["padding"]}
    for i, (short, long) in enumerate(sides):
        found[f"stride{short}"] = attributes["strides"][i]
        if "dilation" in attributes:
            found[f"dilation{short}Factor"] = attributes["dilation"][i]
        if "pool_size" in attributes:
            found[f"filter{long}"] = attributes["pool_size"][i]
    return found


def _pool_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    image = image_of(shapes[0], "pooling input")
    pool, strides = attributes["pool_size"], attributes["strides"]
    sizes = (windows(image[i], pool[i], strides[i], attributes["padding"]) for i in (0, 1))
    return (None, *sizes, image[2])


def _pool_builtin(kind: str) -> Callable[[Use], Builtin]:
    return lambda use: Builtin(kind, 2, "Pool2DOptions", litert_window(use.attributes))


def _reduced_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    shape, axes = shapes[0], attributes["axes"]
    if not axes or len(set(axes)) != len(axes) or not all(1 <= a < len(shape) for a in axes):
        raise ValueError(
            f"axes {list(axes)} do not fit shape {shape}: expected different numbers from 1 to {len(shape) - 1}"
        )
    kept = ((i, 1 if i in axes else d) for i, d in enumerate(shape))
    return tuple(d for i, d in kept if attributes["keepdims"] or i not in axes)


def _mean_builtin(use: Use) -> Builtin:
    return _reducer("MEAN", use)


def _reducer(kind: str, use: Use) -> Builtin:
    constants = {"axes": use.attributes["axes"]}
    return Builtin(kind, 2, "ReducerOptions", {"keepDims": use.attributes["keepdims"]}, constants)


def _averaged(use: Use) -> float:
    """How many codes an average is of."""
    sizes = use.inputs[0].shape
    return math.prod(use.attributes.get("pool_size") or [sizes[axis] or 1 for axis in use.attributes["axes"]])


def _resize_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    channels = image_of(shapes[0], "resize input")[2]
    if attributes["half_pixel_centers"] and attributes["align_corners"]:
        raise ValueError("half_pixel_centers and align_corners are both true: LiteRT takes at most one of them")
    return (None, *attributes["size"], channels)


def _resize_builtin(kind: str, options: str) -> Callable[[Use], Builtin]:
    def builtin(use: Use) -> Builtin:
        corners, centers = use.attributes["align_corners"], use.attributes["half_pixel_centers"]
        new = centers or (corners and kind == "RESIZE_NEAREST_NEIGHBOR")
        fields = {"alignCorners": corners, "halfPixelCenters": centers}
        return Builtin(kind, 3 if new else 2, options, fields, {"size": use.attributes["size"]})

    return builtin


# XNNPACK is within one step of the reference up to 2**18, and from 2**23 on it saturates to the wrong side.
_FACTOR = Limit("input scale / output scale", lambda use: scales(use)[0] / output_scale(use), 2.0**16)

_SUMMED = only_int16(Limit("number of averaged codes", lambda use: _averaged(use), 2.0**16))  # in int32

_POOL: dict[str, Any] = {
    "int16": 3,
    "takes": {"pool_size": wholes(1, 2), "strides": wholes(1, 2), "padding": PADDING},
    "fuses_activation": True,
}
_OVER_AXES: dict[str, Any] = {"takes": {"axes": wholes(0), "keepdims": FLAG}, "int16": 3}
_RESIZE: dict[str, Any] = {
    "takes": {"size": wholes(1, 2), "half_pixel_centers": FLAG, "align_corners": FLAG},
    "int16": 4,
}

MAX_POOL2D = Operation("max_pool2d", _pool_shape, _pool_builtin("MAX_POOL_2D"), **_POOL)
AVERAGE_POOL2D = Operation("average_pool2d", _pool_shape, _pool_builtin("AVERAGE_POOL_2D"), limits=(_SUMMED,), **_POOL)
MEAN = Operation("mean", _reduced_shape, _mean_builtin, range=FREE, limits=(_FACTOR, _SUMMED), **_OVER_AXES)
REDUCE_MAX = Operation("reduce_max", _reduced_shape, lambda use: _reducer("REDUCE_MAX", use), **_OVER_AXES)
REDUCE_MIN = Operation("reduce_min", _reduced_shape, lambda use: _reducer("REDUCE_MIN", use), **_OVER_AXES)
RESIZE_NEAREST = Operation(
    "resize_nearest",
    _resize_shape,
    _resize_builtin("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
    **_RESIZE,
)
RESIZE_BILINEAR = Operation(
    "resize_bilinear", _resize_shape, _resize_builtin("RESIZE_BILINEAR", "ResizeBilinearOptions"), **_RESIZE
)
