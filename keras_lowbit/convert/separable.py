"""A separable convolution is a depthwise and a pointwise one; the integer pipeline runs them as two layers."""

from typing import Any

import keras

from keras_lowbit.keras_graph.copies import live_config
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDepthwiseConv2D
from keras_lowbit.quantizers import Quantizer

_COMMON = ("data_format", "dtype", "trainable")


def split_separable(
    layer: Any, depthwise_name: str, depthwise: Quantizer | None, pointwise: dict[str, Any]
) -> tuple[Any, QuantConv2D]:
    """Depthwise (no bias, linear, named `depthwise_name`) and pointwise (the layer's own name) copies, weights copied.

    ``separable(x) = pointwise(depthwise(x))``, exactly while nothing is quantized.
    depthwise: quantizer of the first layer, a stock one without it.   pointwise: quantizers of the second layer, and a
    changed activation, as its constructor takes them.
    """
    first, second = _depthwise(layer, depthwise_name, depthwise), _pointwise(layer, pointwise)
    input_shape = layer.get_build_config()["input_shape"]
    first.build(input_shape)
    second.build(first.compute_output_shape(input_shape))
    first.kernel.assign(to_numpy(layer.depthwise_kernel))
    second.kernel.assign(to_numpy(layer.pointwise_kernel))
    if layer.use_bias:
        second.bias.assign(to_numpy(layer.bias))
    return first, second


def _depthwise(layer: Any, name: str, quantizer: Quantizer | None) -> Any:
    make = keras.layers.DepthwiseConv2D if quantizer is None else QuantDepthwiseConv2D
    config = live_config(layer)
    return make(
        layer.kernel_size,
        name=name,
        **({} if quantizer is None else {"kernel_quantizer": quantizer}),
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        **{key: config[key] for key in ("strides", "padding", "dilation_rate", "depth_multiplier", *_COMMON)},
    )


def _pointwise(layer: Any, changes: dict[str, Any]) -> QuantConv2D:
    config = live_config(layer)
    return QuantConv2D(
        layer.filters,
        1,
        name=layer.name,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        use_bias=layer.use_bias,
        **{"activation": config["activation"]} | changes,
        **{key: config[key] for key in _COMMON},
    )
