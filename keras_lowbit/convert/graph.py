"""The names of `layers.graph`, for the modules of this section."""

from keras_lowbit.layers.graph import (
    Call,
    CallGraph,
    calls_of,
    fresh_name,
    functional_of,
    inputs_in_order,
    is_graph_model,
    layers_of,
)

__all__ = [
    "Call",
    "CallGraph",
    "calls_of",
    "fresh_name",
    "functional_of",
    "inputs_in_order",
    "is_graph_model",
    "layers_of",
]
