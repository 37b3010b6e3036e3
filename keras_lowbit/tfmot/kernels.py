"""Quantized layers of Keras 3 for the layers whose kernels a TFMOT wrapper quantizes."""

from typing import Any

import tensorflow_model_optimization as tfmot

from keras_lowbit.convert.analysis.operations import QUANTIZED_CLASSES
from keras_lowbit.convert.separable import split_separable
from keras_lowbit.tfmot.configs import KERNELS
from keras_lowbit.tfmot.ranges import PlacedRange, set_state
from keras_lowbit.tfmot.stock import keras3_name, stock_layer
from keras_lowbit.tfmot.wrappers import WrappedKernel, kernels_in


def quantized_kernels(layer: Any) -> list[WrappedKernel]:
    """The kernels that a wrapper quantizes with quantizers of ours; none of any other layer.

    Raises ValueError for one with TFMOT's own quantizers.
    """
    if not isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        return []
    found = kernels_in(layer)
    if len(found) != len(layer._weight_vars):
        raise ValueError(
            f"Layer {layer.name!r} is quantized by TFMOT's own {type(layer.quantize_config).__name__}, which to_keras3 does "
            'not translate. Annotate it with KernelQuantizeConfig("uniform"), or quantize the model with '
            'keras_lowbit.tfmot.quantize_model(model, "int8").'
        )
    return found


def quantized_layers(inner: Any, kernels: list[WrappedKernel], pre: PlacedRange | None, input_shape: Any) -> list[Any]:
    """The quantized layer of a tf_keras layer, built, with weights and state; two for a separable convolution.

    inner: the layer inside the wrapper.   pre: the range before its activation.
    """
    stock = _with_weights(stock_layer(inner), inner, kernels, input_shape)
    quantizers = [kernel.kernel_quantizer for kernel in kernels]
    changes = {"kernel_quantizer": quantizers[-1], "output_quantizer": None if pre is None else pre.quantizer}
    if len(kernels) == 2:
        made = list(split_separable(stock, f"{keras3_name(inner)}_depthwise", quantizers[0], changes))
    else:
        made = [_quantized(stock, changes, input_shape)]
    for copy, kernel in zip(made, kernels, strict=True):
        set_state(copy.kernel_host, {name: v.numpy() for name, v in kernel.kernel_host.variables.items()})
        copy.trainable = inner.trainable
    if pre is not None:
        set_state(made[-1].output_host, pre.state)
    return made


def _with_weights(stock: Any, inner: Any, kernels: list[WrappedKernel], input_shape: Any) -> Any:
    stock.build(input_shape)
    for (name, _), kernel in zip(KERNELS[type(stock).__name__], kernels, strict=True):
        target = stock.kernel if name == "depthwise_kernel" and len(kernels) == 1 else getattr(stock, name)
        target.assign(kernel.kernel.numpy())
    if stock.bias is not None:
        stock.bias.assign(inner.bias.numpy())
    return stock


def _quantized(stock: Any, changes: dict[str, Any], input_shape: Any) -> Any:
    copy = QUANTIZED_CLASSES[type(stock).__name__].from_config(stock.get_config() | changes)
    copy.build(input_shape)
    copy.kernel.assign(stock.kernel)
    if stock.bias is not None:
        copy.bias.assign(stock.bias)
    return copy
