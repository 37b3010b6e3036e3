"""The integer graph: what is verified and what ships."""

from keras_lowbit.deploy.graph.builder import GraphBuilder
from keras_lowbit.deploy.graph.integer_graph import IntegerGraph
from keras_lowbit.deploy.graph.serialize import GraphFileError
from keras_lowbit.deploy.graph.tensors import Node, Range, Tensor

__all__ = ["GraphBuilder", "GraphFileError", "IntegerGraph", "Node", "Range", "Tensor"]
