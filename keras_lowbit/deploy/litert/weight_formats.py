"""In which format a layer's weights go into the file, and their bytes.

LiteRT's XNNPACK delegate takes INT4 and INT2 weights in FULLY_CONNECTED only. A 1x1 convolution of stride 1
and one group is a FULLY_CONNECTED with `keep_num_dims`, so it can go there. INT4 CONV_2D is unpacked at every
call (four times slower) and INT2 CONV_2D gives NaN without an error: neither is ever chosen.
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


def smallest_formats(graph: IntegerGraph, weights: str) -> Formats:
    """For every node with weights the smallest format not below `weights` ("int8", "int4", "int2") that LiteRT runs exactly."""
    return {node.name: _smallest(node, graph.tensors[node.inputs[1]], weights) for node in weighted_nodes(graph)}


def _smallest(node: Node, kernel: Tensor, weights: str) -> WeightFormat:
    dense = node.op == "fully_connected"
    if weights == "int8":
        return WeightFormat("int8", dense, "asked for")
    if reason := not_packable(node, kernel, weights):
        return WeightFormat("int8", False, reason)
    refused: list[str] = []
    for kind in PACKED[PACKED.index(weights) :]:
        misfit = codes_misfit(kernel, BITS[kind])
        if misfit is None:
            return WeightFormat(kind, True, "; ".join(refused) or "asked for")
        refused.append(f"not {kind}: {misfit}")
    return WeightFormat("int8", dense, "; ".join(refused))


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


def not_packable(node: Node, kernel: Tensor, weights: str = "packed") -> str | None:
    """Why a node's weights cannot be packed whatever they are; None if they can."""
    reason = None if node.op == "fully_connected" else not_pointwise(node, kernel)
    return reason and f"{reason}: LiteRT takes {weights} weights in FULLY_CONNECTED only"


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
    """Why the codes of a dense kernel cannot be packed into `bits`; None if they can."""
    codes, channels = _codes(kernel), kernel.shape[-2] or 0
    low, high, per_byte = -(1 << (bits - 1)), (1 << (bits - 1)) - 1, 8 // bits
    if codes.min() < low or codes.max() > high:
        return f"codes from {codes.min()} to {codes.max()} exceed {low}..{high}"
    return f"{channels} input channels do not divide by {per_byte}" if channels % per_byte else None


def _codes(kernel: Tensor) -> np.ndarray:
    if kernel.data is None:
        raise ValueError(f"kernel {kernel.name!r} has no codes: expected a constant")
    return kernel.data
