"""How the runtime makes the layers with weights: packed weights in variables, and the epilogue beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph, Node
from keras_lowbit.deploy.reference.call import NodeCall, scale_of
from keras_lowbit.deploy.reference.convolution import effective_scale
from keras_lowbit.deploy.runtime.fusion import RESIDUAL
from keras_lowbit.deploy.runtime.node_kernels import Keep, Run, runs, static_call
from keras_lowbit.numerics import requantization as fp
from keras_lowbit.ops import functions, packing, tf_fallback
from keras_lowbit.ops.epilogue import Requantize, ResidualAdd
from keras_lowbit.ops.packing import PackedWeights


@runs("conv2d")
def conv2d(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """A convolution, with the residual that `fusion.fuse_additions` may have put behind it."""
    call, residual = static_call(graph, _without_residual(node)), _residual_of(graph, node)
    packed = _kept(packing.pack_kernel(_codes(call, 1), node.attributes["groups"]), node.name, keep)
    arguments = _arguments(call) | _window(call)
    return lambda values: functions.clustered_ternary_conv2d(values[0], packed, **arguments, **residual(values))


@runs("depthwise_conv2d")
def depthwise_conv2d(graph: IntegerGraph, node: Node, keep: Keep) -> Run:
    """A depthwise convolution, with a residual as `conv2d`."""
    call, residual = static_call(graph, _without_residual(node)), _residual_of(graph, node)
    kernel = keep(_codes(call, 1), f"{node.name}/kernel")
    arguments = _arguments(call) | _window(call)
    return lambda values: functions.int8_depthwise_conv2d(values[0], kernel, **arguments, **residual(values))


@runs("fully_connected")
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


@runs("transpose_conv")
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


def _without_residual(node: Node) -> Node:
    """A layer as it was before an addition was fused into it."""
    if len(node.inputs) <= RESIDUAL:
        return node
    return replace(node, inputs=node.inputs[:RESIDUAL], outputs=(node.attributes["before_residual"],))


def _residual_of(graph: IntegerGraph, node: Node) -> Callable[[list[Any]], dict[str, Any]]:
    """The argument `residual` of a layer's op from the values of its inputs; empty without a fused addition."""
    if len(node.inputs) <= RESIDUAL:
        return lambda values: {}
    own, other = graph.tensors[node.attributes["before_residual"]], graph.tensors[node.inputs[RESIDUAL]]
    output = graph.tensors[node.outputs[0]]
    scales = [np.float64(scale_of(t)) for t in (own, other)]
    grid = 2 * max(scales)
    back = grid / (2.0**20 * np.float64(scale_of(output)))
    to_grid, other_to_grid, from_grid = (_pair(real) for real in (*(s / grid for s in scales), back))
    low, high = fp.activation_range(node.attributes["residual_activation"], float(scale_of(output)), output.zero_point)
    add = ResidualAdd(None, to_grid, other_to_grid, from_grid, other.zero_point, output.zero_point, low, high)
    return lambda values: {"residual": replace(add, codes=values[1])}


def _pair(real: float) -> tuple[int, int]:
    factor = fp.quantize_multiplier(real)
    return int(factor.multiplier), int(factor.shift)


def _arguments(call: NodeCall) -> dict[str, Any]:
    """Zero point, bias and epilogue of a layer that rounds twice."""
    factor = fp.quantize_multiplier(effective_scale(call))
    low, high = call.limits()
    output = Requantize(factor.multiplier, factor.shift, None, call.output.zero_point, low, high)
    bias = _codes(call, 2) if len(call.inputs) > 2 else None
    return {"input_zero_point": call.inputs[0].zero_point, "bias": bias, "output": output}


def _window(call: NodeCall) -> dict[str, Any]:
    attributes, padding = call.attributes, call.attributes["padding"]
    return {
        "strides": tuple(attributes["strides"]),
        "padding": padding.upper() if isinstance(padding, str) else padding,  # numbers: of a pad node, folded in
        "dilations": tuple(attributes.get("dilation", (1, 1))),
    }


def _kept(packed: PackedWeights, name: str, keep: Keep) -> PackedWeights:
    arrays = {part: keep(getattr(packed, part), f"{name}/{part}") for part in ("data", "scales", "sums")}
    return replace(packed, **arrays)


def _codes(call: NodeCall, index: int) -> np.ndarray:
    data = call.inputs[index].data
    if data is None:
        raise ValueError(f"{call.inputs[index].name!r} is no constant; the runtime needs constant weights and biases")
    return data
