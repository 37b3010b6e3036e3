"""An integer graph as boxes and arrows."""

from collections.abc import Iterator, Mapping, Sequence

from keras_lowbit.deploy.graph.operations import operation_of
from keras_lowbit.deploy.graph.operations.operation import KEEP
from keras_lowbit.deploy.graph.tensors import Node, Tensor
from keras_lowbit.figures.diagram import Box

# What a box does -> its colour. What runs in float stands out: it is what one looks for.
COLOURS = {
    "input": "#e8e8e8",
    "weights": "#cfe2ff",
    "float": "#ffd8a8",
    "moves": "#f7f7f7",
    "computes": "#d8f5d8",
}
LEGEND = {
    "has weights": COLOURS["weights"],
    "computes": COLOURS["computes"],
    "moves codes": COLOURS["moves"],
    "runs in float": COLOURS["float"],
}
NOTE = "operation, kernel and [codes]; name; shape of the result, its scale (zero point)"
Tensors = Mapping[str, Tensor]


def boxes(tensors: Tensors, nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str]) -> list[Box]:
    """A box for each input and node: operation, name, and shape, scale and zero point of what it gives.

    For weights, the shape and the smallest and largest code.
    """
    found = [Box(f"input {name}", ("input", name, _grid(tensors[name])), COLOURS["input"]) for name in inputs]
    for node in nodes:
        lines = (_operation(tensors, node), node.name, _grid(tensors[node.outputs[0]]))
        last = any(name in outputs for name in node.outputs)
        found.append(Box(f"node {node.name}", lines, COLOURS[_role(node)], last))
    return found


def arrows(tensors: Tensors, nodes: Sequence[Node]) -> Iterator[tuple[str, str]]:
    """Names of two boxes for each tensor that a node reads and that is no constant."""
    maker = {output: f"node {node.name}" for node in nodes for output in node.outputs}
    for node in nodes:
        for name in node.inputs:
            if not tensors[name].is_constant:
                yield maker.get(name, f"input {name}"), f"node {node.name}"


def _role(node: Node) -> str:
    operation = operation_of(node)
    if operation.weighted:
        return "weights"
    if "int8" not in operation.writes:
        return "float"
    return "moves" if operation.range == KEEP or node.op == "quantize" else "computes"


def _operation(tensors: Tensors, node: Node) -> str:
    if not operation_of(node).weighted:
        return node.op
    kernel = tensors[node.inputs[1]]
    shape = "x".join(map(str, kernel.shape))
    return node.op if kernel.data is None else f"{node.op} {shape} [{kernel.data.min()},{kernel.data.max()}]"


def _grid(tensor: Tensor) -> str:
    shape = "x".join(str(size) for size in tensor.shape[1:])
    return (
        f"{shape} {tensor.dtype}"
        if tensor.scale is None
        else f"{shape}  {tensor.range.scale:.4g} ({tensor.zero_point})"
    )
