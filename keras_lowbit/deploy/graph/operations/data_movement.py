"""Operations that move, join or select values and keep their range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_lowbit.deploy.graph.operations.attributes import PAIRS, whole, wholes
from keras_lowbit.deploy.graph.operations.operation import FREE, INT32, Attributes, Builtin, Operation, Shape, Use
from keras_lowbit.deploy.graph.tensors import CODES, PLAIN


def _concatenation_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    axis, first = attributes["axis"], shapes[0]
    if not 1 <= axis < len(first):
        raise ValueError(f"axis {axis} does not fit shape {first}: expected 1 to {len(first) - 1} (0 is the batch)")
    if any(s[:axis] + s[axis + 1 :] != first[:axis] + first[axis + 1 :] or len(s) != len(first) for s in shapes):
        raise ValueError(f"shapes {list(shapes)} differ beyond axis {axis}")
    return (*first[:axis], sum(s[axis] for s in shapes), *first[axis + 1 :])  # type: ignore[misc]


def _concatenation_builtin(use: Use) -> Builtin:
    return Builtin("CONCATENATION", 2, "ConcatenationOptions", {"axis": use.attributes["axis"]})


def _pad_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    shape, paddings = shapes[0], attributes["paddings"]
    if len(paddings) != len(shape) - 1:
        raise ValueError(
            f"paddings {paddings} do not fit shape {shape}: expected one (before, after) pair >= 0 for each of the "
            f"{len(shape) - 1} axes after the batch"
        )
    return (None, *(d + p[0] + p[1] for d, p in zip(shape[1:], paddings, strict=True)))


def _pad_builtin(use: Use) -> Builtin:
    constants = {"paddings": [[0, 0], *use.attributes["paddings"]]}
    return Builtin("PAD", 4 if len(use.inputs[0].shape) > 4 else 2, "PadOptions", constants=constants)


def _reshape_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    target, have = tuple(attributes["shape"]), _count(shapes[0][1:])
    if min(target, default=1) < 1 or _count(target) != have:
        raise ValueError(
            f"cannot reshape {shapes[0]} ({have} elements) to {target} ({_count(target)} elements), batch aside"
        )
    return (None, *target)


def _count(shape: Sequence[int | None]) -> int:
    count = 1
    for size in shape:
        count *= size or 0
    return count


def _reshape_builtin(use: Use) -> Builtin:
    size = use.outputs[0].static_shape(-1 if use.batch_size is None else use.batch_size)
    return Builtin("RESHAPE", 1, "ReshapeOptions", {"newShape": np.array(size, np.int32)}, {"shape": size})


def _transpose_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    perm, shape = list(attributes["perm"]), shapes[0]
    if sorted(perm) != list(range(len(shape))) or perm[0] != 0:
        raise ValueError(f"perm {perm} does not fit shape {shape}: expected every axis once, 0 (the batch) first")
    return tuple(shape[p] for p in perm)


def _transpose_builtin(use: Use) -> Builtin:
    perm = use.attributes["perm"]
    version = 6 if len(perm) > 5 else 4 if len(perm) > 4 else 2
    return Builtin("TRANSPOSE", version, "TransposeOptions", constants={"perm": perm})


def _strided_slice_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    shape = shapes[0]
    parts = list(zip(attributes["begin"], attributes["end"], attributes["strides"], strict=True))
    fits = len(parts) == len(shape) - 1 and all(
        s > 0 and 0 <= b < e <= d for (b, e, s), d in zip(parts, shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"begin {attributes['begin']}, end {attributes['end']}, strides {attributes['strides']} do not fit shape {shape}: "
            "expected 0 <= begin < end <= size and strides > 0 for each axis after the batch"
        )
    return (None, *(-(-(e - b) // s) for b, e, s in parts))


def _strided_slice_builtin(use: Use) -> Builtin:
    a = use.attributes
    constants = {"begin": [0, *a["begin"]], "end": [use.batch_size or 1, *a["end"]], "strides": [1, *a["strides"]]}
    version = 4 if len(constants["begin"]) > 4 else 2
    whole = {} if use.batch_size else {"beginMask": 1, "endMask": 1}
    return Builtin("STRIDED_SLICE", version, "StridedSliceOptions", whole, constants=constants)


def _gather_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    axis, indices, shape = attributes["axis"], attributes["indices"], shapes[0]
    if not 1 <= axis < len(shape) or not indices or max(indices) >= (shape[axis] or 0):
        raise ValueError(
            f"axis {axis} and indices {indices} do not fit shape {shape}: expected an axis from 1 to {len(shape) - 1} (0 is "
            "the batch), and one or more places on it"
        )
    return (*shape[:axis], len(indices), *shape[axis + 1 :])


def _gather_builtin(use: Use) -> Builtin:
    constants = {"indices": use.attributes["indices"]}
    return Builtin("GATHER", 2, "GatherOptions", {"axis": use.attributes["axis"]}, constants)


def _embedding_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    ids, table = shapes
    if len(table) != 2:
        raise ValueError(f"the table has shape {table}: expected [number of ids, size of each row]")
    return (*ids, table[1])


def _check_embedding(use: Use) -> None:
    ids, table = use.inputs
    fits = ids.dtype == "int32" and not ids.is_constant and table.dtype in CODES and table.is_constant
    if not fits or table.range != use.outputs[0].range:
        raise ValueError(
            f"{use.where} reads {ids.name!r} of dtype {ids.dtype} from {table.name!r} of dtype {table.dtype}: expected "
            f"computed int32 ids, and a constant table of codes in the range of {use.outputs[0].name!r}"
        )


def _embedding_builtin(use: Use) -> Builtin:
    return Builtin("GATHER", 2, "GatherOptions", {"axis": 0}, operands=(1, 0))


def _argmax_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    axis, shape = attributes["axis"], shapes[0]
    if not 1 <= axis < len(shape):
        raise ValueError(f"axis {axis} does not fit shape {shape}: expected 1 to {len(shape) - 1} (0 is the batch)")
    return (*shape[:axis], *shape[axis + 1 :])


def _argmin_builtin(use: Use) -> Builtin:
    return Builtin("ARG_MIN", 2, "ArgMinOptions", {"outputType": INT32}, {"axis": [use.attributes["axis"]]})


def _argmax_builtin(use: Use) -> Builtin:
    return Builtin("ARG_MAX", 2, "ArgMaxOptions", {"outputType": INT32}, {"axis": [use.attributes["axis"]]})


def _top_k_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    k, shape = attributes["k"], shapes[0]
    if len(shape) < 2 or k > (shape[-1] or 0):
        raise ValueError(f"k {k} does not fit shape {shape}: expected 1 to the size of the last axis, behind the batch")
    return (*shape[:-1], k)


def _top_k_builtin(use: Use) -> Builtin:
    return Builtin("TOPK_V2", 2, "TopKV2Options", constants={"k": use.attributes["k"]})


CONCATENATION = Operation(
    "concatenation", _concatenation_shape, _concatenation_builtin, inputs=None, takes={"axis": whole(0)}, int16=3
)
PAD = Operation("pad", _pad_shape, _pad_builtin, takes={"paddings": PAIRS}, int16=3)
_MOVED = ("int8", "int32", "bool")  # codes, whole numbers and masks
GATHER = Operation(
    "gather",
    _gather_shape,
    _gather_builtin,
    takes={"axis": whole(0), "indices": wholes(0)},
    reads=_MOVED,
    writes=_MOVED,
    int16=4,
)
EMBEDDING = Operation(
    "embedding",
    _embedding_shape,
    _embedding_builtin,
    inputs=2,
    range=FREE,
    reads=("int32", "int8"),
    int16=4,
    check=_check_embedding,
)
ARGMAX = Operation("argmax", _argmax_shape, _argmax_builtin, range=FREE, writes=("int32",), takes={"axis": whole(1)})
ARGMIN = Operation("argmin", _argmax_shape, _argmin_builtin, range=FREE, writes=("int32",), takes={"axis": whole(1)})
TOP_K = Operation("top_k", _top_k_shape, _top_k_builtin, also_writes=("int32",), takes={"k": whole(1)}, int16=3)
_COPIED = ("int8", *PLAIN)  # RESHAPE is the copy of a tensor too, of any type
RESHAPE = Operation(
    "reshape", _reshape_shape, _reshape_builtin, takes={"shape": wholes(1)}, reads=_COPIED, writes=_COPIED, int16=1
)
TRANSPOSE = Operation(
    "transpose", _transpose_shape, _transpose_builtin, takes={"perm": wholes(0)}, reads=_MOVED, writes=_MOVED, int16=5
)
STRIDED_SLICE = Operation(
    "strided_slice",
    _strided_slice_shape,
    _strided_slice_builtin,
    takes={"begin": wholes(0), "end": wholes(1), "strides": wholes(1)},
    reads=_MOVED,
    writes=_MOVED,
    int16=4,
)
