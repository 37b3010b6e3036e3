"""Operations that move, select or resize values: they keep the range of their input."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from keras_lowbit.convert.analysis import picks
from keras_lowbit.convert.analysis.operations import Category, category_of, stock_kind
from keras_lowbit.convert.analysis.supported import AUGMENTATIONS, DROPOUTS, SPLITS, index_of
from keras_lowbit.deploy.lowering.registry import Handler, lowers
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.deploy.lowering.values import DeferredOp, FloatTensor, QuantizedTensor
from keras_lowbit.keras_graph.calls import Call

Move = Callable[[Lowering, Call, str], str]  # of a call and the tensor it reads: the name of the tensor it makes


@lowers(*DROPOUTS, *AUGMENTATIONS, "InputLayer", "Identity", "ActivityRegularization")
def pass_on(state: Lowering, call: Call) -> bool:
    """Nothing happens at inference: the result is the input itself."""
    value = state.values[call.inputs[0]]
    if not isinstance(value, (DeferredOp, QuantizedTensor)):
        return False
    state.values[call.outputs[0]] = replace(value, provenance=value.provenance.add(call=call))
    return True


MOVES: dict[str, Move] = {}  # by the class name of a stock layer or operation


def moves(*kinds: str) -> Callable[[Move], Move]:
    """Decorator: the function lowers calls of these stock classes; between operations that run in float they do, too."""

    def register(move: Move) -> Move:
        lowers(*kinds)(mover(move))
        MOVES.update(dict.fromkeys(kinds, move))
        return move

    return register


def mover(move: Move) -> Handler:
    """The handler of calls that `move` lowers."""

    def handle(state: Lowering, call: Call) -> bool:
        if isinstance(state.values[call.inputs[0]], FloatTensor):
            return False
        source, rounded = state.stored(call.inputs[0], call), category_of(call) is not Category.ROUNDS_IN_RANGE
        made = move(state, call, source.tensor)
        state.store(call.outputs[0], made, source.provenance.add(call=call), rounded=rounded)
        return True

    return handle


@moves("Reshape", "Flatten", "Squeeze", "ExpandDims")
def _reshape(state: Lowering, call: Call, tensor: str) -> str:
    """Reshape, Flatten, Squeeze, ExpandDims: the sizes Keras found, with those of variable inputs filled in."""
    sizes = [-1 if size is None else size for size in call.results[0].shape[1:]]
    return state.builder.reshape(tensor, state.name(call.path), sizes)


@lowers("Permute", "Transpose")
def lower_permute(state: Lowering, call: Call) -> bool:
    """A transpose; where it only turns matrices for a product, the product does."""
    return pass_on(state, call) if turns_for_product(state, call) else mover(_transpose)(state, call)


def _transpose(state: Lowering, call: Call, tensor: str) -> str:
    return state.builder.transpose(tensor, state.name(call.path), _perm(call))


MOVES["Transpose"] = _transpose


def turns_for_product(state: Lowering, call: Call | None) -> bool:
    """Whether a call turns matrices of which only a product of two tensors reads the result, as its second."""
    if call is None or call in state.in_float or stock_kind(call.operation) not in ("Permute", "Transpose"):
        return False
    *outer, rows, columns = range(len(call.tensors[0].shape))
    reader = state.calls.only_consumer(call.outputs[0])
    turned = bool(outer) and _perm(call) == [*outer, columns, rows]
    if reader is None or reader in state.in_float or stock_kind(reader.operation) != "Matmul":
        return False
    return turned and reader.inputs[1:] == call.outputs


def _perm(call: Call) -> list[int]:
    operation, rank = call.operation, len(call.tensors[0].shape)
    return [0, *operation.dims] if hasattr(operation, "dims") else [axis % rank for axis in operation.axes]


@moves("Max", "Min")
def _extremum_over_axes(state: Lowering, call: Call, tensor: str) -> str:
    """`keras.ops.max` and `min` over any axes but the batch."""
    axis, rank = call.operation.axis, len(call.tensors[0].shape)
    axes = sorted(a % rank for a in ([axis] if isinstance(axis, int) else axis))
    attributes = {"axes": axes, "keepdims": bool(call.operation.keepdims)}
    kind = f"reduce_{stock_kind(call.operation).lower()}"
    return state.builder.operation(kind, (tensor,), state.name(call.path), attributes=attributes)


@moves("ZeroPadding1D", "ZeroPadding2D", "Pad")
def _pad(state: Lowering, call: Call, tensor: str) -> str:
    operation, rank = call.operation, len(state.static_shape(tensor))
    if hasattr(operation, "pad_width"):
        widths = np.broadcast_to(operation.pad_width, (rank + 1, 2)).tolist()
        if operation.mode != "constant":
            sizes = state.static_shape(tensor)
            places = {
                axis: np.pad(np.arange(size), widths[axis], mode=operation.mode).tolist()
                for axis, size in enumerate(sizes, 1)
                if any(widths[axis])
            }
            return _gather(state, tensor, places, state.name(call.path), last=True)
        return state.builder.pad(tensor, state.name(call.path), widths[1:])
    padding = operation.padding
    pairs = [padding] if isinstance(padding[0], int) else list(padding)
    return state.builder.pad(tensor, state.name(call.path), [*pairs, (0, 0)])


@moves("Cropping1D", "Cropping2D")
def _crop(state: Lowering, call: Call, tensor: str) -> str:
    cropping = call.operation.cropping
    pairs = [cropping] if isinstance(cropping[0], int) else list(cropping)
    sizes = state.static_shape(tensor)
    begin = [before for before, _ in pairs] + [0]
    end = [size - after for size, (_, after) in zip(sizes, pairs, strict=False)] + [sizes[-1]]
    return state.builder.strided_slice(tensor, state.name(call.path), begin, end)


@moves("GetItem")
def _get_item(state: Lowering, call: Call, tensor: str) -> str:
    """``x[:, a:b:c, i, None, ...]``: slices, whole numbers and new axes, the batch whole."""
    parts, sizes = (index_of(call) or [])[1:], state.static_shape(tensor)
    name, axes = state.name(call.path), len(call.results[0].shape) - 1
    drops = any(isinstance(part, int) for part in parts) or axes > len(parts)
    places = {axis: _backwards(cut, sizes[axis - 1]) for axis, cut in enumerate(parts, 1) if _goes_back(cut)}
    cuts = [_forwards(part) for part in parts]
    if places and not drops and all(cut == slice(None) for cut in cuts):
        return _gather(state, tensor, places, name, last=True)
    tensor = _gather(state, tensor, places, name, last=False)
    whole = state.builder.strided_slice(
        tensor,
        f"{name}/slice" if drops else name,
        [cut.start or 0 for cut in cuts],
        [cut.stop for cut in cuts],
        [cut.step or 1 for cut in cuts],
    )
    if not drops:
        return whole
    kept = zip(parts, state.static_shape(whole), strict=True)
    cut_sizes = [size for part, size in kept if isinstance(part, slice)]
    wanted = call.results[0].shape[1:]
    return state.builder.reshape(whole, name, cut_sizes if len(cut_sizes) == axes else wanted)


def _goes_back(part: int | slice) -> bool:
    return isinstance(part, slice) and (part.step or 1) < 0


def _backwards(part: Any, size: int) -> list[int]:
    return list(range(*part.indices(size)))


def _forwards(part: int | slice) -> slice:
    """What is left to cut behind the gathers of the axes that are read backwards."""
    if isinstance(part, int):
        return slice(part, part + 1 or None)
    return slice(None) if _goes_back(part) else part


@lowers(*SPLITS)
def lower_split(state: Lowering, call: Call) -> bool:
    """A slice for each part; those of an Unstack lose the axis."""
    if isinstance(state.values[call.inputs[0]], FloatTensor):
        return False
    source, start = state.stored(call.inputs[0], call), 0
    sizes = state.static_shape(source.tensor)
    axis, drops = call.operation.axis % (len(sizes) + 1), stock_kind(call.operation) == "Unstack"
    for place, (key, result) in enumerate(zip(call.outputs, call.results, strict=True)):
        length = 1 if drops else result.shape[axis]
        begin, end = [0] * len(sizes), list(sizes)
        begin[axis - 1], end[axis - 1] = start, start + length
        start += length
        made = state.builder.strided_slice(source.tensor, state.name(f"{call.path}/part_{place}"), begin, end)
        if drops:
            kept = sizes[: axis - 1] + sizes[axis:]
            made = state.builder.reshape(made, state.name(f"{call.path}/{place}"), kept)
        state.store(key, made, source.provenance.add(call=call))
    return True


@moves(*picks.KINDS)
def _pick(state: Lowering, call: Call, tensor: str) -> str:
    found = picks.picks(call, stock_kind(call.operation), state.static_shape(tensor)) or {}
    return _gather(state, tensor, found, state.name(call.path), last=True)


def _gather(state: Lowering, tensor: str, places: picks.Places, name: str, last: bool) -> str:
    """One gather after the other. last: whether nothing else of the call comes behind, so that the last has its name."""
    for count, (axis, indices) in enumerate(places.items(), 1):
        final = last and count == len(places)
        tensor = state.builder.gather(tensor, name if final else state.name(f"{name}/axis_{axis}"), axis, indices)
    return tensor


@moves("RepeatVector")
def _repeat_vector(state: Lowering, call: Call, tensor: str) -> str:
    row = state.builder.reshape(tensor, state.name(f"{call.path}/row"), (1, *state.static_shape(tensor)))
    return state.builder.gather(row, state.name(call.path), 1, [0] * call.operation.n)


@moves("MaxPooling1D", "MaxPooling2D")
def _max_pool(state: Lowering, call: Call, tensor: str) -> str:
    return pool(state, call, tensor, state.builder.max_pool2d)


def pool(state: Lowering, call: Call, tensor: str, make: Callable[..., str]) -> str:
    """A pool made by a method of the builder; in one dimension one of height 1 between two reshapes."""
    layer, builder, name = call.operation, state.builder, state.name(call.path)
    size, strides = tuple(layer.pool_size), tuple(layer.strides)
    if len(size) == 2:
        return make(tensor, name, size, strides, layer.padding)
    image = as_image(state, tensor, name)
    inner = make(image, state.name(f"{name}/pool"), (1, size[0]), (1, strides[0]), layer.padding)
    return builder.reshape(inner, name, state.static_shape(inner)[1:])


def as_image(state: Lowering, tensor: str, name: str) -> str:
    """A signal [steps, channels] as an image of one row, `name/image`."""
    return state.builder.reshape(tensor, state.name(f"{name}/image"), (1, *state.static_shape(tensor)))


@moves("GlobalMaxPooling1D", "GlobalMaxPooling2D")
def _global_max(state: Lowering, call: Call, tensor: str) -> str:
    layer, builder, sizes = call.operation, state.builder, state.static_shape(tensor)
    name = state.name(call.path)
    image = tensor
    if len(sizes) == 2:
        image = as_image(state, tensor, name)
    pooled = builder.max_pool2d(image, state.name(f"{name}/pool"), state.static_shape(image)[:2], (1, 1))
    shape = [1] * (len(sizes) - 1) * layer.keepdims + [sizes[-1]]
    return builder.reshape(pooled, name, shape)


@moves("CenterCrop")
def _center_crop(state: Lowering, call: Call, tensor: str) -> str:
    (*sizes, channels), wanted = state.static_shape(tensor), call.results[0].shape[1:3]
    begin = [(size - want) // 2 for size, want in zip(sizes, wanted, strict=True)]
    end = [start + want for start, want in zip(begin, wanted, strict=True)]
    return state.builder.strided_slice(tensor, state.name(call.path), [*begin, 0], [*end, channels])
