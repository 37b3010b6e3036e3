"""Files to compare with: the float model, and the post-training int8 of TensorFlow and of ai-edge-quantizer."""

import contextlib
import importlib.util
import io
import os
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lowbit import data as klb_data
from keras_lowbit.files import atomic_write
from keras_lowbit.keras_graph.calls import functional_of, inputs_in_order
from keras_lowbit.keras_graph.depth import build_model


def write_peers(
    model: keras.Model, folder: str | os.PathLike[str], data: Any, *, batch_size: int = 32, steps: int | None = None
) -> dict[str, Path]:
    """Write the peers' files of a float Keras model; name -> path, float first.

    ``float.tflite``; ``tensorflow_int8.tflite``, TFLiteConverter's full-integer post-training quantization, int8 in and
    out; and, where the package is installed (extra ``peers``), ``ai_edge_quantizer_int8.tflite`` with its recipe of
    static 8-bit weights and activations. All batch 1.
    model: the float model, Functional or Sequential, with fixed sizes.   data: images for its calibration, as for
    `keras_lowbit.calibrate`: give both the same.
    folder: one that exists.   batch_size, steps: of the calibration, as for `calibrate`.
    Returns a dict: name -> path.
    Raises FileNotFoundError if the folder does not exist, ValueError for a Sequential model without an input shape.

    >>> os.makedirs("files", exist_ok=True)
    >>> files = klb.bench.write_peers(model, "files", images)
    >>> list(files)[:2]
    ['float', 'tensorflow int8']
    """
    import tensorflow as tf

    target = Path(folder)
    if not target.is_dir():
        raise FileNotFoundError(f"No folder at {os.fspath(folder)!r}. Create it first.")

    fixed = _batch_of_one(model)

    def samples() -> Any:
        for batch in klb_data.batches(data, batch_size, steps):
            for parts in zip(*inputs_in_order(model, batch), strict=True):
                yield [part[None] for part in parts]

    converter = tf.lite.TFLiteConverter.from_keras_model(fixed)
    paths = {"float": target / "float.tflite", "tensorflow int8": target / "tensorflow_int8.tflite"}
    atomic_write(paths["float"], _convert(converter))
    converter = tf.lite.TFLiteConverter.from_keras_model(fixed)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    atomic_write(paths["tensorflow int8"], _convert(converter))
    if importlib.util.find_spec("ai_edge_quantizer") is not None:
        paths["ai-edge-quantizer int8"] = target / "ai_edge_quantizer_int8.tflite"
        atomic_write(paths["ai-edge-quantizer int8"], _ai_edge_quantized(paths["float"], list(samples())))
    return paths


def _ai_edge_quantized(float_file: Path, samples: list[list[np.ndarray]]) -> bytes:
    from ai_edge_quantizer import quantizer, recipe

    from keras_lowbit.deploy.interpreters import make_interpreter

    signature = make_interpreter("xnnpack", model_path=os.fspath(float_file)).get_signature_list()["serving_default"]
    calibration = {"serving_default": [dict(zip(signature["inputs"], sample, strict=True)) for sample in samples]}
    quantize = quantizer.Quantizer(os.fspath(float_file), recipe.static_wi8_ai8())
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own progress and memory notices
        found = quantize.quantize(quantize.calibrate(calibration, num_threads=1))
    return bytes(found.quantized_model)


def _convert(converter: Any) -> bytes:
    """The converter's file, without its chatter: folders on standard output, a warning about statistics it collects."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        return bytes(converter.convert())


def _batch_of_one(model: keras.Model) -> keras.Model:
    """The same model with static shapes: dynamic ones cost XNNPACK some operators, which would not be a fair race."""
    functional = functional_of(model)  # of a Sequential model: it has an `input` of its own only once it was called
    inputs = [keras.Input(batch_shape=(1, *t.shape[1:]), dtype=t.dtype, name=t.name) for t in functional.inputs]
    return build_model(inputs, model(keras.tree.pack_sequence_as(functional.input, inputs)))
