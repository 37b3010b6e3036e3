"""How calls without weights are lowered: ranges, batch norms, arithmetic, concatenations. Nodes have the layers' paths."""

from dataclasses import replace
from typing import Any

import numpy as np

from keras_lowbit.convert.analysis.functions import DIVISIONS, starts_with_tensor
from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, stock_kind
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.lowering import averages, data_movement, masks, recurrent, resizing, sums
from keras_lowbit.deploy.lowering.activations import activate, fuse_relu, lower_table, rounded_codes
from keras_lowbit.deploy.lowering.float_fallback import lower_float
from keras_lowbit.deploy.lowering.folding import Affine, batch_norm_affine
from keras_lowbit.deploy.lowering.parts import as_float32, with_range
from keras_lowbit.deploy.lowering.registry import HANDLERS, lowers
from keras_lowbit.deploy.lowering.state import Lowering, emits
from keras_lowbit.deploy.lowering.values import (
    DeferredOp,
    FloatTensor,
    GraphInput,
    Provenance,
    QuantizedTensor,
    fixed_codes,
)
from keras_lowbit.deploy.lowering.weighted import defer_affine, scale_alone
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import KeepFloat, QuantActivation

_HANDLER_FILES = (averages, data_movement, masks, recurrent, resizing, sums)  # importing them registers their handlers

_MOST_JOINED = 10


def lower_call(state: Lowering, call: Call) -> None:
    """Lower one call that does not run in float: sets `state.values` of its outputs."""
    operation = call.operation
    if isinstance(operation, QuantActivation):
        return lower_range(state, call)
    if isinstance(operation, KeepFloat):
        value = state.as_float(call.inputs[0])
        state.values[call.outputs[0]] = replace(value, provenance=value.provenance.add(call=call))
        return None
    handler = HANDLERS.get(stock_kind(operation))
    if category_of(call) is Category.MASK:
        handler = masks.lower_mask
    if handler is None or not handler(state, call):
        lower_float(state, call)
    return None


def lower_range(state: Lowering, call: Call) -> None:
    """A QuantActivation: an activation, then the range."""
    layer: QuantActivation = call.operation
    key, out = call.inputs[0], call.outputs[0]
    activation = activation_name(layer)
    if activation != "linear":
        if isinstance(state.values[key], (FloatTensor, GraphInput)) or not activate(state, call, activation):
            lower_float(state, call)
        key = out
    grid = state.range_of(layer.output_host, call.path)
    value = state.values[key]
    provenance = value.provenance if activation != "linear" else value.provenance.add(call=call)
    if isinstance(value, GraphInput) and (key in state.stored_inputs or value.name in state.byte_inputs):
        tensor = state.builder.input(value.name, value.shape, grid.dtype, grid)
        state.values[out] = QuantizedTensor(tensor, Provenance({out: tensor}))
    elif isinstance(value, DeferredOp) and scale_alone(state, value, grid) is not None:
        state.values[out] = replace(value, provenance=provenance, fallback=grid, rounded=True)
    elif isinstance(value, DeferredOp):
        state.store(out, state.emit(value, grid), provenance)
    elif isinstance(value, QuantizedTensor) and state.builder.tensor(value.tensor).range == as_float32(grid):
        state.alias(out, value, call)
    else:
        tensor = value.tensor if isinstance(value, QuantizedTensor) else state.as_float(key).tensor
        state.store(out, state.builder.quantize(tensor, grid, state.name(call.path)), provenance)


@lowers("Activation")
def lower_activation(state: Lowering, call: Call) -> bool:
    """An Activation layer, by its function."""
    name = activation_name(call.operation)
    if name == "linear":
        return data_movement.pass_on(state, call)
    return fuse_relu(state, call, name) if name in ("relu", "relu6") else activate(state, call, name)


@lowers("BatchNormalization")
def lower_batch_norm(state: Lowering, call: Call) -> bool:
    """A per-channel affine of the moving statistics."""
    return _affine(state, call, batch_norm_affine(call.operation))


@lowers("ChannelAffine")
def lower_channel_affine(state: Lowering, call: Call) -> bool:
    """``scale * x + offset`` of each channel."""
    layer, channels = call.operation, call.results[0].shape[-1]
    scale = np.ones(channels) if layer.scale is None else _per_channel(call, to_numpy(layer.scale))
    offset = 0 * scale if layer.offset is None else _per_channel(call, to_numpy(layer.offset))
    return _affine(state, call, Affine(scale, offset))


_WITH_CONSTANT = {"AddConstant": "add", "MultiplyConstant": "mul"}


@lowers(*_WITH_CONSTANT)
def lower_constant(state: Lowering, call: Call) -> bool:
    """A sum or product with the codes of a constant."""
    if isinstance(state.values[call.inputs[0]], FloatTensor):
        return False
    source, found = state.stored(call.inputs[0], call), call.operation.quantized()
    codes, scale = to_numpy(found.codes).astype(np.int8)[None], float(to_numpy(found.scale).reshape(())) or 1.0
    name, dtype = state.name(f"{call.path}/constant"), state.builder.tensor(source.tensor).dtype
    constant = state.builder.constant(name, codes, scale, dtype=dtype)
    deferred = DeferredOp(
        _WITH_CONSTANT[stock_kind(call.operation)],
        call.path,
        (source.tensor, constant),
        source.provenance.add(call=call),
        fuses_activation=True,
    )
    state.values[call.outputs[0]] = deferred
    return True


@lowers("MaskScores")
def lower_mask(state: Lowering, call: Call) -> bool:
    """A minimum with the lowest code where a score is masked, with the highest elsewhere."""
    if isinstance(state.values[call.inputs[0]], FloatTensor):
        return False
    source = state.stored(call.inputs[0], call)
    tensor = state.builder.tensor(source.tensor)
    lowest, highest = tensor.range.limits
    codes = np.where(to_numpy(call.operation.allowed) > 0, highest, lowest)[None]
    mask = state.builder.constant(state.name(f"{call.path}/mask"), codes, *tensor.range)
    made = state.builder.operation("minimum", (source.tensor, mask), state.name(call.path))
    state.store(call.outputs[0], made, source.provenance.add(call=call), rounded=False)
    return True


@lowers("Matmul")
def lower_matmul(state: Lowering, call: Call) -> bool:
    """The product of two stacks of matrices."""
    left, right = (state.stored(source, call) for source in (call.inputs[0], call.inputs[-1]))
    turned = data_movement.turns_for_product(state, state.calls.producers.get(call.inputs[-1]))
    return state.defer(call, "batch_matmul", left, right, attributes={"transpose_a": False, "transpose_b": turned})


@lowers("Cast")
def lower_cast(state: Lowering, call: Call) -> bool:
    """A mask as ones and zeros; or an input of bytes as reals: the range of 0 to 255 behind it makes codes of them, each byte
    less 128."""
    if str(call.tensors[0].dtype) == "bool":
        return masks.defer_choice(state, call, [1.0, 0.0])
    value = state.values[call.inputs[0]]
    if not isinstance(value, GraphInput):
        return False
    state.values[call.outputs[0]] = value
    state.byte_inputs.append(value.name)
    return True


@lowers("Embedding")
def lower_embedding(state: Lowering, call: Call) -> bool:
    """Rows of a table, whose codes are those of the range behind it."""
    ids = state.as_float(call.inputs[0])
    table = {"table": to_numpy(call.operation.embeddings)}
    provenance = ids.provenance.add(call=call)
    state.values[call.outputs[0]] = DeferredOp("embedding", call.path, (ids.tensor,), provenance, table)
    return True


@emits("embedding")
def emit_embedding(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """The table as codes of the grid, as Keras rounds what it picks."""
    codes = rounded_codes(deferred.attributes["table"], grid)
    return state.builder.embedding(deferred.inputs[0], codes, grid, state.name(deferred.path))


@lowers("Argmax", "Argmin")
def lower_argmax(state: Lowering, call: Call) -> bool:
    """Places of the largest or smallest codes: whole numbers, which have no range."""
    if isinstance(state.values[call.inputs[0]], FloatTensor):
        return False
    source = state.stored(call.inputs[0], call)
    axis = call.operation.axis % len(call.tensors[0].shape)
    find = state.builder.argmax if stock_kind(call.operation) == "Argmax" else state.builder.argmin
    made = find(source.tensor, state.name(call.path), axis)
    state.values[call.outputs[0]] = FloatTensor(made, source.provenance.add(call=call))
    return True


@lowers("TopK")
def lower_top_k(state: Lowering, call: Call) -> bool:
    """The largest codes, which keep the range, and their places: whole numbers, which have none."""
    if isinstance(state.values[call.inputs[0]], FloatTensor):
        return False
    source = state.stored(call.inputs[0], call)
    values, places = state.builder.top_k(source.tensor, state.name(call.path), call.operation.k)
    provenance = source.provenance.add(call=call)
    state.store(call.outputs[0], values, provenance)
    state.values[call.outputs[1]] = FloatTensor(places, provenance)
    return True


@lowers("Rescaling")
def lower_rescaling(state: Lowering, call: Call) -> bool:
    """``scale * x + offset``."""
    layer = call.operation
    return _affine(state, call, Affine(_per_channel(call, layer.scale), _per_channel(call, layer.offset)))


@lowers("Normalization")
def lower_normalization(state: Lowering, call: Call) -> bool:
    """``(x - mean) / deviation``, or its inverse."""
    layer = call.operation
    mean = _per_channel(call, layer.mean)
    deviation = np.maximum(np.sqrt(_per_channel(call, layer.variance)), 1e-7)
    inverted = Affine(deviation, mean)
    return _affine(state, call, inverted if layer.invert else Affine(1 / deviation, -mean / deviation))


def _affine(state: Lowering, call: Call, affine: Affine) -> bool:
    value = state.values[call.inputs[0]]
    if isinstance(value, DeferredOp) and value.takes_affine:
        state.values[call.outputs[0]] = value.then(affine, call)
        return True
    return defer_affine(state, call, state.stored(call.inputs[0], call), affine)


def _per_channel(call: Call, constant: Any) -> np.ndarray:
    """A scalar, or one value for each channel, as the latter."""
    return np.broadcast_to(np.asarray(constant, np.float64).reshape(-1), (call.results[0].shape[-1],)).copy()


@lowers(*DIVISIONS)
def lower_division(state: Lowering, call: Call) -> bool:
    """A tensor by a constant, or a constant by a tensor: a function of it."""
    if not starts_with_tensor(call):
        return lower_table(state, call)
    [constant] = [value for value in call.constants() if value is not None]
    factor = 1 / _per_channel(call, constant)
    return _affine(state, call, Affine(factor, 0 * factor))


_PAIRS = {"Add": "add", "Subtract": "sub", "Multiply": "mul"}


@lowers(*_PAIRS, "Average")
def lower_pair(state: Lowering, call: Call) -> bool:
    """Two tensors, or a tensor and a constant. Sums of many are sums of two in models that `quantize_model` made."""
    kind = stock_kind(call.operation)
    if kind == "Average" or len(call.inputs) > 2:
        return False
    if len(call.inputs) == 1:
        return _affine(state, call, _constant_affine(call, kind))
    left, right = (state.stored(source, call) for source in call.inputs)
    return state.defer(call, _PAIRS[kind], left, right, fuses_activation=True)


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


@lowers("Concatenate")
def lower_concatenate(state: Lowering, call: Call) -> bool:
    """Waits for the range that its parts will share; parts of another range are requantized."""
    return _defer_parts(state, call, "concatenation", {"axis": call.operation.axis})


def _defer_parts(state: Lowering, call: Call, op: str, attributes: dict[str, Any]) -> bool:
    """`op` waits for the range that all its parts will share."""
    parts = tuple(state.values[key] for key in call.inputs)
    for key, part in zip(call.inputs, parts, strict=True):
        if not isinstance(part, DeferredOp):
            state.stored(key, call)
    provenance = parts[0].provenance.add(*(part.provenance for part in parts[1:]), call=call)
    state.values[call.outputs[0]] = DeferredOp(op, call.path, parts, provenance, attributes)
    return True


_EXTREMA = {"Maximum": "maximum", "Minimum": "minimum"}


@lowers(*_EXTREMA)
def lower_extremum(state: Lowering, call: Call) -> bool:
    """The larger or smaller of some tensors, or of a tensor and a constant, in the range that they will share.

    Rounding and saturating keep the order of numbers: the extremum of the codes is the code of the extremum.
    """
    constants = [np.asarray(value, np.float64) for value in call.constants() if value is not None]
    return _defer_parts(state, call, _EXTREMA[stock_kind(call.operation)], {"constants": constants})


@lowers("Stack")
def lower_stack(state: Lowering, call: Call) -> bool:
    """A concatenation of parts that get the new axis first."""
    return _defer_parts(state, call, "stack", {"axis": call.operation.axis % len(call.results[0].shape)})


@emits("stack")
def emit_stack(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """The parts in the range of the whole, with one more axis of size 1, then joined on it."""
    axis, path, names = deferred.attributes["axis"], deferred.path, []
    for place, part in enumerate(deferred.inputs):
        name = with_range(state, part, grid, f"{path}/part_{place}")
        sizes = list(state.static_shape(name))
        sizes.insert(axis - 1, 1)
        names.append(state.builder.reshape(name, state.name(f"{path}/row_{place}"), sizes))
    return _joined(state, names, path, axis)


@emits("maximum")
@emits("minimum")
def emit_extremum(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """The parts and constants in one range, then the operation."""
    path, builder, constants = deferred.path, state.builder, deferred.attributes["constants"]
    names = [with_range(state, part, grid, f"{path}/part_{i}") for i, part in enumerate(deferred.inputs)]
    for value in constants:
        name = state.name(f"{path}/constant")
        names.append(builder.constant(name, fixed_codes(np.atleast_1d(value), grid), *grid))
    first, *rest = names
    for place, other in enumerate(rest, 1):
        name = state.name(path if place == len(rest) else f"{path}/of_{place + 1}")
        first = builder.operation(deferred.op, (first, other), name)
    return first


@emits("concatenation")
def emit_concatenation(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """The parts, each in the range of the whole."""
    parts = enumerate(deferred.inputs)
    names = [with_range(state, part, grid, f"{deferred.path}/part_{i}") for i, part in parts]
    return _joined(state, names, deferred.path, deferred.attributes["axis"])


def _joined(state: Lowering, names: list[str], path: str, axis: int) -> str:
    """Tensors of one range, ten at a time: microcontrollers take no more at once."""
    name, level = state.name(path), 0
    while len(names) > _MOST_JOINED:
        groups = [names[start : start + _MOST_JOINED] for start in range(0, len(names), _MOST_JOINED)]
        names = [
            group[0] if len(group) == 1 else state.builder.concatenation(group, state.name(f"{path}/{level}_{k}"), axis)
            for k, group in enumerate(groups)
        ]
        level += 1
    return state.builder.concatenation(names, name, axis)
