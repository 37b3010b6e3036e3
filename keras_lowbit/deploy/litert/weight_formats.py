"""In which format a layer's weights go into the file, and their bytes.

LiteRT 2.3 runs what `CONTAINERS` says and refuses the rest when it loads a file. The XNNPACK delegate takes packed weights in
FULLY_CONNECTED alone; a convolution with INT4 weights runs on the built-in kernel beside it, which unpacks them at every call:
the codes are that kernel's for int8 weights, the time is three times that of XNNPACK or more (see `format_choice`). A 1x1
convolution of stride 1 and one group is a FULLY_CONNECTED with `keep_num_dims`, so it goes there where its channels allow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph, Node, Tensor
from keras_lowbit.deploy.graph.operations import operation_of

BITS = {"int8": 8, "int4": 4, "int2": 2}
PACKED = ("int2", "int4")  # smallest first
# LiteRT operator -> the packed formats of its weights.
CONTAINERS: Mapping[str, tuple[str, ...]] = {
    "FULLY_CONNECTED": PACKED,
    "CONV_2D": ("int4",),
    "DEPTHWISE_CONV_2D": ("int4",),
    "TRANSPOSE_CONV": (),
}
_BUILTINS = {
    "fully_connected": "FULLY_CONNECTED",
    "conv2d": "CONV_2D",
    "depthwise_conv2d": "DEPTHWISE_CONV_2D",
    "transpose_conv": "TRANSPOSE_CONV",
}


class WeightFormat(NamedTuple):
    """weight_type: "int8", "int4" or "int2".   dense: written as FULLY_CONNECTED.   why: the reason, for people."""

    weight_type: str
    dense: bool
    why: str


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


def with_dense_pointwise(graph: IntegerGraph, formats: Formats) -> IntegerGraph:
    """The graph that a file of these formats holds: 1x1 convolutions with `dense` are fully_connected nodes in it.

    Same names, codes and scales; only the kernels of those nodes are [IC, OC]. Compare LiteRT's reference
    kernels with *this* graph: they round a dense layer once and a convolution twice, so the two differ by one
    step now and then. (XNNPACK and the optimized kernels give the same for both.)
    """
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        if node.op == "conv2d" and formats[node.name].dense:
            kernel = tensors[node.inputs[1]]
            if reason := not_pointwise(node, kernel):
                raise ValueError(
                    f"{node.name!r} is no dense layer ({reason}): expected a 1x1 convolution of stride 1, one group"
                )
            codes = _codes(kernel).reshape(kernel.shape[2:])  # type: ignore[arg-type]
            tensors[kernel.name] = replace(kernel, shape=codes.shape, data=codes)
            node = replace(node, op="fully_connected", attributes={"activation": node.attributes["activation"]})
        nodes.append(node)
    return IntegerGraph(tensors, tuple(nodes), graph.inputs, graph.outputs, graph.metadata)


def builtin_of(node: Node, dense: bool) -> str:
    """The LiteRT operator of a node with weights. dense: written as FULLY_CONNECTED."""
    return "FULLY_CONNECTED" if dense else _BUILTINS[node.op]


def dense_int8(node: Node) -> bool:
    """Whether int8 weights of a node are written as FULLY_CONNECTED."""
    return node.op == "fully_connected"


def packing(
    node: Node, kernel: Tensor, kind: str, containers: Mapping[str, tuple[str, ...]] = CONTAINERS
) -> tuple[bool, str | None]:
    """How weights go into `kind`: whether as FULLY_CONNECTED, and why they do not at all; None if they do."""
    own = _BUILTINS[node.op]
    reason = codes_misfit(kernel, BITS[kind])
    if reason is not None:
        return False, reason
    shape = None if dense_int8(node) else not_pointwise(node, kernel)
    if shape is None and kind in containers["FULLY_CONNECTED"]:
        reason = uneven(kernel, kind)
        if reason is None:
            return True, None
    if not dense_int8(node) and kind in containers[own]:
        return False, None
    takers = ", ".join(name for name, kinds in containers.items() if kind in kinds) or "no operator"
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
    codes, low, high = _codes(kernel), -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if codes.size and (codes.min() < low or codes.max() > high):
        return f"codes from {codes.min()} to {codes.max()} exceed {low}..{high}"
    return None


def uneven(kernel: Tensor, kind: str) -> str | None:
    """Why the rows of a dense kernel do not fill whole bytes; None if they do."""
    channels, per_byte = kernel.shape[-2] or 0, 8 // BITS[kind]
    return f"{channels} input channels do not divide by {per_byte}" if channels % per_byte else None


def _codes(kernel: Tensor) -> np.ndarray:
    if kernel.data is None:
        raise ValueError(f"kernel {kernel.name!r} has no codes: expected a constant")
    return kernel.data
