"""Files to compare with: the float model, and TensorFlow's own post-training int8 of it."""

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lowbit import data as klb_data
from keras_lowbit.deploy.files import atomic_write


def write_peers(
    model: keras.Model, folder: str | os.PathLike[str], data: Any, *, batch_size: int = 32, steps: int | None = None
) -> dict[str, Path]:
    """Write ``float.tflite`` and ``tensorflow_int8.tflite`` of a float Keras model; name -> path, float first.

    The second is TFLiteConverter's full-integer post-training quantization, int8 in and out, batch 1.
    model: the float model, with fixed sizes.   data: images for its calibration, as for `keras_lowbit.calibrate`: give
    both the same.   Raises FileNotFoundError if the folder does not exist.

    >>> files = write_peers(model, "files", images) | {"ours": "q.tflite"}
    >>> print(latency(list(files.values())))
    """
    import tensorflow as tf

    target = Path(folder)
    if not target.is_dir():
        raise FileNotFoundError(f"No folder at {os.fspath(folder)!r}. Create it first.")

    def samples() -> Any:
        for batch in klb_data.batches(data, batch_size, steps):
            leaves = [np.asarray(leaf, np.float32) for leaf in keras.tree.flatten(batch)]
            for parts in zip(*leaves, strict=True):
                yield [part[None] for part in parts]

    fixed = _batch_of_one(model)
    converter = tf.lite.TFLiteConverter.from_keras_model(fixed)
    paths = {"float": target / "float.tflite", "tensorflow int8": target / "tensorflow_int8.tflite"}
    atomic_write(paths["float"], _convert(converter))
    converter = tf.lite.TFLiteConverter.from_keras_model(fixed)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    atomic_write(paths["tensorflow int8"], _convert(converter))
    return paths


def _convert(converter: Any) -> bytes:
    """The converter's file, without its chatter: folders on standard output, a warning about statistics it collects."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        return bytes(converter.convert())


def _batch_of_one(model: keras.Model) -> keras.Model:
    """The same model with static shapes: dynamic ones cost XNNPACK some operators, which would not be a fair race."""
    inputs = [keras.Input(batch_shape=(1, *t.shape[1:]), dtype=t.dtype, name=t.name) for t in model.inputs]
    return keras.Model(inputs, model(keras.tree.pack_sequence_as(model.input, inputs)))
