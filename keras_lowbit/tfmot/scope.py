"""scope: everything that loading, cloning and quantizing TFMOT models of ours needs, in one context manager."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from keras_lowbit.tfmot.operators import Operator


def tfmot_class(name: str) -> Any:
    """A class that TFMOT exports by `quantize_scope` alone."""
    with tfmot.quantization.keras.quantize_scope():
        return tf_keras.utils.get_registered_object(name)


_TfmotQuantizeLayer: Any = tfmot_class("QuantizeLayer")
_TfmotOutputOnlyConfig: Any = tfmot_class("OutputOnlyConfig")
_TfmotQuantizeWrapper: Any = tfmot.quantization.keras.QuantizeWrapperV2


class QuantizeLayer(_TfmotQuantizeLayer):
    """TFMOT's QuantizeLayer, the range of a model's input, built once however often it is asked to.

    Loading a `.keras` file builds a layer before it is called, and TFMOT's layer then made its variables twice: "expected
    5 variables, but received 3".
    """

    built: bool

    def build(self, input_shape: Any) -> None:
        """Create the variables, the first time."""
        if not self.built:
            super().build(input_shape)
            self.built = True


class QuantizeWrapperV2(_TfmotQuantizeWrapper):
    """TFMOT's QuantizeWrapperV2, which lists the same variables whether its layer was built before it or not.

    Loading a `.keras` file builds the wrapper first, and TFMOT's then left the bias out of its own list: "expected 8
    variables, but received 10".
    """

    def build(self, input_shape: Any) -> None:
        """Build the layer inside, then the wrapper."""
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                self.layer.build(input_shape)
            self.layer.built = True
        super().build(input_shape)


class OutputOnlyConfig(_TfmotOutputOnlyConfig):
    """TFMOT's OutputOnlyConfig, whose inner configuration is read back as an object.

    TFMOT places it in front of annotated layers (here around Flatten, say), writes the inner configuration as a dict and
    hands that dict to the constructor on loading.
    """

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "OutputOnlyConfig":
        """The config with its inner one as an object."""
        inner = config["quantize_config"]
        return cls(tf_keras.utils.legacy.deserialize_keras_object(inner) if isinstance(inner, dict) else inner)


@contextlib.contextmanager
def scope(*objects: dict[str, Any]) -> Iterator[None]:
    """A context manager for `quantize_apply`, `load_model` and `clone_model` of models with our QuantizeConfigs.

    TFMOT's `quantize_scope`, plus three of its classes in a form that `.keras` and `.h5` files reload with, and `Operator`,
    which TFMOT's wrapper writes without its package. Our other classes are registered and need no scope.
    objects: dicts of name -> class for custom layers, as `quantize_scope` takes them.
    Returns a context manager.

    >>> quantized.save("quantized.keras")
    >>> with klt.scope():
    ...     again = tf_keras.models.load_model("quantized.keras")
    """
    ours = {cls.__name__: cls for cls in (QuantizeLayer, QuantizeWrapperV2, OutputOnlyConfig, Operator)}
    # The innermost scope wins, and quantize_scope lets its own classes win over those it is given.
    with tfmot.quantization.keras.quantize_scope(), tf_keras.utils.custom_object_scope(ours, *objects):
        yield
