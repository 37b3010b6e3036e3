"""KeepFloat: where a part of a model begins that stays in float."""

from typing import Any

import keras

from keras_lowbit.layers.host import PACKAGE


@keras.saving.register_keras_serializable(PACKAGE)
class KeepFloat(keras.layers.Layer):
    """``y = x``. What reads the result runs in float in an exported file, up to the next range.

    `quantize_model` puts it in front of what `skip=` names; a network of drop-in layers may have it too. It can stand
    behind an input, which then is float32 in the file, or behind a range. Any shape and type in, the same out.

    >>> inputs = keras.Input((5,))  # raw sensor values
    >>> features = keras.layers.Normalization(mean=[0.0] * 5, variance=[1.0] * 5)(klb.layers.KeepFloat()(inputs))
    >>> features = klb.layers.QuantActivation()(features)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """The inputs."""
        return inputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape
