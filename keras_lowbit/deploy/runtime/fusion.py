"""Passes over an integer graph before it runs: what one compiled op can do becomes one node. Graph in, graph out.

The graphs that come out are for the runtime alone: their nodes carry numbers as padding and residual operands, which no file
has and `IntegerGraph.validate` refuses. They compute the same integers.
"""

from __future__ import annotations

import collections
from dataclasses import replace

from keras_lowbit.deploy.graph import IntegerGraph, Node

TAKE_PADS = ("conv2d", "depthwise_conv2d", "max_pool2d")
TAKE_RESIDUALS = ("conv2d", "depthwise_conv2d")
RESIDUAL = 3  # place of the residual among the inputs of a layer: behind codes, kernel and bias


def fuse(graph: IntegerGraph) -> IntegerGraph:
    """All passes."""
    return fuse_additions(fold_pads(graph))


def fold_pads(graph: IntegerGraph) -> IntegerGraph:
    """Zero padding in front of a layer becomes its own.

    Given:   y = pad(x); z = conv2d(y, "valid"), y read by nothing else
    Result:  z = conv2d(x, padding=((top, bottom), (left, right)))
    """
    readers = _reader_counts(graph)
    pads = {node.outputs[0]: node for node in graph.nodes if node.op == "pad"}
    folded: dict[str, Node] = {}  # by the name of the layer
    dropped: set[str] = set()
    for node in graph.nodes:
        pad = pads.get(node.inputs[0])
        if pad is None or node.op not in TAKE_PADS or node.attributes["padding"] != "valid":
            continue
        rows, columns, *others = (tuple(pair) for pair in pad.attributes["paddings"])
        if readers[pad.outputs[0]] > 1 or any(map(any, others)):
            continue
        attributes = {**node.attributes, "padding": (rows, columns)}
        folded[node.name] = replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), attributes=attributes)
        dropped.add(pad.name)
    return _with_nodes(graph, [folded.get(node.name, node) for node in graph.nodes if node.name not in dropped])


def fuse_additions(graph: IntegerGraph) -> IntegerGraph:
    """An addition becomes the end of the layer that makes one of its operands.

    Given:   y = conv2d(x); z = add(y, r), y read by nothing else
    Result:  z = conv2d(x, residual=r), in the place of the addition; the attribute "before_residual" names y, whose range
             the layer's own codes still have, and "residual_activation" is the addition's
    """
    readers = _reader_counts(graph)
    makers = {name: node for node in graph.nodes for name in node.outputs}
    fused: dict[str, Node] = {}  # by the name of the addition
    taken: set[str] = set()
    for add in (node for node in graph.nodes if node.op == "add"):
        for own, other in (add.inputs, add.inputs[::-1]):
            layer = makers.get(own)
            fits = layer is not None and layer.op in TAKE_RESIDUALS and readers[own] == 1 and layer.name not in taken
            if layer is None or not fits or not _same_shape(graph, own, other):
                continue
            residual = {"before_residual": own, "residual_activation": add.attributes["activation"]}
            fused[add.name] = replace(
                layer,
                inputs=(*layer.inputs, other),
                outputs=add.outputs,
                attributes={**layer.attributes, **residual},
            )
            taken.add(layer.name)
            break
    return _with_nodes(graph, [fused.get(node.name, node) for node in graph.nodes if node.name not in taken])


def _same_shape(graph: IntegerGraph, own: str, other: str) -> bool:
    first, second = graph.tensors[own], graph.tensors[other]
    return not (first.is_constant or second.is_constant) and first.shape == second.shape


def _reader_counts(graph: IntegerGraph) -> collections.Counter[str]:
    """How often each tensor is read, by nodes and as an output of the graph."""
    return collections.Counter((*graph.outputs, *(name for node in graph.nodes for name in node.inputs)))


def _with_nodes(graph: IntegerGraph, nodes: list[Node]) -> IntegerGraph:
    return IntegerGraph(graph.tensors, tuple(nodes), graph.inputs, graph.outputs, graph.metadata)
