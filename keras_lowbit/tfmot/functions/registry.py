"""TensorFlow functions that tf_keras models call on tensors (``x / 255.``, ``tf.concat(...)``), in the words of Keras 3.

Each function has the arguments of TensorFlow's, and stands for the symbols it is registered under. Where TensorFlow 1 and 2
differ they have the order of 1, on which tf_keras' calls arrive. Of a form that Keras 3 does not have it raises TypeError.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

Function = Callable[..., Any]
FUNCTIONS: dict[str, Function] = {}


def stands_for(*symbols: str) -> Callable[[Function], Function]:
    """Register a function under TensorFlow's public names, without "tf." and "compat.v1."."""

    def register(function: Function) -> Function:
        FUNCTIONS.update(dict.fromkeys(symbols, function))
        return function

    return register


def is_constant(value: Any) -> bool:
    """Whether a value is known while the model is built, sizes of tensors included."""
    return not isinstance(value, keras.KerasTensor)


def array_of(value: Any, like: Any) -> Any:
    """A list of numbers as an array of the type of a tensor, any other value as it is."""
    return np.asarray(value, like.dtype) if isinstance(value, (list, tuple)) else value


def axis_of(axis: Any) -> Any:
    """An axis, or several as a tuple: TensorFlow takes lists, arrays and tensors too."""
    if axis is None:
        return None
    found = np.asarray(axis)
    return int(found) if found.ndim == 0 else tuple(int(value) for value in found)


def require_default(given: dict[str, Any], symbol: str, **defaults: Any) -> None:
    """A TypeError that names arguments which Keras 3's function does not have, unless they change nothing."""
    changed = {
        key: value for key, value in given.items() if value not in (None, False, defaults.get(key)) and key != "name"
    }
    if changed:
        raise TypeError(f"tf.{symbol} is called with {changed}, for which Keras 3 has no form here.")
