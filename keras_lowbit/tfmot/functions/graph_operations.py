"""Operations of a TensorFlow graph, which TensorFlow 2.0 to 2.3 wrote into model files for operators, by the functions here."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowbit.tfmot.functions.registry import FUNCTIONS, Function

_ARITHMETIC = "Add Pow Maximum Minimum Greater Less Equal Square Sqrt Rsqrt Exp Log Abs"
# Type of the operation -> symbol of the function with the same inputs in the same order.
_SAME_INPUTS = {
    **{
        name: f"math.{name.lower()}"
        for name in "Add Pow Maximum Minimum Greater Less Equal Square Sqrt Rsqrt Exp Log Abs".split()
    },
    **{name: f"nn.{name.lower()}" for name in "Relu Relu6 Elu Selu Softplus Softmax".split()},
    **{name: name.lower() for name in "Reshape Transpose Pad Tile Shape Identity".split()},
    "AddV2": "math.add",
    "Sub": "math.subtract",
    "Mul": "math.multiply",
    "RealDiv": "math.truediv",
    "Neg": "math.negative",
    "Sigmoid": "math.sigmoid",
    "Tanh": "math.tanh",
    "BiasAdd": "nn.bias_add",
    "ExpandDims": "expand_dims",
    "ClipByValue": "clip_by_value",
}


def graph_operation(node_def: Any, constants: dict[int, Any]) -> Function | None:
    """A function of an operation's symbolic inputs. constants: the others by position. None for one that has no form here."""
    make = _WITH_ATTRIBUTES.get(node_def.op)
    symbol = _SAME_INPUTS.get(node_def.op)
    if make is None and symbol is None:
        return None
    function = FUNCTIONS[symbol] if make is None else make(node_def.attr)  # type: ignore[index]

    def call(inputs: Any) -> Any:
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        for index in sorted(constants):
            given.insert(index, np.asarray(constants[index])[()])
        return function(*given)

    return call


def _reduction(name: str) -> Callable[[Any], Function]:
    return lambda attr: lambda x, axis: FUNCTIONS[f"math.reduce_{name}"](x, axis, attr["keep_dims"].b)


def _matmul(attr: Any) -> Function:
    flags = [attr[names[0]].b or attr[names[1]].b for names in (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))]
    return lambda a, b: FUNCTIONS["linalg.matmul"](a, b, *flags)


def _strided_slice(attr: Any) -> Function:
    def part(place: int, begin: int, end: int, step: int) -> Any:
        if attr["ellipsis_mask"].i >> place & 1:
            return Ellipsis
        if attr["new_axis_mask"].i >> place & 1:
            return None
        if attr["shrink_axis_mask"].i >> place & 1:
            return int(begin)
        first = None if attr["begin_mask"].i >> place & 1 else int(begin)
        last = None if attr["end_mask"].i >> place & 1 else int(end)
        return slice(first, last, int(step))

    def call(value: Any, begins: Any, ends: Any, steps: Any) -> Any:
        parts = enumerate(zip(begins, ends, steps, strict=True))
        return FUNCTIONS["__operators__.getitem"](value, tuple(part(place, *given) for place, given in parts))

    return call


_WITH_ATTRIBUTES: dict[str, Callable[[Any], Function]] = {
    **{name: _reduction(name.lower()) for name in ("Mean", "Sum", "Max", "Min", "Prod")},
    "MatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "ConcatV2": lambda attr: lambda *given: FUNCTIONS["concat"](given[:-1], given[-1]),
    "Pack": lambda attr: lambda *given: FUNCTIONS["stack"](given, attr["axis"].i),
    "Squeeze": lambda attr: lambda x: FUNCTIONS["squeeze"](x, list(attr["squeeze_dims"].list.i) or None),
    "Cast": lambda attr: lambda x: FUNCTIONS["cast"](x, tf.as_dtype(attr["DstT"].type)),
    "LeakyRelu": lambda attr: lambda x: FUNCTIONS["nn.leaky_relu"](x, attr["alpha"].f),
    "StridedSlice": _strided_slice,
}
