"""How each kind of Keras call is lowered. One handler a role; names of nodes are the layers' paths."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, stock_kind
from keras_lowbit.convert.analysis.supported import starts_with_tensor
from keras_lowbit.deploy.graph.tensors import Range
from keras_lowbit.deploy.lowering.activations import FIXED, fixed_activation, unary_activation
from keras_lowbit.deploy.lowering.data_movement import lower_move
from keras_lowbit.deploy.lowering.float_fallback import lower_island
from keras_lowbit.deploy.lowering.folding import Affine, batch_norm_affine
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.deploy.lowering.values import Entry, Pending, Stored, Trail
from keras_lowbit.deploy.lowering.weighted import lower_weighted, pending_affine
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import QuantActivation, QuantizedLayer


def lower_call(state: Lowering, call: Call) -> None:
    """Lower one call: sets `state.values` of its outputs."""
    role = category_of(call)
    if role is Category.WEIGHTED and not isinstance(call.operation, QuantizedLayer):
        role = Category.FLOAT
    handler = _HANDLERS.get(role, lower_island)
    if not (handler(state, call) or handler is lower_island):
        lower_island(state, call)


def _range(state: Lowering, call: Call) -> bool:
    """A QuantActivation: an activation, then the range."""
    layer: QuantActivation = call.operation
    key, out = call.inputs[0], call.outputs[0]
    activation = activation_name(layer)
    if activation != "linear":
        _activate(state, call, activation)
        key = out
    grid = state.range_of(layer.output_host, call.path)
    value = state.values[key]
    trail = value.trail if activation != "linear" else value.trail.add(call=call)
    if isinstance(value, Entry):
        tensor = state.builder.input(value.name, value.shape, "int8", grid)
        state.values[out] = Stored(tensor, Trail({out: tensor}))
    elif isinstance(value, Pending):
        state.store(out, state.emit(value, grid), trail)
    elif isinstance(value, Stored) and state.builder.tensor(value.tensor).range == _as_float32(grid):
        state.store(out, value.tensor, trail, alias=True)
    else:
        state.store(out, state.builder.quantize(value.tensor, grid, state.name(call.path)), trail)
    return True


def _as_float32(grid: Range) -> Range:
    return Range(float(np.float32(grid.scale)), grid.zero_point)


def _batch_norm(state: Lowering, call: Call) -> bool:
    return _affine(state, call, batch_norm_affine(call.operation))


def _affine(state: Lowering, call: Call, affine: Affine) -> bool:
    value = state.values[call.inputs[0]]
    if isinstance(value, Pending) and value.takes_affine:
        state.values[call.outputs[0]] = value.scaled(affine, call)
    else:
        source = state.stored(call.inputs[0], call)
        state.values[call.outputs[0]] = pending_affine(state, call, source, affine)
    return True


def _clip(state: Lowering, call: Call) -> bool:
    name = "relu6" if "relu6" in (activation_name(call.operation), stock_kind(call.operation).lower()) else "relu"
    if stock_kind(call.operation) == "ReLU" and call.operation.max_value is not None:
        name = "relu6"
    value = state.values[call.inputs[0]]
    if isinstance(value, Pending) and value.clips and value.activation is None:
        state.values[call.outputs[0]] = value.clipped(name, call)
        return True
    return _activate(state, call, name)


def _gated(state: Lowering, call: Call) -> bool:
    return _activate(state, call, activation_name(call.operation))


def _activate(state: Lowering, call: Call, activation: str) -> bool:
    """An activation on a stored tensor; False if the integer graph has none of that name."""
    source, key = state.stored(call.inputs[0], call), call.outputs[0]
    if activation in FIXED or activation == "hard_sigmoid":
        trail = source.trail.add(call=call)
        state.store(key, fixed_activation(state, source.tensor, activation, call.path), trail)
        return True
    unary = unary_activation(state, call, activation, source.tensor)
    if unary is None:
        return False
    state.values[key] = Pending(call.path, unary, source.trail.add(call=call), clips=False)
    return True


def _compute(state: Lowering, call: Call) -> bool:
    """Sums, differences, products, rescaling, means, softmax, leaky relu."""
    kind = stock_kind(call.operation)
    if kind in ("Rescaling", "Normalization"):
        return _affine(state, call, _layer_affine(call, kind))
    if kind in ("Add", "Subtract", "Multiply"):
        return _binary(state, call, kind)
    if kind == "Mean":
        return _mean(state, call)
    if kind == "Activation":
        return _activate(state, call, activation_name(call.operation))
    return _activate(state, call, "softmax" if kind == "Softmax" else "leaky_relu")


def _mean(state: Lowering, call: Call) -> bool:
    """`keras.ops.mean` over any axes but the batch."""
    source, axis = state.stored(call.inputs[0], call), call.operation.axis
    axes = [axis] if isinstance(axis, int) else list(axis)

    def emit(grid: Range, *_: Any) -> str:
        return state.builder.mean(source.tensor, grid, state.name(call.path), axes, call.operation.keepdims)

    state.values[call.outputs[0]] = Pending(call.path, emit, source.trail.add(call=call), clips=False)
    return True


def _binary(state: Lowering, call: Call, kind: str) -> bool:
    if len(call.inputs) == 1:
        return _affine(state, call, _constant_affine(call, kind))
    left, right = (state.stored(source, call) for source in call.inputs)
    make = {"Add": state.builder.add, "Subtract": state.builder.sub, "Multiply": state.builder.mul}[kind]

    def emit(grid: Range, activation: str | None, _: Any) -> str:
        return make(left.tensor, right.tensor, grid, state.name(call.path), activation)

    trail = left.trail.add(right.trail, call=call)
    state.values[call.outputs[0]] = Pending(call.path, emit, trail)
    return True


def _constant_affine(call: Call, kind: str) -> Affine:
    """``x + c``, ``x - c``, ``c - x`` or ``x * c`` for a scalar or a vector over the last axis."""
    [constant] = [value for value in call.constants() if value is not None]
    vector = _per_channel(call, constant)
    ones = np.ones_like(vector)
    if kind == "Multiply":
        return Affine(vector, 0 * ones)
    if kind == "Add":
        return Affine(ones, vector)
    return Affine(ones, -vector) if starts_with_tensor(call) else Affine(-ones, vector)


def _layer_affine(call: Call, kind: str) -> Affine:
    layer = call.operation
    if kind == "Rescaling":
        return Affine(_per_channel(call, layer.scale), _per_channel(call, layer.offset))
    mean = _per_channel(call, layer.mean)
    deviation = np.maximum(np.sqrt(_per_channel(call, layer.variance)), 1e-7)
    return Affine(deviation, mean) if layer.invert else Affine(1 / deviation, -mean / deviation)


def _per_channel(call: Call, constant: Any) -> np.ndarray:
    """A scalar, or one value for each channel, as the latter."""
    return np.broadcast_to(np.asarray(constant, np.float64).reshape(-1), (call.results[0].shape[-1],)).copy()


def _concatenate(state: Lowering, call: Call) -> bool:
    """Waits for the range its parts will share; parts of another range are requantized."""
    parts = [state.values[key] for key in call.inputs]
    for key, part in zip(call.inputs, parts, strict=True):
        if not isinstance(part, Pending):
            state.stored(key, call)
    axis = call.operation.axis

    def emit(grid: Range, *_: Any) -> str:
        names = [_with_range(state, part, grid, f"{call.path}/part_{i}") for i, part in enumerate(parts)]
        return state.builder.concatenation(names, state.name(call.path), axis)

    trail = parts[0].trail.add(*(part.trail for part in parts[1:]), call=call)
    state.values[call.outputs[0]] = Pending(call.path, emit, trail, clips=False)
    return True


def _with_range(state: Lowering, part: Any, grid: Range, name: str) -> str:
    if isinstance(part, Pending):
        return state.emit(part, grid)
    if state.builder.tensor(part.tensor).range == _as_float32(grid):
        return str(part.tensor)
    return state.builder.quantize(part.tensor, grid, state.name(name))


_HANDLERS: dict[Category, Callable[[Lowering, Call], bool]] = {
    Category.WEIGHTED: lower_weighted,
    Category.BATCH_NORM: _batch_norm,
    Category.RELU: _clip,
    Category.NEEDS_RANGE: _compute,
    Category.FIXED_RANGE: lambda state, call: _activate(state, call, activation_name(call.operation)),
    Category.KEEPS_RANGE: lower_move,
    Category.CONCATENATION: _concatenate,
    Category.GATED_ACTIVATION: _gated,
    Category.RANGE_LAYER: _range,
    Category.FLOAT: lower_island,
}
