"""Quantized convolutions: the stock arguments of Keras plus three quantizers."""

from typing import Any

import keras
from keras import ops

from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.layers.host import PACKAGE
from keras_lowbit.numerics.kernel_layouts import LAYOUTS


def _convolve(layer: Any, inputs: Any, kernel: Any, padding: str) -> Any:
    """The convolution of a layer. One of a group for each input channel is depthwise, and run so: outside a function Keras on
    TensorFlow compiles a grouped convolution anew in each call."""
    strides, dilation = tuple(layer.strides), tuple(layer.dilation_rate)
    options = {"strides": strides, "padding": padding, "data_format": layer.data_format, "dilation_rate": dilation}
    # TensorFlow's depthwise kernels take one stride for all axes, no dilation beside it, and channels last.
    plain = layer.data_format == "channels_last" and len(set(strides)) == 1 and 1 in (strides[0], max(dilation))
    if layer.groups > 1 and kernel.shape[-2] == 1 and plain:
        by_channel = ops.reshape(kernel, (*kernel.shape[:-2], layer.groups, kernel.shape[-1] // layer.groups))
        return ops.depthwise_conv(inputs, by_channel, **options)
    return ops.conv(inputs, kernel, **options)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantConv1D(QuantizedLayer, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose kernel [k, c_in / groups, c_out] is quantized on every call.

    Input [batch, steps, c_in], output [batch, new_steps, c_out]. Arguments of the stock layer, and three more.
    kernel_quantizer, bias_quantizer, output_quantizer: object, short name, plain dict or None (float); see `QuantizedLayer`.

    >>> layer = klb.layers.QuantConv1D(4, 3, kernel_quantizer="ternary")
    >>> layer(np.ones((2, 10, 3), "float32")).shape
    TensorShape([2, 8, 4])
    """

    filter_axes = LAYOUTS["Conv1D"].output_axes

    def linear(self, inputs: Any, training: bool | None = None) -> Any:
        """``conv(x, q(kernel))``."""
        if self.padding == "causal":
            inputs = ops.pad(inputs, self._compute_causal_padding())
        kernel = self.quantized_kernel(training)
        padding = "valid" if self.padding == "causal" else self.padding
        return _convolve(self, inputs, kernel, padding)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantConv2D(QuantizedLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose kernel [kh, kw, c_in / groups, c_out] is quantized on every call.

    Input [batch, h, w, c_in], output [batch, new_h, new_w, c_out]. Arguments of the stock layer, and three more.
    kernel_quantizer, bias_quantizer, output_quantizer: object, short name, plain dict or None (float); see `QuantizedLayer`.

    >>> layer = klb.layers.QuantConv2D(4, 3, kernel_quantizer="ternary", padding="same")
    >>> layer(images).shape
    TensorShape([32, 8, 8, 4])
    """

    filter_axes = LAYOUTS["Conv2D"].output_axes

    def linear(self, inputs: Any, training: bool | None = None) -> Any:
        """``conv(x, q(kernel))``."""
        return _convolve(self, inputs, self.quantized_kernel(training), self.padding)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantDepthwiseConv2D(QuantizedLayer, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` whose kernel [kh, kw, c_in, multiplier] is quantized on every call.

    An output channel is one (input channel, multiplier) pair: scales have shape [1, 1, c_in, multiplier]. Input
    [batch, h, w, c_in], output [batch, new_h, new_w, c_in * multiplier]. Arguments of the stock layer, and three more.
    kernel_quantizer, bias_quantizer, output_quantizer: object, short name, plain dict or None (float); see `QuantizedLayer`.

    >>> layer = klb.layers.QuantDepthwiseConv2D(3, padding="same", kernel_quantizer="uniform")
    >>> layer(images).shape
    TensorShape([32, 8, 8, 3])
    """

    filter_axes = LAYOUTS["DepthwiseConv2D"].output_axes

    def linear(self, inputs: Any, training: bool | None = None) -> Any:
        """``depthwise_conv(x, q(kernel))``."""
        return ops.depthwise_conv(
            inputs,
            self.quantized_kernel(training),
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class QuantConv2DTranspose(QuantizedLayer, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` whose kernel [kh, kw, c_out, c_in] is quantized on every call.

    Input [batch, h, w, c_in], output [batch, new_h, new_w, c_out]. Arguments of the stock layer, and three more.
    kernel_quantizer, bias_quantizer, output_quantizer: object, short name, plain dict or None (float); see `QuantizedLayer`.

    >>> layer = klb.layers.QuantConv2DTranspose(4, 2, strides=2, kernel_quantizer="uniform")
    >>> layer(images).shape
    TensorShape([32, 16, 16, 4])
    """

    filter_axes = LAYOUTS["Conv2DTranspose"].output_axes

    def linear(self, inputs: Any, training: bool | None = None) -> Any:
        """``conv_transpose(x, q(kernel))``."""
        return ops.conv_transpose(
            inputs,
            self.quantized_kernel(training),
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
