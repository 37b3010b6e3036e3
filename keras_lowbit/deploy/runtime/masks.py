"""How the runtime makes operations on masks and whole numbers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_lowbit.deploy.graph import IntegerGraph, Node
from keras_lowbit.deploy.runtime.node_kernels import Keep, Run, runs


@runs("compare")
def compare(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Each value with the number."""
    function, number = getattr(tf.math, node.attributes["kind"]), tf.constant(node.attributes["number"], tf.int32)
    return lambda values: function(values[0], number)


@runs("logical_and", "logical_or", "logical_not")
def logical(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """Masks as one."""
    function = getattr(tf.math, node.op)
    return lambda values: function(*values)


@runs("where")
def where(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """The codes of one or the other, of which one may be a constant."""
    constants = [graph.tensors[name].data for name in node.inputs]

    def run(values: list[Any]) -> Any:
        given = iter(values)
        return tf.where(*(next(given) if data is None else tf.constant(data) for data in constants))

    return run
