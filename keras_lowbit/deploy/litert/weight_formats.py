"""Which container a layer's weights go into, and the bytes of that container.

LiteRT's XNNPACK delegate takes INT4 and INT2 weights in FULLY_CONNECTED only. A 1x1 convolution of stride 1
and one group is a FULLY_CONNECTED with `keep_num_dims`, so it can go there. INT4 CONV_2D is unpacked at every
call (four times slower) and INT2 CONV_2D gives NaN without an error: neither is ever chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from keras_lowbit.deploy.graph.checks import RULES
from keras_lowbit.deploy.graph.integer_graph import IntegerGraph
from keras_lowbit.deploy.graph.tensors import Node, Tensor

BITS = {"int8": 8, "int4": 4, "int2": 2}


class Container(NamedTuple):
    """weight_type: "int8", "int4" or "int2".   dense: written as FULLY_CONNECTED.   why: the reason, for
    people."""

    weight_type: str
    dense: bool
    why: str


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


def choose(node: Node, kernel: Tensor, wanted: str) -> Container:
    """Smallest container not below `wanted` bits that LiteRT runs fast and exactly for this layer."""
    dense = node.op == "fully_connected"
    if wanted == "int8":
        return Container("int8", dense, "asked for")
    reason = "" if dense else not_pointwise(node, kernel)
    if reason:
        return Container("int8", False, f"{reason}: LiteRT takes {wanted} weights in FULLY_CONNECTED only")
    refused: list[str] = []
    for kind in ("int2", "int4") if wanted == "int2" else ("int4",):
        reason = does_not_fit(kernel, BITS[kind])
        if not reason:
            return Container(kind, True, "; ".join(refused) or "asked for")
        refused.append(f"not {kind}: {reason}")
    return Container("int8", dense, "; ".join(refused))


Weights = str | Mapping[str, Container]


def check_weights(weights: Weights) -> None:
    """ValueError for a word that is no container."""
    if isinstance(weights, str) and weights not in BITS:
        raise ValueError(
            f"weights={weights!r}: expected one of {', '.join(map(repr, BITS))}, or a container for each node by name"
        )


def plan(graph: IntegerGraph, weights: Weights) -> dict[str, Container]:
    """Container of every node with weights, by node name. weights: "int8", "int4", "int2", or the plan itself."""
    check_weights(weights)
    if not isinstance(weights, str):
        return dict(weights)
    return {n.name: choose(n, graph.tensors[n.inputs[1]], weights) for n in graph.nodes if RULES[n.op].weighted}


def as_written(graph: IntegerGraph, weights: Weights) -> IntegerGraph:
    """The graph that a file of these `weights` holds: 1x1 convolutions that are packed are fully_connected
    nodes in it.

    Same names, codes and scales; only the kernels of those nodes are [IC, OC]. Compare LiteRT's reference
    kernels with *this* graph: they round a dense layer once and a convolution twice, so the two differ by one
    step now and then. (XNNPACK and the optimized kernels give the same for both.)
    """
    chosen = plan(graph, weights)
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        if node.op == "conv2d" and chosen[node.name].dense:
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


def not_pointwise(node: Node, kernel: Tensor) -> str:
    """Why a node is not a FULLY_CONNECTED in disguise; empty if it is."""
    if node.op != "conv2d":
        return node.op.replace("_", " ")
    if kernel.shape[:2] != (1, 1):
        return f"{kernel.shape[0]}x{kernel.shape[1]} convolution"
    if list(node.attributes["strides"]) != [1, 1]:
        return f"convolution of strides {tuple(node.attributes['strides'])}"
    if node.attributes["groups"] != 1:
        return f"convolution of {node.attributes['groups']} groups"
    return ""


def does_not_fit(kernel: Tensor, bits: int) -> str:
    """Why the codes of a dense kernel cannot be packed into `bits`; empty if they can."""
    codes, channels = _codes(kernel), kernel.shape[-2] or 0
    low, high, per_byte = -(1 << (bits - 1)), (1 << (bits - 1)) - 1, 8 // bits
    if codes.min() < low or codes.max() > high:
        return f"codes from {codes.min()} to {codes.max()} exceed {low}..{high}"
    return f"{channels} input channels do not divide by {per_byte}" if channels % per_byte else ""


def _codes(kernel: Tensor) -> np.ndarray:
    if kernel.data is None:
        raise ValueError(f"kernel {kernel.name!r} has no codes: expected a constant")
    return kernel.data
