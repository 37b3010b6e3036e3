"""Operations that move, select or average values: they keep the range of their input."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.convert.analysis.supported import AUGMENTATIONS, DROPOUTS, index_of
from keras_lowbit.deploy.lowering.state import Lowering, static_shape
from keras_lowbit.deploy.lowering.values import Floating, Pending, Stored
from keras_lowbit.keras_graph.calls import Call

# Nothing happens in inference: the result is the input itself. An Activation here is linear; others have other roles.
_ALIASES = {*DROPOUTS, *AUGMENTATIONS, "InputLayer", "Identity", "ActivityRegularization", "Activation"}


def lower_move(state: Lowering, call: Call) -> bool:
    """Lower one range-keeping call; False for one between operations that run in float."""
    kind, key = stock_kind(call.operation), call.outputs[0]
    value = state.values[call.inputs[0]]
    if kind in _ALIASES:
        if isinstance(value, (Pending, Stored)):
            state.values[key] = type(value)(**{**vars(value), "trail": value.trail.add(call=call)})
            return True
        return False
    if isinstance(value, Floating):
        return False
    source = state.stored(call.inputs[0], call)
    state.store(key, _MOVES[kind](state, call, source.tensor), source.trail.add(call=call))
    return True


def _reshape(state: Lowering, call: Call, tensor: str) -> str:
    """Reshape, Flatten, Squeeze, ExpandDims: the sizes Keras found, with those of variable inputs filled in."""
    wanted = [-1 if size is None else size for size in call.results[0].shape[1:]]
    return state.builder.reshape(tensor, state.name(call.path), wanted)


def _permute(state: Lowering, call: Call, tensor: str) -> str:
    operation, rank = call.operation, len(call.tensors[0].shape)
    perm = [0, *operation.dims] if hasattr(operation, "dims") else [axis % rank for axis in operation.axes]
    return state.builder.transpose(tensor, state.name(call.path), perm)


def _pad(state: Lowering, call: Call, tensor: str) -> str:
    operation, rank = call.operation, len(static_shape(state, tensor))
    if hasattr(operation, "pad_width"):
        widths = np.broadcast_to(operation.pad_width, (rank + 1, 2)).tolist()
        return state.builder.pad(tensor, state.name(call.path), widths[1:])
    padding = operation.padding
    pairs = [padding] if isinstance(padding[0], int) else list(padding)
    return state.builder.pad(tensor, state.name(call.path), [*pairs, (0, 0)])


def _crop(state: Lowering, call: Call, tensor: str) -> str:
    cropping = call.operation.cropping
    pairs = [cropping] if isinstance(cropping[0], int) else list(cropping)
    sizes = static_shape(state, tensor)
    begin = [before for before, _ in pairs] + [0]
    end = [size - after for size, (_, after) in zip(sizes, pairs, strict=False)] + [sizes[-1]]
    return state.builder.strided_slice(tensor, state.name(call.path), begin, end)


def _get_item(state: Lowering, call: Call, tensor: str) -> str:
    """``x[:, a:b:c, i, ...]``: slices of positive steps and whole numbers, the batch whole."""
    parts = index_of(call) or []
    cuts = [part if isinstance(part, slice) else slice(part, part + 1 or None) for part in parts[1:]]
    steps = [cut.step or 1 for cut in cuts]
    name, drops = state.name(call.path), any(isinstance(part, int) for part in parts)
    whole = state.builder.strided_slice(
        tensor, f"{name}/slice" if drops else name, [cut.start or 0 for cut in cuts], [cut.stop for cut in cuts], steps
    )
    if not drops:
        return whole
    kept = zip(parts[1:], static_shape(state, whole), strict=True)
    return state.builder.reshape(whole, name, [size for part, size in kept if isinstance(part, slice)])


def _pool(kind: str) -> Callable[[Lowering, Call, str], str]:
    def make(state: Lowering, call: Call, tensor: str) -> str:
        layer, sizes, builder = call.operation, static_shape(state, tensor), state.builder
        pool = builder.max_pool2d if kind == "max" else builder.average_pool2d
        size, strides = tuple(layer.pool_size), tuple(layer.strides)
        if len(size) == 2:
            return pool(tensor, state.name(call.path), size, strides, layer.padding)
        name = state.name(call.path)
        image = builder.reshape(tensor, state.name(f"{name}/image"), (1, *sizes))
        inner = pool(image, state.name(f"{name}/pool"), (1, size[0]), (1, strides[0]), layer.padding)
        return builder.reshape(inner, name, static_shape(state, inner)[1:])

    return make


def _global_average(state: Lowering, call: Call, tensor: str) -> str:
    layer, builder = call.operation, state.builder
    axes = tuple(range(1, len(static_shape(state, tensor))))
    return builder.mean(tensor, builder.tensor(tensor).range, state.name(call.path), axes, layer.keepdims)


def _global_max(state: Lowering, call: Call, tensor: str) -> str:
    layer, builder, sizes = call.operation, state.builder, static_shape(state, tensor)
    name = state.name(call.path)
    image = tensor
    if len(sizes) == 2:
        image = builder.reshape(tensor, state.name(f"{name}/image"), (1, *sizes))
    pooled = builder.max_pool2d(image, state.name(f"{name}/pool"), static_shape(state, image)[:2], (1, 1))
    shape = [1] * (len(sizes) - 1) * layer.keepdims + [sizes[-1]]
    return builder.reshape(pooled, name, shape)


def _upsample(state: Lowering, call: Call, tensor: str) -> str:
    layer, builder, sizes = call.operation, state.builder, static_shape(state, tensor)
    factor: Any = layer.size
    size = (sizes[0] * factor[0], sizes[1] * factor[1])
    if layer.interpolation == "nearest":
        # Whole factors: without half-pixel centers this repeats every pixel, as Keras does.
        return builder.resize_nearest(tensor, state.name(call.path), size, half_pixel_centers=False)
    return builder.resize_bilinear(tensor, state.name(call.path), size)


_MOVES: dict[str, Callable[[Lowering, Call, str], str]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "ExpandDims"), _reshape),
    **dict.fromkeys(("Permute", "Transpose"), _permute),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D", "Pad"), _pad),
    **dict.fromkeys(("Cropping1D", "Cropping2D"), _crop),
    "GetItem": _get_item,
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D"), _pool("max")),
    **dict.fromkeys(("AveragePooling1D", "AveragePooling2D"), _pool("average")),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), _global_average),
    **dict.fromkeys(("GlobalMaxPooling1D", "GlobalMaxPooling2D"), _global_max),
    "UpSampling2D": _upsample,
}
