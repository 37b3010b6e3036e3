"""Quantized dense layer."""

from typing import Any

import keras
from keras import ops

from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.layers.host import PACKAGE
from keras_lowbit.numerics.kernel_layouts import LAYOUTS


@keras.saving.register_keras_serializable(PACKAGE)
class QuantDense(QuantizedLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose kernel [inputs, units] is quantized on every call; an output channel is a column.

    Input [..., inputs], output [..., units]. Arguments of the stock layer, and three more.
    kernel_quantizer, bias_quantizer, output_quantizer: object, short name, plain dict or None (float); see `QuantizedLayer`.

    >>> layer = klb.layers.QuantDense(10, kernel_quantizer="ternary", output_quantizer="activation")
    >>> layer(np.ones((2, 5), "float32")).shape
    TensorShape([2, 10])
    """

    filter_axes = LAYOUTS["Dense"].output_axes

    def linear(self, inputs: Any, training: bool | None = None) -> Any:
        """``x @ q(kernel)``."""
        return ops.matmul(inputs, self.quantized_kernel(training))
