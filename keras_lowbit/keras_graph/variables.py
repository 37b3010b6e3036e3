"""Values of Keras variables, on any backend."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from keras import ops

from keras_lowbit.arguments import check_layer


def to_numpy(variable: Any) -> np.ndarray:
    """The value of a Keras variable or tensor on any backend.

    `ops.convert_to_numpy` hands a variable itself to NumPy 2, which warns; a copy is a plain tensor.
    variable: of Keras, or a tensor of its backend.
    Returns a NumPy array of the same shape and type.

    >>> klb.layers.to_numpy(model.get_layer("kind").bias).shape
    (2,)
    """
    return ops.convert_to_numpy(ops.copy(variable))


def fingerprint(weights: Iterable[Any]) -> str:
    """The same for weights of the same bits."""
    found = hashlib.sha256()
    for weight in weights:
        found.update(to_numpy(weight).tobytes())
    return found.hexdigest()


def weight_value(layer: Any, name: str = "kernel") -> np.ndarray:
    """A weight of a stock layer; with LoRA enabled the kernel with its delta in it, as Keras saves it."""
    if name == "kernel" and getattr(layer, "lora_enabled", False):
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        return to_numpy(store["0"])
    return to_numpy(getattr(layer, name))


def batch_norm_affine(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm at inference as ``factor * x + offset`` for each channel, float64 [channels].

    ``factor = gamma / sqrt(variance + epsilon)``, ``offset = beta - mean * factor`` of the moving statistics.
    """
    mean, variance = (to_numpy(moment).astype(np.float64) for moment in (layer.moving_mean, layer.moving_variance))
    gamma = to_numpy(layer.gamma).astype(np.float64) if layer.scale else 1.0
    beta = to_numpy(layer.beta).astype(np.float64) if layer.center else 0.0
    factor = gamma / np.sqrt(variance + layer.epsilon)
    return factor, beta - mean * factor


def not_finite(model: Any) -> str | None:
    """The first weight with NaN or infinite values and how many, in words; None if there is none."""
    for variable in model.weights:
        value = to_numpy(variable)
        if "float" in value.dtype.name and not np.isfinite(value).all():  # NumPy's kind of bfloat16 is "V"
            bad = int(value.size - np.isfinite(value).sum())
            return f"Weight {variable.path!r} holds {bad} NaN or infinite values of {value.size}"
    return None


def refuse_keras_quantization(model: Any) -> None:
    """Raise a ValueError if Keras itself has quantized layers of `model`: their weights are codes, or packed, and no reals."""
    check_layer(model)
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None) is not None]
    if layers:
        first, count = layers[0], len(layers)
        raise ValueError(
            f"{model.name!r} was quantized by Keras: {count} layer{'s' * (count > 1)}, the first is {first.name!r} "
            f"({first.quantization_mode}). Their weights are codes of Keras' and not the real weights that quantizing needs. "
            "Give the float model, as it was before model.quantize() or with dtype='float32'; its weights cannot be "
            "had back from the codes."
        )
