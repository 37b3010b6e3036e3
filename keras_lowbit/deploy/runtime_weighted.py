"""How the runtime makes the layers with weights: packed weights in variables, and the epilogue beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowbit.deploy import fixed_point as fp
from keras_lowbit.deploy.graph import IntegerGraph, Node
from keras_lowbit.deploy.reference_call import Call, scale_of
from keras_lowbit.deploy.reference_kernels import effective_scale
from keras_lowbit.ops import functions, packing, tf_fallback
from keras_lowbit.ops.epilogue import Requantize, ResidualAdd
from keras_lowbit.ops.packing import PackedWeights

Run = Callable[[list[Any]], Any]  # tensors of the node's inputs that are no constants -> its output
Keep = Callable[[np.ndarray, str], Any]  # an array and its name -> the array, or the variable that holds it


def static_call(graph: IntegerGraph, node: Node, arrays: tuple[Any, ...] = ()) -> Call:
    """What the reference is given for a node; arrays: values of the inputs, where the caller needs them."""
    inputs, outputs = (tuple(graph.tensors[name] for name in names) for names in (node.inputs, node.outputs))
    return Call(node.attributes, arrays, inputs, outputs)


def conv2d(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """A convolution; with a second input, the residual that is added to it (see `residual_of`)."""
    call, groups = static_call(graph, node), node.attributes.get("groups", 1)
    packed = _kept(packing.pack_kernel(_codes(call, 1), groups), node.name, keep)
    arguments = _arguments(call) | _window(call)
    return lambda values: functions.clustered_ternary_conv2d(values[0], packed, **arguments, **_residual(values))


def depthwise_conv2d(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """A depthwise convolution, with a residual as `conv2d`."""
    call = static_call(graph, node)
    kernel = keep(_codes(call, 1), f"{node.name}/kernel")
    arguments = _arguments(call) | _window(call)
    return lambda values: functions.int8_depthwise_conv2d(values[0], kernel, **arguments, **_residual(values))


def fully_connected(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """A dense layer: rounded once, with a factor in double."""
    call = static_call(graph, node)
    packed = _kept(packing.pack_kernel(_codes(call, 1)), node.name, keep)
    arguments = _arguments(call)
    low, high = call.limits()
    arguments["output"] = Requantize(
        factor=effective_scale(call), zero_point=call.output.zero_point, low=low, high=high
    )
    return lambda values: functions.ternary_dense(values[0], packed, **arguments)


def transpose_conv(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """A transposed convolution, in plain TensorFlow."""
    call = static_call(graph, node)
    kernel = keep(_codes(call, 1), f"{node.name}/kernel")
    arguments, attributes = _arguments(call), node.attributes
    source, strides = call.inputs[0].static_shape(1), attributes["strides"]
    size, window = tuple(attributes["output_shape"]), kernel.shape[:2]
    before = [max((source[k + 1] - 1) * strides[k] + window[k] - size[k], 0) // 2 for k in (0, 1)]
    zero_point, output, bias = arguments["input_zero_point"], arguments["output"], arguments["bias"]

    def run(values: list[Any]) -> Any:
        total = tf_fallback.transpose_conv2d(values[0], kernel, zero_point, strides, before, size)
        return tf_fallback.apply_epilogue(output, tf_fallback.add_bias(total, bias))

    return run


def residual_of(graph: IntegerGraph, node: Node, own: str) -> Callable[[Any], ResidualAdd]:
    """An int8 add node as the residual of the layer that makes its input `own`: from the other input's codes."""
    call = static_call(graph, node)
    mine = node.inputs.index(own)
    first, second = (call.inputs[i] for i in (mine, 1 - mine))
    scales = [np.float64(scale_of(t)) for t in (first, second)]
    grid = 2 * max(scales)
    back = grid / (2.0**20 * np.float64(scale_of(call.output)))
    to_grid, other_to_grid, from_grid = (_pair(real) for real in (*(s / grid for s in scales), back))
    low, high = call.limits()
    fixed = ResidualAdd(None, to_grid, other_to_grid, from_grid, second.zero_point, call.output.zero_point, low, high)
    return lambda codes: replace(fixed, codes=codes)


def _pair(real: float) -> tuple[int, int]:
    factor = fp.quantize_multiplier(real)
    return int(factor.multiplier), int(factor.shift)


def _residual(values: list[Any]) -> dict[str, Any]:
    return {"residual": values[1]} if len(values) > 1 else {}


def _arguments(call: Call) -> dict[str, Any]:
    """Zero point, bias and epilogue of a layer that rounds twice."""
    factor = fp.quantize_multiplier(effective_scale(call))
    low, high = call.limits()
    output = Requantize(factor.multiplier, factor.shift, None, call.output.zero_point, low, high)
    bias = _codes(call, 2) if len(call.inputs) > 2 else None
    return {"input_zero_point": call.inputs[0].zero_point, "bias": bias, "output": output}


def _window(call: Call) -> dict[str, Any]:
    attributes, padding = call.attributes, call.attributes["padding"]
    return {
        "strides": tuple(attributes["strides"]),
        "padding": padding.upper() if isinstance(padding, str) else padding,  # numbers: of a pad node, folded in
        "dilations": tuple(attributes.get("dilation", (1, 1))),
    }


def _kept(packed: PackedWeights, name: str, keep: Keep) -> PackedWeights:
    arrays = {part: keep(getattr(packed, part), f"{name}/{part}") for part in ("data", "scales", "sums")}
    return replace(packed, **arrays)


def _codes(call: Call, index: int) -> np.ndarray:
    data = call.inputs[index].data
    if data is None:
        raise ValueError(f"{call.inputs[index].name!r} is no constant; the runtime needs constant weights and biases")
    return data


def as_variable(array: np.ndarray, name: str) -> tf.Variable:
    """A variable that is stored and not trained."""
    return tf.Variable(array, trainable=False, name=name.replace("/", "_").replace(":", "_"))
