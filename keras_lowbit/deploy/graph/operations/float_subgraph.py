"""Operations that stay float, as the one subgraph of a float .tflite that stands in the node."""

from __future__ import annotations

from collections.abc import Sequence

from keras_lowbit.deploy.graph.float_subgraph import describe
from keras_lowbit.deploy.graph.operations.attributes import CONTENT, whole
from keras_lowbit.deploy.graph.operations.operation import FREE, Attributes, Operation, Shape, Use
from keras_lowbit.deploy.graph.tensors import PLAIN


def _shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    raise TypeError("a float subgraph says its shapes itself: see deploy.graph.float_subgraph.describe")


def _check(use: Use) -> None:
    """ValueError unless the model is sound and takes and gives what the node says."""
    found = describe(use.attributes["model"], use.node.name)
    sides = ((use.inputs, found.inputs, "inputs"), (use.outputs, found.outputs, "outputs"))
    for tensors, ends, side in sides:
        here, shapes = [tensor.shape[1:] for tensor in tensors], [end.shape for end in ends]
        if here != [shape[1:] for shape in shapes]:
            raise ValueError(f"{use.where} has {side} of shapes {here} without batch: its model has {shapes}")
        if (types := [tensor.dtype for tensor in tensors]) != [end.dtype for end in ends]:
            raise ValueError(f"{use.where} has {side} of types {types}: its model has {[end.dtype for end in ends]}")
    if use.attributes["batch_size"] != found.batch_size:
        raise ValueError(f"{use.where} has batch_size {use.attributes['batch_size']}: its model has {found.batch_size}")


FLOAT_SUBGRAPH = Operation(
    "float_subgraph",
    _shape,
    None,
    inputs=None,
    range=FREE,
    takes={"model": CONTENT, "batch_size": whole(1)},
    reads=PLAIN,
    writes=PLAIN,
    check=_check,
)
