"""A single Keras call as a float .tflite: the body of a float island. The TF converter builds nothing else here."""

import contextlib
import io
from typing import Any

import keras

from keras_lowbit.convert.graph import Call


def convert_island(call: Call, shapes: list[tuple[int | None, ...]], batch_size: int = 1) -> bytes:
    """The float .tflite bytes of one call for inputs of those shapes (without batch), in the call's order.

    Raises ValueError with the converter's reason if the call cannot be converted.
    """
    import tensorflow as tf

    inputs = [keras.Input(batch_shape=(batch_size, *shape), dtype="float32") for shape in shapes]
    outputs = call.run(dict(zip(call.inputs, inputs, strict=True)))
    model: Any = keras.Model(inputs, outputs)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return bytes(converter.convert())
    except Exception as error:
        raise ValueError(
            f"{call.path!r} ({type(call.operation).__name__}) has no integer form, and the TensorFlow converter cannot "
            f"express it in float either: {error}. Leave it out of the exported model."
        ) from error
