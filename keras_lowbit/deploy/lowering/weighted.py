"""Layers with weights, and per-channel affines on their own (a depthwise 1x1 convolution is exactly that)."""

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_lowbit.convert.analysis.operations import activation_name, stock_kind
from keras_lowbit.deploy.graph import Range
from keras_lowbit.deploy.lowering.activations import deferred_activation, fixed_activation, has_fixed_range
from keras_lowbit.deploy.lowering.float_fallback import lower_activation_in_float
from keras_lowbit.deploy.lowering.folding import Affine, affine_codes, fold, identity
from keras_lowbit.deploy.lowering.int8_overflow import fit_int8
from keras_lowbit.deploy.lowering.registry import lowers
from keras_lowbit.deploy.lowering.state import Lowering, emits
from keras_lowbit.deploy.lowering.values import DeferredOp, LoweredLayer, PartialCall, QuantizedTensor
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.layers.kernels import kernel_codes
from keras_lowbit.numerics.kernel_layouts import dilated
from keras_lowbit.quantizers import Quantized

_EQUAL_SCALES = {"int8": 1e-5, "int16": 2.0**-22}  # of all steps, far less than half of one


class Given(NamedTuple):
    """What every weighted builder method takes first, in its order."""

    tensor: str
    codes: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    grid: Range
    name: str


@lowers("Conv1D", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Dense")
def lower_weighted(state: Lowering, call: Call) -> bool:
    """A quantized layer waits for its range; False (it runs in float) without a quantizer, or a range for its sums."""
    layer: QuantizedLayer = call.operation
    if layer.kernel_host is None:
        return False
    (source, factor), key = _read(state, call), call.outputs[0]
    deferred = _deferred(call, source, factor)
    if not layer.activation_fuses:
        return _with_activation(state, call, source, deferred)
    name = activation_name(layer)
    if name != "linear":
        deferred = deferred.with_activation(name, call)
    if layer.output_host is None:
        state.values[key] = deferred
    else:
        tensor = state.emit(deferred, state.range_of(layer.output_host, call.path))
        state.store(key, tensor, deferred.provenance)
    return True


def _with_activation(state: Lowering, call: Call, source: QuantizedTensor, deferred: DeferredOp) -> bool:
    """A layer whose activation does not fuse: the integer op is stored, then the activation runs on it."""
    layer, activation = call.operation, activation_name(call.operation)
    if layer.output_host is None:
        return False
    before, inner = state.fresh_key(), call.inputs[0]
    head = PartialCall(
        lambda x: layer.integer_output(keras.ops.cast(x, layer.compute_dtype), training=False), (inner,), (before,)
    )
    tensor = state.emit(deferred, state.range_of(layer.output_host, call.path))
    stored = state.store(before, tensor, source.provenance.add(call=head))
    tail = PartialCall(layer.activation, (before,), (call.outputs[0],))
    name, provenance = f"{call.path}/{activation}", stored.provenance.add(call=tail)
    if has_fixed_range(activation):
        made = fixed_activation(state, stored.tensor, activation, name)
        state.store(call.outputs[0], made, provenance, rounded=False)
        return True
    found = deferred_activation(call, activation, state.builder.tensor(stored.tensor).dtype)
    if found is None:
        return lower_activation_in_float(state, call, before, tail)
    state.values[call.outputs[0]] = DeferredOp(found[0], name, (stored.tensor,), provenance, found[1])
    return True


def _read(state: Lowering, call: Call) -> tuple[QuantizedTensor, float]:
    """The stored tensor that a layer reads, and what its reals are to be multiplied with: 1, or the factor of a `Rescaling`
    in front of it that leaves every code as it is, such as that of pixels."""
    value = state.values[call.inputs[0]]
    if isinstance(value, DeferredOp) and value.fallback is not None:
        factor = scale_alone(state, value, value.fallback)
        if factor is not None:
            return QuantizedTensor(value.inputs[0], value.provenance), factor
    return state.stored(call.inputs[0], call), 1.0


def scale_alone(state: Lowering, value: DeferredOp, grid: Range) -> float | None:
    """The factor of ``factor * x``, the same for all channels, if x has on its own grid the codes that this has on `grid`."""
    affine = value.affine
    if value.op != "affine" or affine is None or value.activation or np.any(affine.offset) or np.ptp(affine.factor):
        return None
    sees, factor = state.builder.tensor(value.inputs[0]).range, float(affine.factor[0])
    fits = sees.zero_point == grid.zero_point and abs(factor * sees.scale / grid.scale - 1) < _EQUAL_SCALES[grid.dtype]
    return factor if fits else None


def _deferred(call: Call, source: QuantizedTensor, factor: float) -> DeferredOp:
    """The layer with the factor of its input and its bias as the first affine."""
    layer = call.operation
    affine = identity(call.results[0].shape[-1])
    affine = Affine(factor * affine.factor, affine.offset)
    if (bias := layer.effective_bias()) is not None:
        affine = Affine(affine.factor, bias.astype(np.float64))
    provenance = source.provenance.add(call=call)
    return DeferredOp(
        "weighted", call.path, (source.tensor,), provenance, {"layer": layer}, affine, fuses_activation=True
    )


@emits("weighted")
def emit_weighted(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """Codes fitted to int8, the affine folded into scales and biases, the layer's node."""
    layer, (source,), path = deferred.attributes["layer"], deferred.inputs, deferred.path
    affine = deferred.affine or identity(layer.kernel.shape[-1])
    weights, overflow = fit_int8(_without_zero_point(layer, path), layer.filter_axes, state.overflow, path)
    sees, name = state.builder.tensor(source).range, state.name(path)
    folded = fold(weights.codes, weights.scale, layer.filter_axes, affine, sees, grid, path)
    state.layers[name] = LoweredLayer(path, name, folded.factors, folded.flushed, weights, overflow)
    given = Given(source, folded.codes, folded.scales, folded.bias, grid, name)
    return _NODES[stock_kind(layer)](state, layer, given, activation)


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
    steps, channels = state.static_shape(given.tensor)
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
    return builder.reshape(inner, name, state.static_shape(inner)[1:])


def _depthwise(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    return state.builder.depthwise_conv2d(*given, **_window(layer), activation=activation)


def _transpose(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    """The output's size decides what an output padding means; a dilated kernel is one with zeros in between."""
    shape = layer.compute_output_shape((None, *state.static_shape(given.tensor)))
    return state.builder.transpose_conv(
        *given._replace(codes=dilated(given.codes, layer.dilation_rate)),
        strides=layer.strides,
        padding=layer.padding,
        output_shape=shape[1:3],
        activation=activation,
    )


def _dense(state: Lowering, layer: Any, given: Given, activation: str | None) -> str:
    return state.builder.fully_connected(*given, activation=activation)


_NODES = {
    "Conv1D": _conv1d,
    "Conv2D": _conv2d,
    "DepthwiseConv2D": _depthwise,
    "Conv2DTranspose": _transpose,
    "Dense": _dense,
}


def defer_affine(state: Lowering, call: Call, source: QuantizedTensor, affine: Affine) -> bool:
    """``factor * x + offset`` for each channel of a stored tensor."""
    return state.defer(call, "affine", source, affine=affine, fuses_activation=True)


@emits("affine")
def emit_affine(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    """A depthwise 1x1 convolution with one code for each channel."""
    (tensor,), affine, builder, name = deferred.inputs, deferred.affine, state.builder, state.name(deferred.path)
    if affine is None:
        raise TypeError(f"{deferred.path!r} is an affine without its factors")
    shape = state.static_shape(tensor)
    sees, channels = builder.tensor(tensor).range, shape[-1]
    codes = affine_codes(affine, sees, grid).reshape(1, 1, channels, 1)
    folded = fold(codes, (1 / codes).astype(np.float32), (2, 3), affine, sees, grid, deferred.path)
    if len(shape) == 3:
        weights = (folded.codes, folded.scales, folded.bias)
        return builder.depthwise_conv2d(tensor, *weights, grid, name, activation=activation)
    rest = int(np.prod(shape[:-1], dtype=np.int64))
    image = builder.reshape(tensor, state.name(f"{name}/image"), (1, rest, channels))
    inner = state.name(f"{name}/affine")
    result = builder.depthwise_conv2d(
        image, folded.codes, folded.scales, folded.bias, grid, inner, activation=activation
    )
    return builder.reshape(result, name, shape)
