"""Sums of all places so far: a product with a matrix of ones, which int32 holds exactly, and one rounding."""

import numpy as np

from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.lowering.averages import WEIGHT
from keras_lowbit.deploy.lowering.registry import lowers
from keras_lowbit.deploy.lowering.state import Lowering, emits
from keras_lowbit.deploy.lowering.values import DeferredOp, FloatTensor
from keras_lowbit.keras_graph.calls import Call


@lowers("Cumsum")
def lower_running_sum(state: Lowering, call: Call) -> bool:
    """`keras.ops.cumsum` over an axis that is not the batch."""
    if isinstance(state.values[call.inputs[0]], FloatTensor):
        return False
    axis = call.operation.axis % len(call.tensors[0].shape)
    return state.defer(call, "running_sum", state.stored(call.inputs[0], call), attributes={"axis": axis})


@emits("running_sum")
def emit_running_sum(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """A dense layer of the axis, which is moved to the end and back."""
    (tensor,), builder, name = deferred.inputs, state.builder, state.name(deferred.path)
    shape, axis = state.static_shape(tensor), deferred.attributes["axis"]
    order, last, size = list(range(len(shape) + 1)), axis == len(shape), shape[axis - 1]
    order[axis], order[-1] = order[-1], order[axis]
    ones = np.triu(np.full((size, size), WEIGHT, np.int8)), np.full(size, 1 / WEIGHT), None
    if last:
        return builder.fully_connected(tensor, *ones, grid, name)
    turned = builder.transpose(tensor, state.name(f"{name}/turn"), order)
    made = builder.fully_connected(turned, *ones, grid, state.name(f"{name}/sums"))
    return builder.transpose(made, name, order)
