"""Layers with weights, and per-channel affines on their own (a depthwise 1x1 convolution is exactly that)."""

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import activation_name, stock_kind
from keras_lowbit.deploy.graph.tensors import Range
from keras_lowbit.deploy.lowering.activations import FIXED, fixed_activation, unary_activation
from keras_lowbit.deploy.lowering.float_fallback import activation_island
from keras_lowbit.deploy.lowering.folding import Affine, affine_codes, fold, identity
from keras_lowbit.deploy.lowering.int8_overflow import fit_int8
from keras_lowbit.deploy.lowering.state import Lowering, static_shape
from keras_lowbit.deploy.lowering.values import LoweredLayer, Part, Pending, Stored
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.layers.kernels import kernel_codes
from keras_lowbit.quantizers import Quantized


class Given(NamedTuple):
    """What every weighted builder method takes first, in its order."""

    tensor: str
    codes: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    grid: Range
    name: str


def lower_weighted(state: Lowering, call: Call) -> bool:
    """A quantized layer waits for its range; False (a float island) without a quantizer, or without a range for its sums."""
    layer: QuantizedLayer = call.operation
    kind = stock_kind(layer)
    if layer.kernel_host is None:
        return False
    source, key = state.stored(call.inputs[0], call), call.outputs[0]
    pending = _pending(state, call, source, kind)
    if layer.activation_fuses:
        name = activation_name(layer)
        if name != "linear":
            pending = pending.clipped(name, call)
        if layer.output_host is None:
            state.values[key] = pending
        else:
            state.store(key, state.emit(pending, state.range_of(layer.output_host, call.path)), pending.trail)
        return True
    return _with_activation(state, call, source, pending)


def _with_activation(state: Lowering, call: Call, source: Stored, pending: Pending) -> bool:
    """A layer whose activation does not fuse: the integer op is stored, then the activation runs on it."""
    layer, activation = call.operation, activation_name(call.operation)
    if layer.output_host is None:
        return False
    before, inner = state.fresh_key(), call.inputs[0]
    head = Part(
        lambda x: layer.integer_output(keras.ops.cast(x, layer.compute_dtype), training=False), (inner,), (before,)
    )
    tensor = state.emit(pending, state.range_of(layer.output_host, call.path))
    stored = state.store(before, tensor, source.trail.add(call=head))
    tail = Part(layer.activation, (before,), (call.outputs[0],))
    name, trail = f"{call.path}/{activation}", stored.trail.add(call=tail)
    if activation in (*FIXED, "hard_sigmoid"):
        state.store(call.outputs[0], fixed_activation(state, stored.tensor, activation, name), trail)
        return True
    unary = unary_activation(state, call, activation, stored.tensor, name)
    if unary is None:
        return activation_island(state, call, before, tail)
    state.values[call.outputs[0]] = Pending(call.path, unary, trail, clips=False)
    return True


def _pending(state: Lowering, call: Call, source: Stored, kind: str) -> Pending:
    layer = call.operation
    channels = call.results[0].shape[-1]
    affine, bias = identity(channels), layer.effective_bias()
    if bias is not None:
        affine = Affine(affine.factor, bias.astype(np.float64))

    def emit(grid: Range, activation: str | None, total: Affine | None) -> str:
        weights, overflow = fit_int8(
            _without_zero_point(layer, call.path), layer.filter_axes, state.overflow, call.path
        )
        sees = state.builder.tensor(source.tensor).range
        name = state.name(call.path)
        folded = fold(weights.codes, weights.scale, layer.filter_axes, total or affine, sees, grid, call.path)
        state.layers[name] = LoweredLayer(call.path, name, folded.factors, folded.flushed, weights, overflow)
        given = Given(source.tensor, folded.codes, folded.scales, folded.bias, grid, name)
        return _NODES[kind](state, layer, given, activation)

    return Pending(call.path, emit, source.trail.add(call=call), affine)


def _without_zero_point(layer: Any, path: str) -> Quantized:
    weights = kernel_codes(layer)
    if np.any(weights.zero_point):
        raise ValueError(
            f"The weights of {path!r} are asymmetric ({layer.kernel_quantizer!r}): their grid has a zero point, and LiteRT's "
            "int8 weights have none. Tune them with mode='symmetric' to export; activations may be asymmetric."
        )
    return weights


def _window(layer: Any) -> dict[str, Any]:
    """Strides, padding and dilation of a 2-D layer, as the builder takes them."""
    return {"strides": layer.strides, "padding": layer.padding, "dilation": layer.dilation_rate}


def _conv2d(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    return state.builder.conv2d(*given, **_window(layer), groups=layer.groups, activation=activation)


def _conv1d(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    """A convolution of height 1 between two reshapes; causal padding goes in front."""
    builder, name = state.builder, given.name
    steps, channels = static_shape(state, given.tensor)
    image = builder.reshape(given.tensor, state.name(f"{name}/image"), (1, steps, channels))
    padding: Any = layer.padding
    if padding == "causal":
        padding = ((0, 0), (layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0))
    inner = builder.conv2d(
        *given._replace(tensor=image, codes=given.codes[None], name=state.name(f"{name}/conv")),
        strides=(1, layer.strides[0]),
        padding=padding,
        dilation=(1, layer.dilation_rate[0]),
        groups=layer.groups,
        activation=activation,
    )
    return builder.reshape(inner, name, static_shape(state, inner)[1:])


def _depthwise(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    return state.builder.depthwise_conv2d(*given, **_window(layer), activation=activation)


def _transpose(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    return state.builder.transpose_conv(*given, strides=layer.strides, padding=layer.padding, activation=activation)


def _dense(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    return state.builder.fully_connected(*given, activation=activation)


_NODES = {
    "Conv1D": _conv1d,
    "Conv2D": _conv2d,
    "DepthwiseConv2D": _depthwise,
    "Conv2DTranspose": _transpose,
    "Dense": _dense,
}


def pending_affine(state: Lowering, call: Call, source: Stored, affine: Affine) -> Pending:
    """``factor * x + offset`` for each channel of a stored tensor: a depthwise 1x1 convolution with one code each."""

    def emit(grid: Range, activation: str | None, total: Affine | None) -> str:
        builder, whole, name = state.builder, total or affine, state.name(call.path)
        shape = static_shape(state, source.tensor)
        sees, channels = builder.tensor(source.tensor).range, shape[-1]
        codes = affine_codes(whole, sees, grid).reshape(1, 1, channels, 1)
        folded = fold(codes, (1 / codes).astype(np.float32), (2, 3), whole, sees, grid, call.path)
        tensor = source.tensor
        if len(shape) != 3:
            rest = int(np.prod(shape[:-1], dtype=np.int64))
            tensor = builder.reshape(tensor, state.name(f"{name}/image"), (1, rest, channels))
        inner = name if len(shape) == 3 else state.name(f"{name}/affine")
        result = builder.depthwise_conv2d(
            tensor, folded.codes, folded.scales, folded.bias, grid, inner, activation=activation
        )
        return result if len(shape) == 3 else builder.reshape(result, name, shape)

    return Pending(call.path, emit, source.trail.add(call=call), affine)
