"""One example of every quantized layer: name -> (make(quantizers), stock layer, input shape without batch)."""

import keras

from keras_lowbit import layers


def _pair(quantized, stock, *arguments, shape, **options):
    def make_quantized(**quantizers):
        return quantized(*arguments, **options, **quantizers)

    def make_stock():
        return stock(*arguments, **options)

    return make_quantized, make_stock, shape


_K = keras.layers

ZOO = {
    "conv1d": _pair(layers.QuantConv1D, _K.Conv1D, 6, 3, activation="relu", shape=(9, 4)),
    "conv1d causal": _pair(layers.QuantConv1D, _K.Conv1D, 6, 3, padding="causal", dilation_rate=2, shape=(9, 4)),
    "conv2d": _pair(layers.QuantConv2D, _K.Conv2D, 6, 3, activation="relu", shape=(8, 8, 4)),
    "conv2d same stride 2": _pair(layers.QuantConv2D, _K.Conv2D, 6, 3, strides=2, padding="same", shape=(7, 9, 4)),
    "conv2d no bias": _pair(layers.QuantConv2D, _K.Conv2D, 6, (1, 3), use_bias=False, shape=(8, 8, 4)),
    "conv2d dilated": _pair(layers.QuantConv2D, _K.Conv2D, 6, 3, dilation_rate=2, shape=(8, 8, 4)),
    "conv2d groups": _pair(layers.QuantConv2D, _K.Conv2D, 6, 3, groups=2, shape=(8, 8, 4)),
    "depthwise": _pair(layers.QuantDepthwiseConv2D, _K.DepthwiseConv2D, 3, padding="same", shape=(8, 8, 4)),
    "depthwise x2": _pair(
        layers.QuantDepthwiseConv2D,
        _K.DepthwiseConv2D,
        3,
        strides=2,
        depth_multiplier=2,
        activation="relu6",
        shape=(8, 8, 4),
    ),
    "transpose": _pair(
        layers.QuantConv2DTranspose, _K.Conv2DTranspose, 6, 3, strides=2, padding="same", shape=(5, 5, 4)
    ),
    "transpose valid": _pair(layers.QuantConv2DTranspose, _K.Conv2DTranspose, 6, 2, activation="relu", shape=(5, 5, 4)),
    "dense": _pair(layers.QuantDense, _K.Dense, 6, activation="tanh", shape=(11,)),
    "dense on a sequence": _pair(layers.QuantDense, _K.Dense, 6, use_bias=False, shape=(3, 11)),
}
