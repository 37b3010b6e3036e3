"""Deployment: from a quantized Keras model to its integer graph, and from there to LiteRT files and a TensorFlow runtime.

`lower` makes the graph, `run_reference` runs it in NumPy, `export_litert` writes it as a file, `verify` compares a file with
the model that it came from.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keras_lowbit.deploy.export import ExportReport, export_litert
from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Node, Range, Tensor
from keras_lowbit.deploy.litert.format_choice import LatencyTable
from keras_lowbit.deploy.litert.microcontroller import arena_bytes
from keras_lowbit.deploy.litert.signatures import join_signatures
from keras_lowbit.deploy.litert.target import Target
from keras_lowbit.deploy.lowering.lower import lower
from keras_lowbit.deploy.pack import pack
from keras_lowbit.deploy.packed.layers import PackedTernaryConv2D, PackedTernaryDense
from keras_lowbit.deploy.reference.interpreter import run_reference
from keras_lowbit.deploy.storage import LayerStorage, Storage, storage
from keras_lowbit.deploy.summary import LayerSummary, Summary, summary
from keras_lowbit.deploy.verification.verify import LayerParity, Parity, verify

if TYPE_CHECKING:
    from keras_lowbit.deploy.runtime.runtime import Runtime

__all__ = [
    "ExportReport",
    "GraphBuilder",
    "IntegerGraph",
    "LatencyTable",
    "LayerParity",
    "LayerStorage",
    "LayerSummary",
    "Node",
    "PackedTernaryConv2D",
    "PackedTernaryDense",
    "Parity",
    "Range",
    "Runtime",
    "Storage",
    "Summary",
    "Target",
    "Tensor",
    "arena_bytes",
    "export_litert",
    "join_signatures",
    "lower",
    "pack",
    "run_reference",
    "storage",
    "summary",
    "verify",
]


def __getattr__(name: str) -> Any:
    """`Runtime`, whose module imports TensorFlow."""
    if name != "Runtime":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return import_module("keras_lowbit.deploy.runtime.runtime").Runtime
