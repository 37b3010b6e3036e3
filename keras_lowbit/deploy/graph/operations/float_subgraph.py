"""Operations that stay float, as the one subgraph of a float .tflite that stands in the node."""

from __future__ import annotations

from collections.abc import Sequence

from keras_lowbit.deploy.graph.float_subgraph import describe
from keras_lowbit.deploy.graph.operations.attributes import CONTENT, whole
from keras_lowbit.deploy.graph.operations.operation import FREE, Attributes, Operation, Shape, Use


def _shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    raise TypeError("a float subgraph says its shapes itself: see deploy.graph.float_subgraph.describe")


def _check(use: Use) -> None:
    """ValueError unless the model is sound and takes and gives what the node says."""
    found = describe(use.attributes["model"], use.node.name)
    sides = ((use.inputs, found.input_shapes, "inputs"), (use.outputs, found.output_shapes, "outputs"))
    for tensors, shapes, side in sides:
        here = [tensor.shape[1:] for tensor in tensors]
        if here != [shape[1:] for shape in shapes]:
            raise ValueError(f"{use.where} has {side} of shapes {here} without batch: its model has {list(shapes)}")
    if use.attributes["batch_size"] != found.batch_size:
        raise ValueError(f"{use.where} has batch_size {use.attributes['batch_size']}: its model has {found.batch_size}")


FLOAT_SUBGRAPH = Operation(
    "float_subgraph",
    _shape,
    None,
    inputs=None,
    range=FREE,
    takes={"model": CONTENT, "batch_size": whole(1)},
    reads=("float32",),
    writes="float32",
    check=_check,
)
