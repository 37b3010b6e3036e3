"""TensorFlow's functions of shapes, by `keras.ops`."""

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


@stands_for("repeat")
def _repeat(input: Any, repeats: Any, axis: Any = None, name: Any = None) -> Any:
    return ops.repeat(input, int(repeats), axis=axis_of(axis))


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
