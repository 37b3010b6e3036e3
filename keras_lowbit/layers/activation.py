"""QuantActivation: an activation function followed by a range, or the range alone."""

from typing import Any

import keras
from keras import ops

from keras_lowbit import quantizers
from keras_lowbit.layers.base import check_role
from keras_lowbit.layers.host import FORMAT_VERSION, PACKAGE, QuantizerHost, require_float_policy, take_format_version
from keras_lowbit.quantizers.former import upgrade


@keras.saving.register_keras_serializable(PACKAGE)
def former_hard_sigmoid(x: Any) -> Any:
    """``clip(0.2 x + 0.5, 0, 1)``: what hard_sigmoid is in Keras 1 and 2. Keras 3's has the slope 1/6."""
    return ops.clip(ops.add(ops.multiply(x, 0.2), 0.5), 0.0, 1.0)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantActivation(keras.layers.Layer):
    """``y = quantizer(activation(x))``: the place where a tensor gets its 8-bit range.

    Called with ``observe=False`` it only rounds to the range: the range does not move with these values, in `fit` and in
    `calibrate`. So it stands behind an operation that rounds inside the range of its input, as bilinear resizing does in int8:
    ``y = r(UpSampling2D(interpolation="bilinear")(r(x)), observe=False)``.

    activation: as in `keras.layers.Activation`, None for the range alone.   quantizer: object, name or dict,
    "activation" (8 bits, asymmetric) by default. Any shape in, the same shape out.
    Under ``trainable=False`` the range stands still in `fit`; `calibrate` sets it all the same.

    >>> layer = klb.layers.QuantActivation("relu")
    >>> y = layer(images, training=True)  # the range follows what it sees
    >>> len(np.unique(y)) <= 256
    True
    """

    def __init__(self, activation: Any = None, quantizer: Any = "activation", **kwargs: Any) -> None:
        version = take_format_version(kwargs, "A QuantActivation")
        super().__init__(**kwargs)
        require_float_policy(self)
        self.activation = keras.activations.get(activation)
        quantizer = quantizers.get(upgrade(quantizer, version))
        check_role("QuantActivation", "output", quantizer)
        self.output_host = QuantizerHost(quantizer, name="output_quantizer", trainable=self.trainable)
        self.supports_masking = True

    @property
    def quantizer(self) -> quantizers.Quantizer | None:
        """The quantizer of the output."""
        return self.output_host.quantizer

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the quantizer's variables."""
        self.output_host.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, observe: bool = True) -> Any:
        """``quantizer(activation(x))`` in the compute dtype. observe: whether the range may follow the values."""
        if self.activation is not None:
            inputs = self.activation(inputs)
        return ops.cast(self.output_host(inputs, training=training, observe=observe), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Activation and quantizer as plain values."""
        config = super().get_config()
        config |= {
            "activation": self.activation and keras.activations.serialize(self.activation),
            "quantizer": quantizers.serialize(self.quantizer),
        }
        return config | {"format_version": FORMAT_VERSION}
