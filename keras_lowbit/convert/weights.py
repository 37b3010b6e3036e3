"""The integers of a quantized model, and the way back to a stock Keras model."""

from typing import Any

import keras
import numpy as np
from keras import tree

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.graph import Call, calls_of, functional_of, is_graph_model
from keras_lowbit.convert.roles import QUANTIZED_CLASSES
from keras_lowbit.layers.host import find_layers
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


def quantized_layers(model: Any) -> dict[str, klb_layers.QuantizedLayer]:
    """Path -> layer with a kernel quantizer, in running order; by name in subclassed models."""
    try:
        pairs = [(call.path, call.operation) for call in calls_of(model, inline=True).calls]
    except TypeError:
        pairs = [(layer.name, layer) for layer in find_layers(model, klb_layers.QuantizedLayer)]
    return {
        path: layer
        for path, layer in pairs
        if isinstance(layer, klb_layers.QuantizedLayer) and layer.kernel_host is not None
    }


def kernel_codes(layer: Any) -> Quantized:
    """Codes (int8) and scale (float32) of one layer's kernel as NumPy arrays."""
    quantized = layer.kernel_host.encode(layer.kernel)
    codes = keras.ops.convert_to_numpy(quantized.codes)
    return Quantized(codes.astype(np.int8), np.asarray(keras.ops.convert_to_numpy(quantized.scale), np.float32))


def dequantize(model: keras.Model) -> keras.Model:
    """A stock Keras model that holds the quantized values: no class of this library in it, activations float.

    Kernels and biases are the on-grid reals of the quantized layers; activation ranges are left out. The original is
    not touched. A Functional or Sequential model is needed, as for `quantize_model`.
    """
    return _rebuild(functional_of(model), {})


def _rebuild(model: Any, copies: dict[int, Any]) -> keras.Model:
    graph = calls_of(model)
    inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in model.inputs]
    values = dict(zip(graph.inputs, inputs, strict=True))
    for call in graph.calls:
        outputs = _passes(call, values) or call.run(values, _stock(call, copies))
        values |= dict(zip(call.outputs, outputs, strict=True))
    return keras.Model(
        tree.pack_sequence_as(model.input, inputs),
        tree.pack_sequence_as(model.output, [values[key] for key in graph.outputs]),
        name=model.name,
    )


def _passes(call: Call, values: dict[int, Any]) -> list[Any]:
    """The input of a bare range, which the stock model leaves out; empty for every other call."""
    operation = call.operation
    bare = isinstance(operation, klb_layers.QuantActivation) and _is_linear(operation)
    return [values[call.inputs[0]]] if bare else []


def _is_linear(layer: klb_layers.QuantActivation) -> bool:
    return layer.activation in (None, keras.activations.linear)


def _stock(call: Call, copies: dict[int, Any]) -> Any:
    operation = call.operation
    if not call.is_layer:
        return operation
    if id(operation) not in copies:
        copies[id(operation)] = _stock_layer(operation, copies)
    return copies[id(operation)]


def _stock_layer(layer: Any, copies: dict[int, Any]) -> Any:
    if is_graph_model(layer):
        return _rebuild(functional_of(layer), copies)
    if isinstance(layer, klb_layers.QuantActivation):
        return keras.layers.Activation(layer.activation, name=layer.name, dtype=layer.dtype_policy)
    config = layer.get_config()
    if isinstance(layer, klb_layers.QuantizedLayer):
        config = {key: value for key, value in config.items() if not key.endswith("_quantizer")}
        config.pop("format_version")
        copy = STOCK_CLASSES[type(layer)].from_config(config)
        copy.build(layer.get_build_config()["input_shape"])
        copy.kernel.assign(layer.kernel if layer.kernel_host is None else kernel_codes(layer).real)
        if layer.bias is not None:
            copy.bias.assign(layer.bias if layer.bias_host is None else layer.bias_host.encode(layer.bias).real)
        return copy
    copy = type(layer).from_config(config)
    if layer.weights:
        copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
    if hasattr(copy, "finalize_state"):  # Normalization derives its constants from its weights
        copy.finalize_state()
    return copy
