"""Functions of one value. Whatever they compute, all codes make a table of them; what mixes values has none."""

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.variables import to_numpy

CODES = 256  # values that an int8 tensor can hold

# Stock operations, by class name. Those in the last row make whole numbers: tables where int8 operations alone read them.
OPERATIONS = set(
    "Absolute Arccos Arccosh Arcsin Arcsinh Arctan Arctanh Cos Cosh Erf Erfinv Exp Exp2 Expm1 Log Log10 Log1p Log2 Negative "
    "Power Reciprocal Rsqrt Sin Sinh Sqrt Square Tan Clip "
    "Celu Elu Gelu HardShrink HardTanh LogSigmoid Mish Selu SoftShrink Softplus Softsign SparsePlus SparseSigmoid Squareplus "
    "TanhShrink Threshold ELU InverseRoot "
    "Ceil Floor Round Sign Trunc".split()
)
# Activation functions, by the name Keras serialises them under.
ACTIVATIONS = set(
    "celu elu exponential gelu hard_shrink hard_tanh log_sigmoid mish selu soft_shrink softplus softsign sparse_plus "
    "sparse_sigmoid squareplus tanh_shrink threshold".split()
)

DIVISIONS = ("Divide", "TrueDivide")

_found: weakref.WeakKeyDictionary[Any, dict[tuple[int | None, ...], bool]] = weakref.WeakKeyDictionary()


def is_pointwise(function: Callable[[Any], Any], shape: tuple[int | None, ...]) -> bool:
    """Whether a user's function takes each value of a tensor of this shape by itself, wherever and beside whatever it stands.

    Tried, once for each function and shape: 256 values, then some of them in other places and other company.
    """
    try:
        known = _found.setdefault(function, {})
    except TypeError:  # what cannot be referred to weakly
        known = {}
    if shape not in known:
        known[shape] = _tried(function, shape)
    return known[shape]


def _tried(function: Callable[[Any], Any], shape: tuple[int | None, ...]) -> bool:
    values = np.linspace(-4, 4, CODES, dtype=np.float32)
    # Of another mean, minimum and maximum than all of them.
    some = np.random.default_rng(0).permutation(np.arange(60, 150))
    try:
        first = table(function, shape, values)
        second = table(function, shape, np.resize(values[some], CODES))
    except Exception:  # whatever a user's function raises for another batch: it then runs in float, as it is
        return False
    return np.allclose(np.resize(first[some], CODES), second, rtol=1e-5, atol=1e-6, equal_nan=True)


def is_affine(call: Call) -> bool:
    """Whether a call that is a function of one value is ``a x + b``: 8 bits of the value then are 8 bits of the result.

    Tried from thousandths to millions: a bound may stand anywhere.
    """
    half = np.logspace(-3, 6, CODES // 2, dtype=np.float32)
    values = np.concatenate([-half[::-1], half])
    made = table(of_call(call), tuple(call.tensors[0].shape), values).astype(np.float64)
    if not np.isfinite(made).all():
        return False
    slope, offset = (made[-1] - made[0]) / (2.0 * half[-1]), (made[-1] + made[0]) / 2
    return np.allclose(made, slope * values + offset, rtol=1e-4, atol=1e-5 * max(abs(slope), abs(offset)))


def of_call(call: Call) -> Callable[[Any], Any]:
    """The activation function of a call's layer, or the whole call where it has none."""
    function = getattr(call.operation, "activation", None)
    return (lambda value: call.run({call.inputs[0]: value})[0]) if function is None else function


def table(function: Callable[[Any], Any], shape: tuple[int | None, ...], values: np.ndarray) -> np.ndarray:
    """``function(values)``, float32 [n] as the values, computed in a tensor of the given shape: batch first, None for any size.

    ValueError if the result has another shape, or a value more than one result.
    """
    sizes = [1 if size is None else size for size in shape[1:]]
    count = int(np.prod(sizes))
    batch = -(-len(values) // count)
    filled = np.resize(values, (batch, *sizes))
    made = to_numpy(function(keras.ops.convert_to_tensor(filled))).astype(np.float32)
    if made.shape != filled.shape:
        raise ValueError(
            f"the function makes the shape {made.shape} of {filled.shape}: it is not one of each value by itself"
        )
    flat = made.reshape(-1)
    again = np.resize(flat[: len(values)], flat.shape)
    if not np.allclose(again, flat, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ValueError("the function gives one value different results in different places")
    return flat[: len(values)]


def is_function(call: Call, kind: str) -> bool:
    """Whether a call computes each value of one tensor by itself. kind: the class name of its operation."""
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return False
    shape = tuple(call.tensors[0].shape)
    if kind in OPERATIONS or (kind in DIVISIONS and not starts_with_tensor(call)):
        return all(np.size(constant) == 1 for constant in _constants(call)) and tuple(call.results[0].shape) == shape
    return kind == "Lambda" and is_pointwise(call.operation, shape)


def is_bent_relu(operation: Any) -> bool:
    """Whether a ReLU layer is another function than relu, relu6 or two slopes."""
    other = operation.threshold or operation.max_value not in (None, 6.0)
    return bool(other or (operation.negative_slope and operation.max_value))


def starts_with_tensor(call: Call) -> bool:
    """Whether the first operand of a call with one tensor and one constant is the tensor."""
    return any(tree.flatten((call.arguments.args, call.arguments.kwargs))[0] is tensor for tensor in call.tensors)


def _constants(call: Call) -> list[Any]:
    """What a call takes beside its tensor, and what a Clip keeps."""
    kept = [getattr(call.operation, name, None) for name in ("x_min", "x_max")]
    return [value for value in (*call.constants(), *kept) if value is not None]
