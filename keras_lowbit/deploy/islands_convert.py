"""A piece of a Keras model as a float .tflite: the body of a float island. The TF converter builds nothing else here."""

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras


def convert_island(
    run: Callable[..., list[Any]], shapes: Sequence[tuple[int | None, ...]], what: str, batch_size: int = 1
) -> bytes:
    """The float .tflite bytes of `run(*tensors)` for inputs of those shapes (without batch).

    what: names the piece in errors.   Raises ValueError if the piece mixes the samples of a batch, and with the
    converter's reason if it cannot be converted.
    """
    import tensorflow as tf

    inputs = [keras.Input(shape, dtype="float32") for shape in shapes]
    if any(output.shape[0] is not None for output in run(*inputs)):
        raise ValueError(
            f"{what} mixes the samples of a batch: its output has no batch axis. A phone runs one sample at a time. Leave "
            "it out of the exported model."
        )
    inputs = [keras.Input(batch_shape=(batch_size, *shape), dtype="float32") for shape in shapes]
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(inputs, run(*inputs)))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return bytes(converter.convert())
    except Exception as error:  # the converter raises its own classes, with pages of text
        known = re.search(r"'tf\.\w+' op is [^\n]*", str(error))
        raise ValueError(
            f"{what} has no integer form, and the TensorFlow converter cannot express it in float either "
            f"({known[0] if known else str(error)[:300]}). Leave it out of the exported model."
        ) from error
