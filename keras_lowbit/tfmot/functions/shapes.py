"""TensorFlow's functions of shapes and images, by `keras.ops`."""

from typing import Any

import numpy as np
from keras import ops

from keras_lowbit.tfmot.functions.registry import axis_of, is_constant, require_default, stands_for


@stands_for("shape")
def _shape(input: Any, name: Any = None, out_type: Any = None, optimize: bool = True) -> Any:
    return tuple(input.shape)  # None where it is variable


@stands_for("reshape", "keras.backend.reshape")
def _reshape(tensor: Any, shape: Any, name: Any = None) -> Any:
    sizes = [shape] if isinstance(shape, int) else list(shape)
    return ops.reshape(tensor, tuple(-1 if size is None else int(size) for size in sizes))


@stands_for("keras.backend.batch_flatten")
def _batch_flatten(x: Any) -> Any:
    return ops.reshape(x, (-1, int(np.prod(x.shape[1:]))))


@stands_for("transpose")
def _transpose(a: Any, perm: Any = None, name: Any = None, conjugate: bool = False) -> Any:
    return ops.transpose(a, None if perm is None else tuple(int(axis) for axis in perm))


@stands_for("expand_dims")
def _expand_dims(input: Any, axis: Any = None, name: Any = None, dim: Any = None) -> Any:
    return ops.expand_dims(input, axis_of(axis if dim is None else dim))


@stands_for("squeeze")
def _squeeze(input: Any, axis: Any = None, name: Any = None, squeeze_dims: Any = None) -> Any:
    return ops.squeeze(input, axis_of(axis if squeeze_dims is None else squeeze_dims))


@stands_for("concat")
def _concat(values: Any, axis: Any, name: Any = None) -> Any:
    if all(map(is_constant, values)):  # parts of a shape
        return tuple(size for part in values for size in part)
    return ops.concatenate(list(values), int(axis))


@stands_for("stack")
def _stack(values: Any, axis: int = 0, name: Any = None) -> Any:
    if all(map(is_constant, values)):
        return tuple(values)
    return ops.stack(list(values), int(axis))


@stands_for("unstack")
def _unstack(value: Any, num: int | None = None, axis: int = 0, name: Any = None) -> Any:
    return ops.unstack(value, num, axis)


@stands_for("split")
def _split(value: Any, num_or_size_splits: Any, axis: int = 0, num: Any = None, name: Any = None) -> Any:
    sizes = np.asarray(num_or_size_splits)
    if sizes.ndim == 0:
        return ops.split(value, int(sizes), int(axis))
    return ops.split(value, [int(end) for end in np.cumsum(sizes)[:-1]], int(axis))


@stands_for("tile")
def _tile(input: Any, multiples: Any, name: Any = None) -> Any:
    return ops.tile(input, tuple(int(times) for times in multiples))


@stands_for("reverse")
def _reverse(tensor: Any, axis: Any, name: Any = None) -> Any:
    return ops.flip(tensor, axis_of(axis))


@stands_for("gather")
def _gather(
    params: Any, indices: Any, validate_indices: Any = None, name: Any = None, axis: Any = 0, **others: Any
) -> Any:
    require_default({key: value for key, value in others.items() if value}, "gather")
    return ops.take(params, np.asarray(indices) if is_constant(indices) else indices, axis=axis_of(axis))


@stands_for("pad")
def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", name: Any = None, constant_values: Any = 0) -> Any:
    widths = tuple(tuple(int(width) for width in pair) for pair in np.asarray(paddings))
    filling = {"constant_values": float(constant_values)} if constant_values else {}
    return ops.pad(tensor, widths, mode.lower(), **filling)


@stands_for("__operators__.getitem", "strided_slice")
def _getitem(tensor: Any, slice_spec: Any, var: Any = None) -> Any:
    parts = slice_spec if isinstance(slice_spec, (tuple, list)) else (slice_spec,)
    key = tuple(slice(part["start"], part["stop"], part["step"]) if isinstance(part, dict) else part for part in parts)
    if is_constant(tensor):  # a shape
        return tensor[key[0]]
    return tensor[key]


# ---------------------------------------------------------------- images


@stands_for("image.resize")
def _resize(images: Any, size: Any, method: Any = "bilinear", **others: Any) -> Any:
    require_default(others, "image.resize")
    return ops.image.resize(images, tuple(int(side) for side in size), str(method), data_format="channels_last")


@stands_for("nn.avg_pool2d", "nn.avg_pool")
def _average_pool(input: Any = None, ksize: Any = 2, strides: Any = None, padding: str = "VALID", **others: Any) -> Any:
    value = others.pop("value", input)
    require_default(others, "nn.avg_pool2d", data_format="NHWC")
    return ops.average_pool(value, _window(ksize), _window(strides), padding.lower(), "channels_last")


@stands_for("nn.max_pool2d", "nn.max_pool")
def _max_pool(input: Any = None, ksize: Any = 2, strides: Any = None, padding: str = "VALID", **others: Any) -> Any:
    value = others.pop("value", input)
    require_default(others, "nn.max_pool2d", data_format="NHWC")
    return ops.max_pool(value, _window(ksize), _window(strides), padding.lower(), "channels_last")


def _window(sizes: Any) -> tuple[int, int]:
    """Height and width of a window or stride, as TensorFlow writes it: one number, two, or four with batch and channels."""
    found = [int(size) for size in np.atleast_1d(sizes)]
    height, width = found * 2 if len(found) == 1 else found[1:3] if len(found) == 4 else found
    return height, width


@stands_for("nn.depth_to_space")
def _depth_to_space(input: Any, block_size: int, data_format: str = "NHWC", name: Any = None) -> Any:
    require_default({"data_format": data_format}, "nn.depth_to_space", data_format="NHWC")
    _, height, width, channels = input.shape
    parts = ops.reshape(input, (-1, height, width, block_size, block_size, channels // block_size**2))
    return ops.reshape(
        ops.transpose(parts, (0, 1, 3, 2, 4, 5)),
        (-1, height * block_size, width * block_size, channels // block_size**2),
    )


@stands_for("nn.space_to_depth")
def _space_to_depth(input: Any, block_size: int, data_format: str = "NHWC", name: Any = None) -> Any:
    require_default({"data_format": data_format}, "nn.space_to_depth", data_format="NHWC")
    _, height, width, channels = input.shape
    parts = ops.reshape(input, (-1, height // block_size, block_size, width // block_size, block_size, channels))
    return ops.reshape(
        ops.transpose(parts, (0, 1, 3, 2, 4, 5)),
        (-1, height // block_size, width // block_size, channels * block_size**2),
    )
