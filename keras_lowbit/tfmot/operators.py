"""Operators of a tf_keras model (``x / 255.``, ``tf.concat``, Lambda layers) as layers that TFMOT can quantize around."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from keras_lowbit.keras_graph.calls import fresh_name
from keras_lowbit.keras_graph.depth import recursion_for
from keras_lowbit.layers.host import PACKAGE
from keras_lowbit.tfmot.lambdas import traced

_KIND = "keras_lowbit"  # the key of what stands for a value that JSON does not have


@tf_keras.utils.register_keras_serializable(PACKAGE)
class Operator(tf_keras.layers.Layer):
    """A TensorFlow function of tensors, with its other arguments in the configuration.

    tf_keras keeps them in the calls, where TFMOT's layout, which rewrites a model layer by layer, loses them.
    symbol: public name of the function without "tf.", "math.truediv".   arguments: a tuple and a dict, written by `encode`.
    Input: the tensor among the arguments, or a list of them.
    """

    def __init__(self, symbol: str, arguments: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.symbol, self.arguments = symbol, arguments

    def filled(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the function with the tensors of one call."""
        return decode(self.arguments, list(inputs) if isinstance(inputs, (list, tuple)) else [inputs])

    def call(self, inputs: Any) -> Any:
        """The function's result."""
        args, kwargs = self.filled(inputs)
        return tensorflow_function(self.symbol)(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Symbol and arguments."""
        return super().get_config() | {"symbol": self.symbol, "arguments": self.arguments}


def tensorflow_function(symbol: str) -> Callable[..., Any]:
    """The function of a public name, "math.truediv" or "keras.backend.batch_flatten"."""
    root, names = (tf_keras, symbol.split(".")[1:]) if symbol.startswith("keras.") else (tf, symbol.split("."))
    return functools.reduce(getattr, names, root)


def encode(value: Any, tensors: list[Any]) -> Any:
    """A value of a call's arguments as plain JSON values; symbolic tensors are added to `tensors` and get their number."""
    if hasattr(value, "node") and hasattr(value, "type_spec"):  # is_keras_tensor raises for anything else
        tensors.append(value)
        return {_KIND: "tensor", "index": len(tensors) - 1}
    if isinstance(value, (tf.Tensor, np.ndarray, np.generic)):
        array = np.asarray(value)
        return {_KIND: "array", "values": array.tolist(), "dtype": array.dtype.name}
    if isinstance(value, tf.DType):
        return {_KIND: "dtype", "name": value.name}
    if value is Ellipsis:
        return {_KIND: "ellipsis"}
    if isinstance(value, slice) or (isinstance(value, dict) and value.keys() == {"start", "stop", "step"}):
        ends = value if isinstance(value, dict) else {key: getattr(value, key) for key in ("start", "stop", "step")}
        return {_KIND: "slice", "ends": [encode(ends[key], tensors) for key in ("start", "stop", "step")]}
    if isinstance(value, (tuple, list)):
        return {_KIND: type(value).__name__, "items": [encode(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {_KIND: "dict", "items": {key: encode(item, tensors) for key, item in value.items()}}
    return value


def decode(value: Any, tensors: list[Any]) -> Any:
    """What `encode` wrote, with `tensors` in the places of the symbolic ones."""
    if not isinstance(value, dict):
        return value
    readers: dict[str, Callable[[], Any]] = {
        "tensor": lambda: tensors[value["index"]],
        "array": lambda: np.asarray(value["values"], value["dtype"]),
        "dtype": lambda: tf.as_dtype(value["name"]),
        "ellipsis": lambda: Ellipsis,
        "slice": lambda: slice(*(decode(end, tensors) for end in value["ends"])),
        "tuple": lambda: tuple(decode(item, tensors) for item in value["items"]),
        "list": lambda: [decode(item, tensors) for item in value["items"]],
        "dict": lambda: {key: decode(item, tensors) for key, item in value["items"].items()},
    }
    return readers[value[_KIND]]()


def with_operators_as_layers(model: Any) -> tuple[Any, dict[str, str]]:
    """A copy of a tf_keras model in which every operator is an `Operator` layer, and every Lambda layer its operators.

    Where a stock layer does the same it is that one, for TFMOT's layout to fuse. Also the names of those layers -> the layer
    of `model` that they come from. A model without operators as it is.
    """
    if not any(_is_operator(layer) for layer in model.layers):
        return model, {}
    rewriting = _Rewriting({layer.name for layer in model.layers if not _is_operator(layer)})
    inputs = tf.nest.map_structure(rewriting.input, model.input)
    rewriting.run(model)
    outputs = tf.nest.map_structure(rewriting.value, model.output)
    with recursion_for(len(rewriting.values)):
        return tf_keras.Model(inputs, outputs, name=model.name), rewriting.origins


def nodes_of(model: Any) -> Iterator[Any]:
    """tf_keras' nodes of a model in running order, inputs left out."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


_RELUS = {"nn.relu": None, "nn.relu6": 6.0}
_MERGES = {
    **dict.fromkeys(("__operators__.add", "math.add"), tf_keras.layers.Add),
    "math.subtract": tf_keras.layers.Subtract,
    "math.multiply": tf_keras.layers.Multiply,
    "math.maximum": tf_keras.layers.Maximum,
    "math.minimum": tf_keras.layers.Minimum,
}


def _stock_layer(symbol: str, args: Any, tensors: list[Any], name: str) -> Any:
    """The tf_keras layer that does what a function does with these arguments, None if there is none."""
    if symbol in _RELUS:
        return tf_keras.layers.ReLU(_RELUS[symbol], name=name)
    if symbol in _MERGES and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
        return _MERGES[symbol](name=name)
    if symbol == "concat" and len(args) > 1 and len(args[0]) == len(tensors) > 1:
        return tf_keras.layers.Concatenate(int(args[1]), name=name)
    return None


def _is_operator(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.Lambda) or (hasattr(layer, "symbol") and not isinstance(layer, Operator))


class _Rewriting:
    """Values flow through the calls of a model, each of which is made anew."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.values: dict[int, Any] = {}  # by the id of the model's own tensor
        self.copies: dict[int, Any] = {}  # by the id of the model's own layer
        self.origins: dict[str, str] = {}

    def input(self, tensor: Any) -> Any:
        """A new input in the place of one of the model's."""
        self.values[id(tensor)] = tf_keras.Input(type_spec=tensor.type_spec, name=tensor.node.layer.name)
        return self.values[id(tensor)]

    def value(self, argument: Any) -> Any:
        """What stands for an argument of a call."""
        return self.values.get(id(argument), argument)

    def run(self, model: Any, origin: str | None = None) -> None:
        """The calls of a model. origin: the Lambda layer that it was traced from."""
        for node in nodes_of(model):
            args, kwargs = tf.nest.map_structure(self.value, (node.call_args, node.call_kwargs))
            results = self._call(node, args, kwargs, origin or node.layer.name)
            keys = tf.nest.flatten(node.outputs)
            self.values |= dict(zip(map(id, keys), tf.nest.flatten(results), strict=True))

    def _call(self, node: Any, args: Any, kwargs: Any, origin: str) -> Any:
        layer = node.layer
        if isinstance(layer, tf_keras.layers.Lambda):
            inside = traced(layer, node)
            self.values |= dict(zip(map(id, inside.inputs), tf.nest.flatten(args), strict=True))
            self.run(inside, origin)
            return tf.nest.map_structure(self.value, inside.output)
        if _is_operator(layer):
            return self._operator(layer, args, kwargs, origin)
        return self._copied(layer, args, kwargs)

    def _operator(self, layer: Any, args: Any, kwargs: Any, origin: str) -> Any:
        tensors: list[Any] = []
        arguments = encode((tuple(args), {key: value for key, value in kwargs.items() if key != "name"}), tensors)
        name = fresh_name(origin, self.names)
        self.names.add(name)
        self.origins[name] = origin
        made = _stock_layer(layer.symbol, args, tensors, name) or Operator(layer.symbol, arguments, name=name)
        return made(tensors[0] if len(tensors) == 1 else tensors)

    def _copied(self, layer: Any, args: Any, kwargs: Any) -> Any:
        if id(layer) in self.copies:
            return self.copies[id(layer)](*args, **kwargs)
        copy = self.copies[id(layer)] = type(layer).from_config(layer.get_config())
        results = copy(*args, **kwargs)  # which builds it
        copy.set_weights(layer.get_weights())
        return results
