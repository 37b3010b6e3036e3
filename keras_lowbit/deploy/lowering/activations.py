"""Activations as integer operations."""

from typing import Any

import keras
import numpy as np

from keras_lowbit.convert.analysis import functions
from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, stock_kind
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.graph.operations import OPERATIONS
from keras_lowbit.deploy.lowering.ranges import FIXED
from keras_lowbit.deploy.lowering.registry import lowers
from keras_lowbit.deploy.lowering.state import Lowering, emits
from keras_lowbit.deploy.lowering.values import DeferredOp
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.numerics.grids import encode_affine

_LEAST_SOFTMAX_SCALE = 2.0**-24
# Activation function -> the operation that waits for its range; "silu" is a composition.
_DEFERRED = {
    "relu": "relu",
    "relu6": "relu6",
    "hard_silu": "hard_swish",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
}


@lowers("Relu", "Relu6", "ReLU")
def lower_relu(state: Lowering, call: Call) -> bool:
    """A relu or relu6 fuses with the operation that it ends; behind anything else it is an operation of its own."""
    operation, kind = call.operation, stock_kind(call.operation)
    if kind == "ReLU" and functions.is_bent_relu(operation):
        return activate(state, call, "relu of other bounds")
    if kind == "ReLU" and operation.negative_slope:
        return activate(state, call, "leaky_relu")
    capped = operation.max_value is not None if kind == "ReLU" else kind == "Relu6"
    return fuse_relu(state, call, "relu6" if capped else "relu")


def fuse_relu(state: Lowering, call: Call, name: str) -> bool:
    """A relu or relu6, fused where that is possible."""
    value = state.values[call.inputs[0]]
    if isinstance(value, DeferredOp) and value.takes_activation:
        state.values[call.outputs[0]] = value.with_activation(name, call)
        return True
    return activate(state, call, name)


@lowers("Sigmoid", "Tanh", "HardSigmoid", "Silu", "HardSilu")
def lower_function(state: Lowering, call: Call) -> bool:
    """An activation function that is an operation of Keras."""
    return activate(state, call, activation_name(call.operation))


@lowers("Softmax")
def lower_softmax(state: Lowering, call: Call) -> bool:
    """A softmax of the last axis."""
    return activate(state, call, "softmax")


@lowers("LeakyReLU", "LeakyRelu")
def lower_leaky_relu(state: Lowering, call: Call) -> bool:
    """Two slopes."""
    return activate(state, call, "leaky_relu")


@lowers(*functions.OPERATIONS, "Lambda")
def lower_table(state: Lowering, call: Call) -> bool:
    """A function of one value, that has no operation of its own."""
    return activate(state, call, stock_kind(call.operation))


def activate(state: Lowering, call: Call, activation: str) -> bool:
    """An activation on a stored tensor; False if no integer operation has that function."""
    source, key = state.stored(call.inputs[0], call), call.outputs[0]
    if has_fixed_range(activation):
        provenance = source.provenance.add(call=call)
        state.store(key, fixed_activation(state, source.tensor, activation, call.path), provenance, rounded=False)
        return True
    found = deferred_activation(call, activation, state.builder.tensor(source.tensor).dtype)
    return found is not None and state.defer(call, found[0], source, attributes=found[1])


def has_fixed_range(activation: str) -> bool:
    """Whether the result's range does not depend on data."""
    return activation in FIXED or activation == "hard_sigmoid"


def deferred_activation(call: Call, activation: str, codes: str) -> tuple[str, dict[str, Any]] | None:
    """Operation and attributes of an activation that waits for its range; None if there is none of that function.

    codes: type of those that it reads.
    """
    found = _deferred_activation(call, activation)
    record = None if found is None else OPERATIONS.get(found[0])
    return None if record is not None and codes not in record.reads else found


def _deferred_activation(call: Call, activation: str) -> tuple[str, dict[str, Any]] | None:
    if activation in _DEFERRED:
        return _DEFERRED[activation], {"alpha": _slope(call.operation)} if activation == "leaky_relu" else {}
    function, shape = functions.of_call(call), tuple(call.results[0].shape)
    known = activation in functions.ACTIVATIONS or category_of(call) is Category.FUNCTION
    return (
        ("table", {"function": function, "shape": shape}) if known or functions.is_pointwise(function, shape) else None
    )


def _slope(operation: Any) -> float:
    slope = getattr(operation, "negative_slope", None)
    return float(np.float32(0.2 if slope is None else float(slope)))  # keras.activations.leaky_relu has 0.2


@emits("table")
def emit_table(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """The function of each of the values that the input can have, as the model's own layers compute and round it.

    Where it is not a number, for values that the layers before never make, the code of 0.
    """
    (tensor,), builder = deferred.inputs, state.builder
    sees = builder.tensor(tensor).range
    low, high = sees.limits
    values = np.float32(sees.scale) * (np.arange(low, high + 1) - sees.zero_point).astype(np.float32)
    made = np.nan_to_num(functions.table(deferred.attributes["function"], deferred.attributes["shape"], values))
    return builder.table(tensor, rounded_codes(made, grid), grid, state.name(deferred.path))


def rounded_codes(real: np.ndarray, grid: Range) -> np.ndarray:
    """Codes of reals as the model's own ranges round them."""
    bits = 8 * np.dtype(grid.dtype).itemsize
    codes = encode_affine(keras.ops.convert_to_tensor(real), np.float32(grid.scale), float(grid.zero_point), bits)
    return to_numpy(codes).astype(grid.dtype)


@emits("silu")
def emit_silu(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """``x * sigmoid(x)``."""
    (tensor,), builder = deferred.inputs, state.builder
    gate = builder.logistic(tensor, state.name(f"{deferred.path}/gate"))
    return builder.mul(tensor, gate, grid, state.name(deferred.path))


def fixed_activation(state: Lowering, tensor: str, activation: str, path: str) -> str:
    """A function whose result has a known grid: logistic, tanh, softmax; hard sigmoid as a product and a sum."""
    builder, name = state.builder, state.name(path)
    grid = builder.tensor(tensor).range
    if activation == "softmax" and grid.dtype == "int8" and grid.scale < _LEAST_SOFTMAX_SCALE:
        # LiteRT refuses such an input; its values are all but equal, and so are those on the wider grid.
        tensor = builder.quantize(tensor, Range(_LEAST_SOFTMAX_SCALE, 0), state.name(f"{path}/widened"))
    if activation in FIXED:
        return builder.operation(FIXED[activation], (tensor,), name)
    wide = grid.dtype == "int16"
    sixth = builder.constant(state.name(f"{path}/sixth"), np.ones((1,), np.int8), 1 / 6, dtype=grid.dtype)
    # LiteRT adds int16 codes in 2**15 parts of the larger scale: a coarse one would lose what the codes hold.
    code, scale = (2**14, 2.0**-15) if wide else (1, 0.5)
    half = builder.constant(state.name(f"{path}/half"), np.full((1,), code), scale, dtype=grid.dtype)
    # The product has the codes of x at a sixth of its scale: no rounding happens there.
    scaled = builder.mul(tensor, sixth, grid._replace(scale=grid.scale / 6), state.name(f"{path}/scaled"))
    # int8 saturates at zero, int16 below it.
    out = OPERATIONS["logistic"].fixed_range(grid.dtype)
    return builder.add(scaled, half, out, name, "relu" if wide else None)
