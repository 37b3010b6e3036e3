"""A quantized model around a piece that runs in float, and its file."""

import keras
import numpy as np

import keras_lowbit as klb


def deployed(body, path, size, skip=()):
    """A quantized, calibrated model around `body`, written to `path`; the model and four vectors of that size."""
    keras.utils.set_random_seed(1)
    entry = keras.Input((size,), name="x")
    model = keras.Model(entry, keras.layers.Dense(3, name="head")(body(entry)), name="m")
    vectors = np.random.default_rng(0).normal(size=(4, size)).astype(np.float32)
    quantized, _ = klb.quantize_model(model, "int8", skip=skip)
    klb.calibrate(quantized, vectors, verbose=0)
    klb.export_litert(quantized, path)
    return quantized, vectors
