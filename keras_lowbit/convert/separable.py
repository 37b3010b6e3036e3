"""A separable convolution is a depthwise and a pointwise one; the integer pipeline runs them as two layers."""

from typing import Any

import keras

from keras_lowbit.keras_graph.copies import live_config
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantConv2D, QuantDepthwiseConv2D
from keras_lowbit.quantizers import Quantizer


def split_separable(
    layer: Any, depthwise_name: str, depthwise: Quantizer | None, pointwise: dict[str, Any]
) -> tuple[Any, QuantConv2D]:
    """Depthwise (no bias, linear, named `depthwise_name`) and pointwise (the layer's own name) copies, weights copied.

    ``separable(x) = pointwise(depthwise(x))``, exactly while nothing is quantized.
    depthwise: quantizer of the first layer, a stock one without it.   pointwise: quantizers of the second layer, and a
    changed activation, as its constructor takes them.
    """
    config = live_config(layer)
    common = {key: config[key] for key in ("data_format", "dtype", "trainable")}
    make = keras.layers.DepthwiseConv2D if depthwise is None else QuantDepthwiseConv2D
    quantizer = {} if depthwise is None else {"kernel_quantizer": depthwise}
    first = make(
        layer.kernel_size,
        name=depthwise_name,
        **quantizer,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        **{key: config[key] for key in ("strides", "padding", "dilation_rate", "depth_multiplier")},
        **common,
    )
    second = QuantConv2D(
        layer.filters,
        1,
        name=layer.name,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        use_bias=layer.use_bias,
        **{"activation": config["activation"]} | pointwise,
        **common,
    )
    input_shape = layer.get_build_config()["input_shape"]
    first.build(input_shape)
    second.build(first.compute_output_shape(input_shape))
    first.kernel.assign(to_numpy(layer.depthwise_kernel))
    second.kernel.assign(to_numpy(layer.pointwise_kernel))
    if layer.use_bias:
        second.bias.assign(to_numpy(layer.bias))
    return first, second
