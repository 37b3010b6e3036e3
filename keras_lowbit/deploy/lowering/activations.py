"""Activations as integer operations."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.tensors import Range
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.keras_graph.calls import Call

FIXED = {"sigmoid": "logistic", "tanh": "tanh", "softmax": "softmax"}
_LEAST_SOFTMAX_SCALE = 2.0**-24


def fixed_activation(state: Lowering, tensor: str, activation: str, path: str) -> str:
    """A function whose result has a known grid: logistic, tanh, softmax; hard sigmoid as a product and a sum."""
    builder, name = state.builder, state.name(path)
    if activation == "softmax" and builder.tensor(tensor).range.scale < _LEAST_SOFTMAX_SCALE:
        # LiteRT refuses such an input; its values are all but equal, and so are those on the wider grid.
        tensor = builder.quantize(tensor, Range(_LEAST_SOFTMAX_SCALE, 0), state.name(f"{path}/widened"))
    if activation in FIXED:
        return str(getattr(builder, FIXED[activation])(tensor, name))
    grid = builder.tensor(tensor).range
    sixth = builder.constant(state.name(f"{path}/sixth"), np.ones((1,), np.int8), 1 / 6)
    half = builder.constant(state.name(f"{path}/half"), np.ones((1,), np.int8), 0.5)
    # The product has the codes of x at a sixth of its scale: no rounding happens there.
    scaled = builder.mul(tensor, sixth, Range(grid.scale / 6, grid.zero_point), state.name(f"{path}/scaled"))
    return builder.add(scaled, half, Range(1 / 256, -128), name)


def unary_activation(
    state: Lowering, call: Call, activation: str, tensor: str, path: str | None = None
) -> Callable[..., str] | None:
    """Makes the node of an activation that waits for its range; None if the integer graph has none of that name.

    path: the node's name, the call's own by default.
    """
    builder, path = state.builder, path or call.path

    def silu(grid: Range, *_: Any) -> str:
        gate = builder.logistic(tensor, state.name(f"{path}/gate"))
        return builder.mul(tensor, gate, grid, state.name(path))

    simple = {"relu": builder.relu, "relu6": builder.relu6, "hard_silu": builder.hard_swish}
    if activation in simple:
        return lambda grid, *_: simple[activation](tensor, grid, state.name(path))
    if activation == "leaky_relu":
        slope = _slope(call.operation)
        return lambda grid, *_: builder.leaky_relu(tensor, grid, state.name(path), slope)
    return silu if activation == "silu" else None


def _slope(operation: Any) -> float:
    slope = getattr(operation, "negative_slope", None)
    return 0.2 if slope is None else float(slope)  # keras.activations.leaky_relu has 0.2
