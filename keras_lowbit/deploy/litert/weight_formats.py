"""In which format a layer's weights go into the file, and their bytes.

LiteRT 2.3 runs what `targets/litert.json` says and refuses the rest when it loads a file. The XNNPACK delegate takes packed
weights in FULLY_CONNECTED alone; a convolution with INT4 weights runs on the built-in kernel beside it, which unpacks them at
every call: the codes are that kernel's for int8 weights, the time is three times that of XNNPACK or more (see `format_choice`).
A 1x1 convolution of stride 1 and one group is a FULLY_CONNECTED with `keep_num_dims`, so it goes there where its channels allow
it; a dense layer is a 1x1 convolution, which it becomes for a target without FULLY_CONNECTED.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.graph.operations import operation_of
from keras_lowbit.deploy.litert.fixed_point import tables
from keras_lowbit.deploy.litert.target import Target

BITS = {"int8": 8, "int4": 4, "int2": 2}
PACKED = ("int2", "int4")  # smallest first
_BUILTINS = {
    "fully_connected": "FULLY_CONNECTED",
    "conv2d": "CONV_2D",
    "depthwise_conv2d": "DEPTHWISE_CONV_2D",
    "transpose_conv": "TRANSPOSE_CONV",
}


class WeightFormat(NamedTuple):
    """weight_type: "int8", "int4" or "int2".   dense: written as FULLY_CONNECTED.   why: the reason, for people.

    per_tensor: written with one scale, which all its channels have.   table: a sigmoid or tanh, written as its 256 codes.
    """

    weight_type: str
    dense: bool
    why: str
    per_tensor: bool = False
    table: bool = False


Formats = Mapping[str, WeightFormat]  # by the name of the node


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Codes, flattened in C order, `8 / bits` to a byte, the first in the lowest bits; two's complement;
    zeros fill the end.

    bits: 8, 4 or 2.   ValueError if a code does not fit, with the largest and smallest.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits: expected {low} to {high}")
    per_byte = 8 // bits
    fields = codes.astype(np.int8).reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    fields = np.pad(fields, (0, -fields.size % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(fields << shifts, axis=1).astype(np.uint8).tobytes()


def weighted_nodes(graph: IntegerGraph) -> list[Node]:
    """The nodes with weights."""
    return [node for node in graph.nodes if operation_of(node).weighted]


def as_written(graph: IntegerGraph, formats: Formats) -> IntegerGraph:
    """The graph that a file of these formats holds.

    1x1 convolutions with `dense` are fully_connected nodes in it, dense layers without are conv2d nodes (between reshapes, but
    where they have four axes already), what has a `table` is a look-up. Same names of results, codes and scales; kernels have
    the shape of the other operation, and one scale with `per_tensor`. Compare LiteRT's reference kernels with *this* graph:
    they round a dense layer once and a convolution twice, so the two differ by one step now and then. (XNNPACK and the
    optimized kernels give the same for both.)
    """
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        found = formats.get(node.name)
        if found is not None and found.per_tensor:
            tensors |= {name: replace(tensors[name], scale=_one_scale(tensors[name])) for name in node.inputs[1:]}
        if found is not None and node.op == "conv2d" and found.dense:
            nodes.append(_as_dense(node, tensors))
        elif found is not None and found.table:
            nodes.append(_as_table(node, tensors))
        elif found is not None and node.op == "fully_connected" and not found.dense:
            nodes += _as_convolution(node, tensors)
        else:
            nodes.append(node)
    return IntegerGraph(tensors, tuple(nodes), graph.inputs, graph.outputs, graph.metadata)


def _one_scale(tensor: Tensor) -> np.ndarray:
    scale = np.asarray(tensor.scale)
    if (scale != scale.flat[0]).any():
        raise ValueError(
            f"{tensor.name!r} has scales from {scale.min()} to {scale.max()}: expected one for all channels"
        )
    return np.asarray(scale.flat[0])


def _as_dense(node: Node, tensors: dict[str, Tensor]) -> Node:
    kernel = tensors[node.inputs[1]]
    if reason := not_pointwise(node, kernel):
        raise ValueError(
            f"{node.name!r} is no dense layer ({reason}): expected a 1x1 convolution of stride 1, one group"
        )
    codes = codes_of(kernel).reshape(kernel.shape[2:])  # type: ignore[arg-type]
    tensors[kernel.name] = replace(kernel, shape=codes.shape, data=codes)
    return replace(node, op="fully_connected", attributes={"activation": node.attributes["activation"]})


def _as_convolution(node: Node, tensors: dict[str, Tensor]) -> Iterator[Node]:
    """A dense layer as a 1x1 convolution, its own name kept for what has the weights."""
    kernel, source, made = tensors[node.inputs[1]], tensors[node.inputs[0]], tensors[node.outputs[0]]
    codes = codes_of(kernel)[None, None]
    tensors[kernel.name] = replace(kernel, shape=codes.shape, data=codes)
    ones = {"strides": [1, 1], "padding": "valid", "dilation": [1, 1], "groups": 1}
    convolution = replace(node, op="conv2d", attributes={**node.attributes, **ones})
    if len(source.shape) == 4:
        yield convolution
        return
    pixels = math.prod(int(size or 1) for size in source.shape[1:-1])
    taken = replace(source, name=f"{node.name}/pixels", shape=(None, 1, pixels, source.shape[-1]), data=None)
    given = replace(made, name=f"{node.name}/image", shape=(None, 1, pixels, made.shape[-1]))
    tensors |= {each.name: each for each in (taken, given)}
    yield Node("reshape", taken.name, (source.name,), (taken.name,), {"shape": list(taken.shape[1:])})
    yield replace(convolution, inputs=(taken.name, *node.inputs[1:]), outputs=(given.name,))
    yield Node("reshape", f"{node.name}/back", (given.name,), (made.name,), {"shape": list(made.shape[1:])})


def _as_table(node: Node, tensors: dict[str, Tensor]) -> Node:
    codes, _ = tables(node.op, tensors[node.inputs[0]].range)
    made, name = tensors[node.outputs[0]], f"{node.name}/table"
    tensors[name] = replace(made, name=name, shape=codes.shape, data=codes)
    return Node("table", node.name, (*node.inputs, name), node.outputs)


def is_dense(node: Node, target: Target) -> bool:
    """Whether int8 weights of a node are written as FULLY_CONNECTED."""
    return node.op == "fully_connected" and target.takes("FULLY_CONNECTED")


def builtin_of(node: Node, dense: bool) -> str:
    """The LiteRT operator of a node with weights. dense: written as FULLY_CONNECTED."""
    return "FULLY_CONNECTED" if dense else "CONV_2D" if node.op == "fully_connected" else _BUILTINS[node.op]


def packing(node: Node, kernel: Tensor, kind: str, target: Target) -> tuple[bool, str | None]:
    """How weights go into `kind`: whether as FULLY_CONNECTED, and why they do not at all; None if they do."""
    reason = codes_misfit(kernel, BITS[kind])
    if reason is not None:
        return False, reason
    shape = None if node.op == "fully_connected" else not_pointwise(node, kernel)
    if shape is None and kind in target.weights_of("FULLY_CONNECTED"):
        reason = uneven(kernel, kind)
        if reason is None:
            return True, None
    if not is_dense(node, target) and kind in target.weights_of(builtin_of(node, False)):
        return False, None
    takers = ", ".join(target.takers_of(kind)) or "no operator"
    return False, reason or f"{shape or 'dense layer'}: {kind} weights are taken in {takers} only"


def not_pointwise(node: Node, kernel: Tensor) -> str | None:
    """Why a node is not a FULLY_CONNECTED in disguise; None if it is."""
    if node.op != "conv2d":
        return node.op.replace("_", " ")
    if kernel.shape[:2] != (1, 1):
        return f"{kernel.shape[0]}x{kernel.shape[1]} convolution"
    if list(node.attributes["strides"]) != [1, 1]:
        return f"convolution of strides {tuple(node.attributes['strides'])}"
    if node.attributes["groups"] != 1:
        return f"convolution of {node.attributes['groups']} groups"
    return None


def codes_misfit(kernel: Tensor, bits: int) -> str | None:
    """Why codes do not fit `bits`; None if they do."""
    codes, low, high = codes_of(kernel), -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if codes.size and (codes.min() < low or codes.max() > high):
        return f"codes from {codes.min()} to {codes.max()} exceed {low}..{high}"
    return None


def uneven(kernel: Tensor, kind: str) -> str | None:
    """Why the rows of a dense kernel do not fill whole bytes; None if they do."""
    channels, per_byte = kernel.shape[-2] or 0, 8 // BITS[kind]
    return f"{channels} input channels do not divide by {per_byte}" if channels % per_byte else None


def codes_of(kernel: Tensor) -> np.ndarray:
    """The codes of a constant. ValueError for what is computed."""
    if kernel.data is None:
        raise ValueError(f"kernel {kernel.name!r} has no codes: expected a constant")
    return kernel.data
