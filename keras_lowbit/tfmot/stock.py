"""Stock tf_keras layers as their Keras 3 namesakes: configurations that say the same in both."""

import inspect
from typing import Any

import keras
import tf_keras

_COMMON = ("name", "dtype", "trainable", "activity_regularizer")
# tf_keras writes these although the layer ignores them or Keras 3 has no such argument; the value must be that one.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "groups": (1,),
    "renorm": (False,),
    "noise_shape": (None,),
    "implementation": (1,),
}
_NO_MEANING = ("batch_input_shape", "kernel_initializer", "kernel_regularizer", "kernel_constraint", "dynamic", "fused")
# Same name, another function: tf_keras' is clip(0.2 x + 0.5, 0, 1), Keras 3's relu6(x + 3) / 6.
_DIFFERENT = ("hard_sigmoid",)


def activation_of(layer: Any) -> str:
    """The name of a tf_keras layer's activation, under TFMOT's wrappers too; "linear" for none.

    Raises TypeError for a function without a name that Keras 3 knows with the same meaning.
    """
    function = layer.activation
    if type(function).__name__ == "QuantizeAwareActivation":
        function = function.activation
    if function is None or type(function).__name__ == "NoOpActivation":
        return "linear"
    name = getattr(function, "__name__", type(function).__name__)
    if name in _DIFFERENT or not hasattr(keras.activations, name):
        known = "another function there" if name in _DIFFERENT else "unknown there"
        raise TypeError(f"Layer {layer.name!r} ends with {name!r}, which cannot go to Keras 3: it is {known}.")
    return name


def keras3_name(layer: Any) -> str:
    """The name of a layer in Keras 3, which takes no slash."""
    return layer.name.replace("/", "_")


def stock_layer(layer: Any) -> Any:
    """A Keras 3 layer of the same class, name and configuration, not built; a TypeError if there is none."""
    kind = type(layer).__name__
    cls = getattr(keras.layers, kind, None)
    if cls is None or not type(layer).__module__.startswith("tf_keras.") or kind == "Lambda":
        raise TypeError(
            f"Layer {layer.name!r} is a {type(layer).__module__}.{kind}; to_keras3 takes stock tf_keras layers that Keras 3 "
            "has too, and no Lambda. Replace it, or rebuild that part of the model with Keras 3."
        )
    return cls.from_config(_config(layer, cls))


def _config(layer: Any, cls: type) -> dict[str, Any]:
    config = dict(layer.get_config()) | {"name": keras3_name(layer)}
    if hasattr(layer, "activation"):
        config["activation"] = activation_of(layer)
    if isinstance(layer, tf_keras.layers.BatchNormalization):
        config["axis"] = config["axis"] if isinstance(config["axis"], int) else int(next(iter(config["axis"])))
    if isinstance(layer, tf_keras.layers.LeakyReLU):
        config["negative_slope"] = float(config.pop("alpha"))
    known = {*inspect.signature(cls.__init__).parameters, *_COMMON}  # type: ignore[misc]
    for key in [key for key in config if key not in known]:
        value = config.pop(key)
        if key not in _NO_MEANING and value not in _NEUTRAL.get(key, ()):
            raise TypeError(
                f"Layer {layer.name!r} has {key}={value!r}, which Keras 3's {cls.__name__} does not know. "
                "Rebuild the layer without it."
            )
    return config


def take_weights(made: Any, layer: Any) -> None:
    """Give a built Keras 3 layer the weights and the trainable flag of its tf_keras namesake.

    Raises TypeError where the two have different weights.
    """
    weights = layer.get_weights()
    if [weight.shape for weight in weights] != [tuple(variable.shape) for variable in made.weights]:
        raise TypeError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has weights of shapes {[w.shape for w in weights]} in tf_keras and "
            f"{[tuple(v.shape) for v in made.weights]} in Keras 3. Rebuild that part of the model with Keras 3."
        )
    made.set_weights(weights)
    made.trainable = layer.trainable
