"""Deployment: the integer graph, its NumPy reference, LiteRT files, and the proof that they are what was trained."""

from keras_lowbit.deploy.build import GraphBuilder
from keras_lowbit.deploy.export import ExportReport, export_litert
from keras_lowbit.deploy.graph import IntegerGraph, Node, Range, Tensor
from keras_lowbit.deploy.lower import lower
from keras_lowbit.deploy.reference import run_reference
from keras_lowbit.deploy.summary import LayerSummary, Summary, summary
from keras_lowbit.deploy.verify import LayerParity, Parity, verify

__all__ = [
    "ExportReport",
    "GraphBuilder",
    "IntegerGraph",
    "LayerParity",
    "LayerSummary",
    "Node",
    "Parity",
    "Range",
    "Summary",
    "Tensor",
    "export_litert",
    "lower",
    "run_reference",
    "summary",
    "verify",
]
