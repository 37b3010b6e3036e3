"""Stock tf_keras layers as their Keras 3 namesakes: configurations that say the same in both."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tf_keras

from keras_lowbit.layers.activation import former_hard_sigmoid
from keras_lowbit.tfmot.comparison import same_function, same_layer

_COMMON = ("name", "dtype", "trainable", "activity_regularizer")
# tf_keras writes these although the layer ignores them or Keras 3 has no such argument; the value must be that one.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "groups": (1,),
    "renorm": (False,),
    "noise_shape": (None,),
    "implementation": (1, 2),
    "time_major": (False,),
    "sparse": (False,),
    "ragged": (False,),
    "virtual_batch_size": (None,),
    "unroll": (False,),
    "activity_regularizer": (None,),
}
# What Keras 3 has no argument for because it goes without saying, or because the layer is built and has its weights.
_NO_MEANING = (
    *"batch_input_shape dynamic fused input_length trainable kernel_regularizer kernel_constraint rng_type".split(),
    *"query_shape key_shape value_shape softmax_robust_masking zero_output_for_mask".split(),
)
_RENAMED_CLASSES = {"ThresholdedReLU": "ReLU", "SyncBatchNormalization": "BatchNormalization"}
_RENAMED_FUNCTIONS = {"softmax_v2": "softmax", "identity": "linear"}


def activation_of(layer: Any, attribute: str = "activation") -> Any:
    """A tf_keras layer's activation, under TFMOT's wrappers too, as Keras 3 takes it: a name ("linear" for none) or a function.

    Raises TypeError for a function without a namesake in Keras 3 that computes the same.
    """
    function = getattr(layer, attribute)
    if type(function).__name__ == "QuantizeAwareActivation":
        function = function.activation
    if function is None or type(function).__name__ == "NoOpActivation":
        return "linear"
    name = getattr(function, "__name__", type(function).__name__)
    name = _RENAMED_FUNCTIONS.get(name, name)
    for known in _namesakes(function, name):
        if same_function(function, keras.activations.get(known)):
            return known
    raise TypeError(
        f"Layer {layer.name!r} has the {attribute} {name!r}, which cannot go to Keras 3: there is no function of that name "
        "that computes the same. Use one of Keras' activations, or a layer of its own behind a linear one."
    )


def _namesakes(function: Any, name: str) -> list[Any]:
    if isinstance(function, tf_keras.layers.Layer):  # Conv2D(..., activation=ReLU(6.0))
        return ["relu", "relu6"] if name == "ReLU" else [stock_layer(function)]
    found: list[Any] = [name] if hasattr(keras.activations, name) else []
    return [*found, former_hard_sigmoid] if name == "hard_sigmoid" else found


def keras3_name(layer: Any) -> str:
    """The name of a layer in Keras 3, which takes no slash."""
    return layer.name.replace("/", "_")


def keras3_class(layer: Any) -> Any:
    """The class of Keras 3 for a stock tf_keras layer; None if there is none, or the layer is not stock."""
    kind = type(layer).__name__
    found = getattr(keras.layers, _RENAMED_CLASSES.get(kind, kind), None)
    return found if type(layer).__module__.startswith("tf_keras.") else None


def stock_layer(layer: Any) -> Any:
    """A Keras 3 layer of the same class, name and configuration, not built; a TypeError if there is none."""
    kind, cls = type(layer).__name__, keras3_class(layer)
    if cls is None:
        raise TypeError(
            f"Layer {layer.name!r} is a {type(layer).__module__}.{kind}; to_keras3 takes stock tf_keras layers that Keras 3 "
            "has too. Replace it, or rebuild that part of the model with Keras 3."
        )
    if hasattr(layer, "get_vocabulary"):
        raise TypeError(
            f"Layer {layer.name!r} is a {kind}, whose vocabulary to_keras3 does not copy. Keep it in front of the model."
        )
    config = _config(layer, cls)
    try:
        return cls(**config) if kind in _CHANGES else cls.from_config(config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TypeError(
            f"Layer {layer.name!r} ({kind}) cannot be made in Keras 3 ({error}). Rebuild that part of the model with Keras 3."
        ) from error


def stock_with_weights(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same, built by a call with symbolic arguments, with the weights; compared with the original on random values."""
    made = stock_layer(layer)
    if not made.built:
        made(*args, **kwargs)
    _take_weights(made, layer)
    if not same_layer(layer, made, args, kwargs):
        raise TypeError(
            f"Layer {layer.name!r} ({type(layer).__name__}) computes something else in Keras 3, with the same configuration "
            "and weights. Replace it, or rebuild that part of the model with Keras 3."
        )
    return made


def _config(layer: Any, cls: Any) -> dict[str, Any]:
    config = dict(layer.get_config()) | {"name": keras3_name(layer), "dtype": layer.dtype_policy.name}
    for key in [key for key in config if key.endswith("activation")]:
        config[key] = activation_of(layer, key)
    if change := _CHANGES.get(type(layer).__name__):
        config = change(layer, config)
    known = _parameters(cls)
    for key in [key for key in config if key not in known]:
        value = config.pop(key)
        if key not in _NO_MEANING and not key.endswith("_initializer") and value not in _NEUTRAL.get(key, ()):
            raise TypeError(
                f"Layer {layer.name!r} has {key}={value!r}, which Keras 3's {cls.__name__} does not know. "
                "Rebuild the layer without it."
            )
    return {key: value for key, value in config.items() if not key.endswith("_initializer")}


def _parameters(cls: Any) -> set[str]:
    """The arguments of a layer's constructor, those it hands on to `keras.layers.Layer` included."""
    found = inspect.signature(cls.__init__).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values())
    return {*found, *(_COMMON if takes_all else ())}


def _batch_norm(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    axis = layer.axis
    config |= {"axis": axis if isinstance(axis, int) else int(next(iter(axis)))}
    return config | ({"synchronized": True} if type(layer).__name__ == "SyncBatchNormalization" else {})


def _leaky_relu(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    return config | {"negative_slope": float(config.pop("alpha"))}


def _thresholded_relu(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    return config | {"threshold": float(config.pop("theta"))}


def _normalization(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What it learnt as constants: Keras 3 has other weights."""
    found = {"mean": np.ravel(layer.mean), "variance": np.ravel(layer.variance)}
    return config | {key: value if layer.axis else float(value[0]) for key, value in found.items()}


def _discretization(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    learnt = {"bin_boundaries": [float(end) for end in layer.bin_boundaries]}
    return {key: value for key, value in config.items() if key not in ("num_bins", "epsilon")} | learnt


def _bidirectional(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    forward, backward = stock_layer(layer.forward_layer), stock_layer(layer.backward_layer)
    forward.name = forward.name.removeprefix("forward_")  # which Keras puts in front again
    backward.name = backward.name.removeprefix("backward_")
    return config | {"layer": forward, "backward_layer": backward}


# What the configuration of a class says otherwise in Keras 3. These are made by their constructors: values may be objects.
_CHANGES: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "BatchNormalization": _batch_norm,
    "SyncBatchNormalization": _batch_norm,
    "LeakyReLU": _leaky_relu,
    "ThresholdedReLU": _thresholded_relu,
    "Normalization": _normalization,
    "Discretization": _discretization,
    "TimeDistributed": lambda layer, config: config | {"layer": stock_layer(layer.layer)},
    "Bidirectional": _bidirectional,
    "RNN": lambda layer, config: config | {"cell": stock_layer(layer.cell)},
    "StackedRNNCells": lambda layer, config: config | {"cells": [stock_layer(cell) for cell in layer.cells]},
}


def _take_weights(made: Any, layer: Any) -> None:
    """Give a built Keras 3 layer the weights and the trainable flag; a TypeError where the two have different weights."""
    weights = [] if type(layer).__name__ == "Normalization" else layer.get_weights()
    if [weight.shape for weight in weights] != [tuple(variable.shape) for variable in made.weights]:
        raise TypeError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has weights of shapes {[w.shape for w in weights]} in tf_keras and "
            f"{[tuple(v.shape) for v in made.weights]} in Keras 3. Rebuild that part of the model with Keras 3."
        )
    made.set_weights(weights)
    made.trainable = layer.trainable
