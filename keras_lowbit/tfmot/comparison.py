"""Whether a function or a layer of Keras 3 computes what its tf_keras namesake does: both are run on random values."""

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_TOLERANCE = 1e-4  # of the largest result: float rounding of two ways to compute the same, far below one of 255 steps
_BATCH, _SIZE = 2, 8  # where the shape leaves them open


def same_function(function: Any, namesake: Any) -> bool:
    """Whether two activation functions give the same values."""
    values = np.linspace(-8.0, 8.0, 256, dtype=np.float32).reshape(4, 64)  # by rows: softmax
    return _close(function(tf.constant(values)), namesake(keras.ops.convert_to_tensor(values)))


def same_layer(layer: Any, namesake: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether two layers give the same for random values in the places of the symbolic arguments, in inference.

    True where the original cannot be run on such values: text, or shapes that do not fit once they are chosen. Half
    precision is not compared: its rounding hides what this is about.
    """
    if (
        layer.compute_dtype != "float32"
        or type(getattr(layer, "activation", None)).__name__ == "QuantizeAwareActivation"
    ):
        return True
    rng = np.random.default_rng(0)
    args, kwargs = keras.tree.map_structure(lambda value: _random(value, rng), (args, kwargs))
    try:
        wanted = layer(*args, **kwargs, **_in_inference(layer))
    except Exception:  # whatever the layer does to shapes, it did it to the model's own
        return True
    return _close(wanted, namesake(*args, **kwargs, **_in_inference(namesake)))


def _in_inference(layer: Any) -> dict[str, bool]:
    """The argument that says so: augmentations are in training unless told."""
    return {"training": False} if "training" in inspect.signature(layer.call).parameters else {}


def _random(value: Any, rng: np.random.Generator) -> Any:
    if not isinstance(value, keras.KerasTensor):
        return value
    first, *others = value.shape or (1,)
    shape = (first or _BATCH, *(size or _SIZE for size in others))
    if "float" in str(value.dtype):
        return tf.constant(rng.normal(size=shape), tf.float32)
    return tf.cast(rng.integers(0, 2, shape), value.dtype)


def _close(wanted: Any, found: Any) -> bool:
    sides = [[np.asarray(value, np.float32) for value in tf.nest.flatten(side)] for side in (wanted, found)]
    return len(sides[0]) == len(sides[1]) and all(
        one.shape == other.shape
        and np.abs(one - other).max(initial=0.0) <= _TOLERANCE * max(1.0, np.abs(one).max(initial=0.0))
        for one, other in zip(*sides, strict=True)
    )
