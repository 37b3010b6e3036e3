"""Whole networks of stock layers into the same network written with drop-in layers: their list of weights, their file.

Keras reads weight files by itself (`float_files`). Of a whole model its `set_weights` wants one value for each variable,
and the state of a quantizer has to be one of them: `get_weights` would lose it otherwise, and with it `EarlyStopping`. The
`custom_objects` of its `load_model` are asked for the name under which a class was registered, which stock classes do not have.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_lowbit.arguments import check_layer, nearest_first
from keras_lowbit.keras_graph.calls import find_layers
from keras_lowbit.keras_graph.depth import read_model
from keras_lowbit.layers.base import QuantizedLayer
from keras_lowbit.layers.host import stock_weights, with_own_state


def set_weights(model: Any, weights: Sequence[Any]) -> None:
    """``model.set_weights(weights)`` that takes the list of the stock network too: `stock.get_weights()`.

    model: a network with drop-in layers, or one such layer.   weights: arrays in the order of `get_weights`, of the same
    network written with stock layers (quantizers then stay at their start), or of `model` itself, all state included.
    Raises ValueError, and changes nothing, if number or shapes fit neither, or if a quantizer of `model` has state found
    from other weights.

    >>> stock = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> drop_in = keras.Sequential([keras.Input((8, 8, 3)), klb.layers.QuantConv2D(4, 3, kernel_quantizer="ternary")])
    >>> klb.layers.set_weights(drop_in, stock.get_weights())
    """
    check_layer(model)
    stock = stock_weights(model)
    if len(weights) not in (len(stock), len(model.weights)):
        raise ValueError(
            f"{model.name!r} got {len(weights)} weights. Its stock network has {len(stock)}, with the state of the "
            f"quantizers it has {len(model.weights)}: give get_weights() of the same network."
        )
    targets = stock if len(weights) == len(stock) else model.weights
    for variable, value in zip(targets, weights, strict=True):
        if tuple(variable.shape) != tuple(value.shape):
            raise ValueError(
                f"{model.name!r} got weights of another network: {variable.path!r} has shape {tuple(variable.shape)}, "
                f"the value in its place {tuple(value.shape)}. Both networks need the same layers in the same order."
            )
    model.set_weights(with_own_state(model, weights))


def load_model(filepath: Any, custom_objects: Mapping[str, Any], **options: Any) -> Any:
    """`keras.saving.load_model` whose `custom_objects` replace stock layers too, with their weights.

    filepath: whatever Keras loads, .h5 included.   custom_objects: class name -> class, for example
    ``{"Conv2D": layers.QuantConv2D}``, beside the custom classes of the model. A class is made from the configuration of the
    stock layer, in which there are no quantizers: a subclass gives them.   options: `compile` and `safe_mode`, as Keras'.
    The optimizer comes along, but not out of .h5, from which Keras does not get its state: compile that model.
    Returns the model.
    Raises ValueError if the model has none of the stock layers named, or drop-in layers already.

    >>> class TernaryConv2D(klb.layers.QuantConv2D):
    ...     def __init__(self, *args, **kwargs):
    ...         super().__init__(*args, **{"kernel_quantizer": "ternary"} | kwargs)
    >>> model.save("stock.keras")
    >>> drop_in = klb.layers.load_model("stock.keras", {"Conv2D": TernaryConv2D})
    """
    replaced = {name for name in custom_objects if hasattr(keras.layers, name)}
    others = {name: found for name, found in custom_objects.items() if name not in replaced}
    if str(filepath).endswith((".h5", ".hdf5")):
        options["compile"] = False
    stock = read_model(filepath, custom_objects=others, **options)
    if drop_in := find_layers(stock, QuantizedLayer):
        raise ValueError(
            f"{filepath!s} has drop-in layers already, the first is {drop_in[0].name!r}. Load it with "
            "keras.saving.load_model, then keras_lowbit.quantize_model quantizes its other layers."
        )
    with tempfile.TemporaryDirectory() as folder:
        keras.saving.save_model(stock, folder, zipped=False)
        path = Path(folder, "config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
        classes = _register(config, replaced)
        if not classes & replaced:
            raise ValueError(
                f"{filepath!s} has no layer of the stock classes {sorted(replaced)}, given as custom_objects"
                f"={sorted(custom_objects)}. It has: {nearest_first(' '.join(custom_objects), classes)}."
            )
        path.write_text(json.dumps(config), encoding="utf-8")
        return read_model(folder, custom_objects=dict(custom_objects), **options)


def _register(config: Any, replaced: set[str]) -> set[str]:
    """Give the stock classes named in a saved configuration the name that Keras looks up. Returns all stock layers' classes."""
    found: set[str] = set()
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        found |= _register(value, replaced)
    if isinstance(config, dict) and config.get("module") == "keras.layers" and not config.get("registered_name"):
        found.add(config["class_name"])
        if config["class_name"] in replaced:
            config["registered_name"] = config["class_name"]
    return found
