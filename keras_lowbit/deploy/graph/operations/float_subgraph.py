"""Operations that stay float, as the one subgraph of a float .tflite that stands in the node."""

from __future__ import annotations

from collections.abc import Sequence

from keras_lowbit.deploy.graph.operations.operation import FREE, Attributes, Operation, Shape


def _shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    raise TypeError("a float subgraph says its shapes itself: see deploy.graph.float_subgraph.describe")


FLOAT_SUBGRAPH = Operation(
    "float_subgraph", _shape, None, inputs=None, range=FREE, reads=("float32",), writes="float32"
)
