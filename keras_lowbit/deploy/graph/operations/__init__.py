"""The integer operations: one record each. `OPERATIONS` is the only list; whatever runs, writes or makes nodes follows it.

A record says how many operands of which types an operation takes, which shape and range its output has, what LiteRT cannot
run, and which LiteRT operator it is. What it computes is said by its reference kernel (`deploy.reference`).
"""

from __future__ import annotations

from collections.abc import Mapping

from keras_lowbit.deploy.graph.operations import (
    data_movement,
    elementwise,
    float_subgraph,
    masks,
    matrices,
    recurrent,
    weighted,
    windows,
)
from keras_lowbit.deploy.graph.operations.checks import check_use
from keras_lowbit.deploy.graph.operations.operation import Operation
from keras_lowbit.deploy.graph.tensors import Node, Tensor

_ROOMS = (weighted, recurrent, matrices, elementwise, windows, data_movement, masks, float_subgraph)
OPERATIONS: dict[str, Operation] = {
    record.name: record for room in _ROOMS for record in vars(room).values() if isinstance(record, Operation)
}


def operation_of(node: Node) -> Operation:
    """The record of a node's operation. ValueError lists the known ones for another."""
    if node.op not in OPERATIONS:
        raise ValueError(f"{node.op} {node.name!r}: unknown operation; expected one of {', '.join(OPERATIONS)}")
    return OPERATIONS[node.op]


def check_node(node: Node, tensors: Mapping[str, Tensor]) -> None:
    """ValueError, with the values and what to do, unless a node and its tensors are sound."""
    check_use(operation_of(node), node, tensors)
