"""What a kernel of the runtime is, and the register of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from keras_lowbit.deploy.graph import IntegerGraph, Node
from keras_lowbit.deploy.reference.call import NodeCall, factor_type

Run = Callable[[list[Any]], Any]  # tensors of the node's inputs that are no constants -> its output
Keep = Callable[[np.ndarray, str], Any]  # an array and its name -> the array, or the variable that holds it
# Makes what runs a node: called once for each node, when the runtime is built.
Maker = Callable[[IntegerGraph, Node, Keep], Run]
MAKERS: dict[str, Maker] = {}  # by the name of the operation
M = TypeVar("M", bound=Maker)


def runs(*operations: str) -> Callable[[M], M]:
    """Decorator: the function makes what runs these operations, equal to the reference in every bit."""

    def register(maker: M) -> M:
        MAKERS.update(dict.fromkeys(operations, maker))
        return maker

    return register


def static_call(graph: IntegerGraph, node: Node, arrays: tuple[Any, ...] = ()) -> NodeCall:
    """What the reference is given for a node; arrays: values of the inputs, where the caller needs them."""
    inputs, outputs = (tuple(graph.tensors[name] for name in names) for names in (node.inputs, node.outputs))
    return NodeCall(node.attributes, arrays, inputs, outputs, factor_type())


def as_variable(array: np.ndarray, name: str) -> tf.Variable:
    """A variable that is stored and not trained."""
    return tf.Variable(array, trainable=False, name=name.replace("/", "_").replace(":", "_"))
