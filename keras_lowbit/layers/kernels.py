"""The kernels of quantized layers as integers."""

from typing import Any

import keras
import numpy as np

from keras_lowbit.keras_graph.calls import layers_of
from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.numerics.thresholds import reduced_axes
from keras_lowbit.quantizers import Quantized


def quantized_layers(model: Any) -> dict[str, QuantizedLayer]:
    """Path -> layer with a kernel quantizer, in running order, those inside custom layers included."""
    return {
        path: layer
        for path, layer in layers_of(model)
        if isinstance(layer, QuantizedLayer) and layer.kernel_host is not None
    }


def kernel_codes(layer: Any) -> Quantized:
    """Codes (int8) and scale (float32) of one layer's kernel as NumPy arrays.

    Codes beyond +-127 (5-bit powers of two reach 128) are divided, filter by filter, by the largest power of two they
    share, and the scale multiplied: the same reals, exactly. A filter that holds both ends of such a grid does not fit
    int8; the codes are then int16. The zero point is 0 for all but asymmetric weights (int8, per filter or tensor).
    """
    quantized = layer.kernel_host.encode(layer.kernel)
    codes = keras.ops.convert_to_numpy(quantized.codes)
    scale = np.asarray(keras.ops.convert_to_numpy(quantized.scale), np.float32)
    zero_point = np.asarray(keras.ops.convert_to_numpy(quantized.zero_point))
    if zero_point.any():
        return Quantized(codes.astype(np.int8), scale, zero_point.astype(np.int8))
    if np.abs(codes).max(initial=0) > 127:
        codes, scale = _shared_power_out(codes.astype(np.int16), scale, layer.filter_axes)
    return Quantized(codes.astype(np.int8 if np.abs(codes).max(initial=0) <= 127 else np.int16), scale)


def _shared_power_out(
    codes: np.ndarray, scale: np.ndarray, filter_axes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    bits = np.bitwise_or.reduce(np.abs(codes), axis=reduced_axes(codes.ndim, filter_axes), keepdims=True)
    power = np.where(bits > 0, bits & -bits, 1)  # the lowest bit any code of the filter has
    return codes // power, (scale * power).astype(np.float32)
