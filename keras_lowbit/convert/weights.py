"""The integers of a quantized model, and the way back to a stock Keras model."""

from typing import Any

import keras

from keras_lowbit.arguments import check_model
from keras_lowbit.convert.analysis.operations import QUANTIZED_CLASSES
from keras_lowbit.keras_graph.calls import Call, find_layers, is_graph_model
from keras_lowbit.keras_graph.comparison import check_layers
from keras_lowbit.keras_graph.copies import Copies, clone_model, merged_config, warn_of_own_steps
from keras_lowbit.keras_graph.variables import refuse_keras_quantization, to_numpy, weight_value
from keras_lowbit.layers import (
    AddConstant,
    ChannelAffine,
    InverseRoot,
    KeepFloat,
    MaskScores,
    QuantActivation,
    QuantizedLayer,
    QuantLSTM,
)
from keras_lowbit.layers.constants import Plain
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.layers.kernels import kernel_codes, quantized_layers
from keras_lowbit.quantizers import Quantized

_LIBRARY = "keras_lowbit."
_OWN = (QuantizedLayer, QuantActivation, QuantLSTM)
STOCK_CLASSES = {cls: getattr(keras.layers, name) for name, cls in QUANTIZED_CLASSES.items()}


def quantized_weights(model: keras.Model) -> dict[str, Quantized]:
    """Path of every quantized layer ("backbone/conv1") -> codes (int8), scale and `.real` of its kernel.

    model: from `quantize_model`, or with drop-in layers.
    codes: NumPy int8 in the layout of the Keras kernel.   scale: float32, broadcasts against the codes.
    ``.real == scale * codes`` is, bit for bit, what the forward pass multiplies with (before a cast to half precision).
    Returns a dict: path -> `Quantized`.
    Raises ValueError for a model without quantized layers.

    >>> found = klb.quantized_weights(ternary)["pointwise"]
    >>> found.codes.dtype, found.codes.min(), found.codes.max()
    (dtype('int8'), np.int8(-1), np.int8(1))
    """
    found = {path: kernel_codes(layer) for path, layer in quantized_layers(model).items()}
    if not found:
        raise ValueError(
            f"{model.name!r} has no quantized layer. Quantize it first: keras_lowbit.quantize_model(model)."
        )
    return found


def dequantize(model: keras.Model) -> keras.Model:
    """A stock Keras model that holds the quantized values: no class of this library in it, activations float.

    Kernels and biases are the on-grid reals of the quantized layers; activation ranges are left out. The original is
    not touched; an operation without weights that cannot be copied is shared with it. A Functional or Sequential model is
    needed, as for `quantize_model`.
    model: from `quantize_model`, or with drop-in layers.
    Returns a Keras model of stock layers, not compiled.

    >>> stock = klb.dequantize(quantized)
    >>> klb.layers.find_layers(stock, klb.layers.QuantizedLayer)
    []
    """
    check_model(model, "dequantize")
    _refuse_packed_layers(model)
    refuse_keras_quantization(model)
    warn_of_own_steps(model)
    copies = Copies()
    copy = _dequantized(model, copies)
    copies.check_apart(model, copy)
    check_layers(model, lambda call, values: _plain(copies, call, values))
    return copy


def _plain(copies: Copies, call: Call, values: dict[int, Any]) -> list[Any] | None:
    copy = None if isinstance(call.operation, _OWN) else copies.made(call.operation)
    return None if copy is None else call.run(values, copy)


def _refuse_packed_layers(model: keras.Model) -> None:
    """ValueError for layers of this library that hold no quantizers any more, as those of a packed model."""
    known = (KeepFloat, Plain, *_OWN, QuantizerHost)
    own = [layer for layer in find_layers(model, keras.layers.Layer) if type(layer).__module__.startswith(_LIBRARY)]
    if foreign := [layer for layer in own if not isinstance(layer, known)]:
        raise ValueError(
            f"dequantize cannot make stock layers of {len(foreign)} layers of {model.name!r}, the first is the "
            f"{type(foreign[0]).__name__} {foreign[0].name!r}. Dequantize the model that keras_lowbit.pack was given."
        )


def _dequantized(sequence: Any, copies: Copies) -> keras.Model:
    def compute(call: Call, values: dict[int, Any]) -> list[Any]:
        if _is_bare_range(call.operation):
            return [values[call.inputs[0]]]
        if isinstance(call.operation, Plain):
            return [_in_stock_operations(call.operation, values[call.inputs[0]])]
        if isinstance(call.operation, _OWN) or is_graph_model(call.operation):
            return call.run(values, copies.get(call.operation, lambda: _stock_layer(call.operation, copies)))
        return copies.call(call, values)[0]

    return clone_model(sequence, compute)


def _in_stock_operations(layer: Plain, x: Any) -> Any:
    """What a layer of constants computes; scale and offset of channels by a batch norm with statistics of 0 and 1 for good."""
    options = {"name": layer.name, "dtype": layer.dtype_policy}
    if isinstance(layer, InverseRoot):
        return keras.ops.rsqrt(keras.layers.Rescaling(layer.factor, layer.epsilon, **options)(x))
    if isinstance(layer, MaskScores):
        return keras.ops.where(to_numpy(layer.allowed)[None] > 0, x, -3e4 if layer.compute_dtype == "float16" else -1e9)
    if not isinstance(layer, ChannelAffine):
        constant = to_numpy(layer.rounded())
        return keras.ops.add(x, constant) if isinstance(layer, AddConstant) else keras.ops.multiply(x, constant)
    norm = keras.layers.BatchNormalization(
        epsilon=0.0, scale=layer.use_scale, center=layer.use_offset, trainable=False, **options
    )
    result = norm(x)
    for own, stock in ((layer.scale, norm.gamma), (layer.offset, norm.beta)):
        if own is not None:
            stock.assign(own)
    return result


def _is_bare_range(operation: Any) -> bool:
    """Whether an operation is a range without an activation, or a mark, which the stock model leaves out."""
    bare = isinstance(operation, QuantActivation) and operation.activation in (None, keras.activations.linear)
    return bare or isinstance(operation, KeepFloat)


def _stock_layer(layer: Any, copies: Copies) -> Any:
    if is_graph_model(layer):
        return _dequantized(layer, copies)
    if isinstance(layer, QuantActivation):
        return keras.layers.Activation(layer.activation, name=layer.name, dtype=layer.dtype_policy)
    if isinstance(layer, QuantLSTM):
        return layer.stock()
    config = {key: value for key, value in merged_config(layer).items() if not key.endswith("_quantizer")}
    config.pop("format_version")
    copy = STOCK_CLASSES[type(layer)].from_config(config)
    copy.build(layer.get_build_config()["input_shape"])
    copy.kernel.assign(weight_value(layer) if layer.kernel_host is None else kernel_codes(layer).real)
    if layer.bias is not None:
        copy.bias.assign(layer.effective_bias())
    return copy
