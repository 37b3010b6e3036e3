"""The integers of a quantized model, and the way back to a stock Keras model."""

from typing import Any

import keras

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import QUANTIZED_CLASSES
from keras_lowbit.keras_graph.calls import Call, is_graph_model
from keras_lowbit.keras_graph.copies import copied, live_config, rebuilt, warn_of_own_steps
from keras_lowbit.layers.kernels import kernel_codes, quantized_layers
from keras_lowbit.quantizers import Quantized

STOCK_CLASSES = {cls: getattr(keras.layers, name) for name, cls in QUANTIZED_CLASSES.items()}


def quantized_weights(model: keras.Model) -> dict[str, Quantized]:
    """Path of every quantized layer ("backbone/conv1") -> codes (int8), scale and `.real` of its kernel.

    codes: NumPy int8 in the layout of the Keras kernel.   scale: float32, broadcasts against the codes.
    ``.real == scale * codes`` is, bit for bit, what the forward pass multiplies with (before a cast to half precision).
    Raises ValueError for a model without quantized layers.
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
    not touched; an operation that cannot be copied is shared with it. A Functional or Sequential model is needed, as
    for `quantize_model`.
    """
    warn_of_own_steps(model)
    return _rebuild(model, {})


def _rebuild(sequence: Any, copies: dict[int, Any]) -> keras.Model:
    return rebuilt(sequence, lambda call, values: _passes(call, values) or _run_stock(call, values, copies))


def _passes(call: Call, values: dict[int, Any]) -> list[Any]:
    """The input of a bare range, which the stock model leaves out; empty for every other call."""
    operation = call.operation
    bare = isinstance(operation, klb_layers.QuantActivation) and _is_linear(operation)
    return [values[call.inputs[0]]] if bare else []


def _is_linear(layer: klb_layers.QuantActivation) -> bool:
    return layer.activation in (None, keras.activations.linear)


def _run_stock(call: Call, values: dict[int, Any], copies: dict[int, Any]) -> list[Any]:
    operation = call.operation
    if id(operation) in copies:
        return call.run(values, copies[id(operation)])
    if isinstance(operation, (klb_layers.QuantizedLayer, klb_layers.QuantActivation)) or is_graph_model(operation):
        copies[id(operation)] = copy = _stock_layer(operation, copies)
        return call.run(values, copy)
    copies[id(operation)], results, _ = copied(call, values)
    return results


def _stock_layer(layer: Any, copies: dict[int, Any]) -> Any:
    if is_graph_model(layer):
        return _rebuild(layer, copies)
    if isinstance(layer, klb_layers.QuantActivation):
        return keras.layers.Activation(layer.activation, name=layer.name, dtype=layer.dtype_policy)
    config = {key: value for key, value in live_config(layer).items() if not key.endswith("_quantizer")}
    config.pop("format_version")
    copy = STOCK_CLASSES[type(layer)].from_config(config)
    copy.build(layer.get_build_config()["input_shape"])
    copy.kernel.assign(layer.kernel if layer.kernel_host is None else kernel_codes(layer).real)
    if layer.bias is not None:
        copy.bias.assign(layer.effective_bias())
    return copy
