"""TensorFlow functions that tf_keras models call on tensors, in the words of Keras 3."""

from collections.abc import Callable
from typing import Any

from keras_lowbit.tfmot.functions import arithmetic, images, shapes
from keras_lowbit.tfmot.functions.graph_operations import graph_operation
from keras_lowbit.tfmot.functions.registry import FUNCTIONS

__all__ = ["arithmetic", "graph_operation", "images", "keras3_function", "shapes"]


def keras3_function(symbol: str | None) -> Callable[..., Any] | None:
    """What stands for a TensorFlow function, by its public name without "tf." ("math.truediv"); None if nothing does."""
    return FUNCTIONS.get((symbol or "").removeprefix("compat.v1."))
