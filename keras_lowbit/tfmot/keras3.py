"""to_keras3: a tf_keras model, quantized by us, by TFMOT or not at all, becomes the Keras 3 model of this library."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from keras_lowbit.keras_graph.calls import fresh_name
from keras_lowbit.keras_graph.copies import copy_own_trainable
from keras_lowbit.keras_graph.depth import build_model, nodes_behind
from keras_lowbit.tfmot.configs import KERNELS
from keras_lowbit.tfmot.functions import graph_operation, keras3_function
from keras_lowbit.tfmot.kernels import quantized_layers, weights_of
from keras_lowbit.tfmot.lambdas import can_be_traced, traced
from keras_lowbit.tfmot.operators import Operator, nodes_of
from keras_lowbit.tfmot.ranges import PlacedRange, range_layer, ranges_of
from keras_lowbit.tfmot.stock import activation_of, keras3_class, keras3_name, stock_with_weights
from keras_lowbit.tfmot.wrappers import inner_layer, input_range, require_tf_keras

_KEEPS_GRID = ("Flatten", "Reshape", "Permute", "Dropout", "MaxPooling1D", "MaxPooling2D", "ZeroPadding2D", "ReLU")
_RECURRENT = (
    tf_keras.layers.RNN,
    tf_keras.layers.Bidirectional,
)  # called with [inputs, *states] where Keras 3 takes two
Part = Callable[..., Any]


def to_keras3(model: Any) -> keras.Model:
    """The Keras 3 model of a tf_keras model: quantized with our QuantizeConfigs, by TFMOT's own `quantize_model`, or float.

    Layers keep their names without TFMOT's prefix; weights and the whole state of every quantizer (ratios, frozen
    partitions, ranges, random generators) are copied, so that training can go on too. Nested models, shared layers,
    Lambda layers and the operators and TensorFlow functions of a Functional model (``x / 255.``, ``tf.concat``) come along.

    Quantizers of ours give the same values bit for bit. TFMOT's own become those of the recipe "int8": kernels keep their
    float weights under `KeptScale`, a `Uniform` with the same bits for the same groups of weights, whose scales are those of
    TFMOT's inference (of before its last training step) until training changes the weights; ranges become `ActivationRange`
    on the same grid. Values agree up to float rounding. A range that TFMOT never trained has no range here either:
    `calibrate` finds one. Layers that are float stay float, but a relu behind a range gets that same range once more, which
    changes no value and lets the integer pipeline store the result. Where ranges are missing for an export,
    `quantize_model` and `calibrate` add them. A division by a constant becomes a product, which runs in int8. In Keras 3 `fit`
    overrules the ``training=False`` of a call; frozen batch norms are in inference there too.

    Each float layer is compared with its original on random values.
    model: of tf_keras, Functional or Sequential.
    Returns a Keras 3 model, not compiled.
    Raises TypeError for a model that is not from tf_keras,
    is not Functional or Sequential, or holds a layer or function that Keras 3 does not have or computes otherwise;
    ValueError for quantizers that are neither ours nor TFMOT's.

    >>> twin = klt.to_keras3(quantized)
    >>> bool(np.allclose(twin(images), quantized(images), atol=1e-5))
    True
    """
    require_tf_keras("to_keras3", model)
    return _GraphWalk(model, {}).build()


class _GraphWalk:
    """Values flow through the calls of a tf_keras model, each of which is emitted as calls of Keras 3 layers.

    made: what stands for the tf_keras layers met so far, by id: a layer that several calls or models share is one here too.
    """

    def __init__(self, model: Any, made: dict[int, list[Part]]) -> None:
        if not getattr(model, "_is_graph_network", False):
            raise TypeError(
                f"to_keras3 needs Functional or built Sequential tf_keras models, got the {type(model).__name__} "
                f"{model.name!r}. Build a Sequential one with its input shape; rewrite a subclassed one as a Functional one."
            )
        self.model, self.made = model, made
        self.names = {keras3_name(inner_layer(layer)) for layer in model.layers}
        self.values: dict[int, Any] = {}  # id of a tf_keras tensor -> its Keras 3 tensor
        self.operations: set[str] = set()  # names of the operations of functions
        self.grids: dict[int, PlacedRange] = {}  # id of a tf_keras tensor -> the range its values lie on

    def build(self) -> keras.Model:
        """The Keras 3 model."""
        for tensor in self.model.inputs:
            name = keras3_name(tensor.node.layer)
            self.values[id(tensor)] = keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype.name, name=name)
        for node in nodes_of(self.model):
            self._emit(node)
        inputs, outputs = (
            tf.nest.map_structure(lambda tensor: self.values[id(tensor)], structure)
            for structure in (self.model.input, self.model.output)
        )
        built = build_model(inputs, outputs, name=keras3_name(self.model))
        copy_own_trainable(self.model, built)
        return built

    def _emit(self, node: Any) -> None:
        args, kwargs = tf.nest.map_structure(self._value, (node.call_args, node.call_kwargs))
        if args and isinstance(args[0], list) and isinstance(inner_layer(node.layer), _RECURRENT):
            args, kwargs = (args[0][0], *args[1:]), kwargs | {"initial_state": args[0][1:]}
        ranges = self._ranges(node)
        value = None
        for part in self._parts(node, ranges, args, kwargs):
            value = part(*args, **_accepted(part, kwargs))
            args, kwargs = (value,), {"training": kwargs.get("training")}
        if _is_function(inner_layer(node.layer)):
            self._name_operations(node.layer, value)
        results = tf.nest.flatten(node.outputs)
        values = [value] if len(results) == 1 and not isinstance(value, list) else keras.tree.flatten(value)
        self.values |= {id(key): made for key, made in zip(results, values, strict=True)}
        self._note_grid(node, ranges.get("post"))

    def _value(self, argument: Any) -> Any:
        """What stands for an argument of a call: a Keras 3 tensor, or the constant as a plain value."""
        if id(argument) in self.values:
            return self.values[id(argument)]
        if not tf.is_tensor(argument):
            return argument
        return argument.numpy() if argument.shape.rank else argument.numpy().item()

    def _ranges(self, node: Any) -> dict[str, PlacedRange]:
        """The ranges of a call's layer. A relu without one repeats the range that its input lies on."""
        ranges, source = ranges_of(node.layer), id(node.keras_inputs[0])
        if "post" not in ranges and _is_relu(inner_layer(node.layer)) and source in self.grids:
            ranges["post"] = self.grids[source]
        return ranges

    def _note_grid(self, node: Any, own: PlacedRange | None) -> None:
        keeps = type(inner_layer(node.layer)).__name__ in _KEEPS_GRID
        grid = own or (self.grids.get(id(node.keras_inputs[0])) if keeps else None)
        if grid is not None:
            self.grids[id(tf.nest.flatten(node.outputs)[0])] = grid

    def _parts(self, node: Any, ranges: dict[str, PlacedRange], args: Any, kwargs: Any) -> list[Part]:
        """What stands for a layer, to be called one after the other; made at its first call."""
        layer = node.layer
        if id(layer) not in self.made:
            parts = self._operation(node, ranges, args, kwargs)
            if "post" in ranges:
                parts.append(range_layer(ranges["post"], self._range_name(layer), inner_layer(layer).trainable))
            self.made[id(layer)] = parts or [keras.layers.Identity(name=layer.name)]
        return self.made[id(layer)]

    def _operation(self, node: Any, ranges: dict[str, PlacedRange], args: Any, kwargs: Any) -> list[Part]:
        """What a layer does without the range behind it, with its weights; nothing for the range of an input."""
        inner, weights = inner_layer(node.layer), weights_of(node.layer)
        if input_range(inner) is not None:
            return []
        if isinstance(inner, tf_keras.Model):
            return [_GraphWalk(inner, self.made).build()]
        if isinstance(inner, tf_keras.layers.TimeDistributed) and isinstance(inner.layer, tf_keras.Model):
            return [keras.layers.TimeDistributed(_GraphWalk(inner.layer, self.made).build(), name=keras3_name(inner))]
        if _is_function(inner):
            return [_function(inner)]
        if isinstance(inner, tf_keras.layers.Lambda) or (keras3_class(inner) is None and can_be_traced(inner)):
            return [_GraphWalk(traced(inner, node), {}).build()]
        if weights or ("pre" in ranges and type(inner).__name__ in KERNELS):
            return quantized_layers(inner, weights, ranges.get("pre"), args[0].shape)
        tensors = {key: value for key, value in kwargs.items() if key not in ("training", "mask") and value is not None}
        before = []
        if "pre" in ranges:
            before = [range_layer(ranges["pre"], self._fresh(f"{keras3_name(inner)}_input"), inner.trainable)]
        return [*before, stock_with_weights(inner, args, tensors)]

    def _range_name(self, layer: Any) -> str:
        """The name of the range behind a layer; that of an input is the layer and keeps its name."""
        return layer.name if input_range(layer) else self._fresh(f"{keras3_name(inner_layer(layer))}_range")

    def _fresh(self, name: str) -> str:
        name = fresh_name(name, self.names)
        self.names.add(name)
        return name

    def _name_operations(self, layer: Any, value: Any) -> None:
        """Name the operations of a function after its layer: the names that Keras gives may be taken by other layers."""
        own = keras3_name(inner_layer(layer))
        operations = (node.operation for node in nodes_behind(value, self.values.values()))
        for operation in dict.fromkeys(operations):
            if not isinstance(operation, keras.layers.Layer):
                name = own if own not in self.operations else fresh_name(own, self.operations | self.names)
                operation.name = name
                self.operations.add(name)


def _is_function(layer: Any) -> bool:
    """Whether a layer is an operator: of ours, of tf_keras (both name a symbol) or of a file from before TensorFlow 2.4."""
    return hasattr(layer, "symbol") or type(layer).__name__ == "TensorFlowOpLayer"


def _function(layer: Any) -> Part:
    """What stands for the TensorFlow function of an operator layer."""
    if hasattr(layer, "symbol"):
        found, name = keras3_function(layer.symbol), layer.symbol
    else:
        found, name = graph_operation(layer.node_def, layer.constants), f"raw_ops.{layer.node_def.op}"
    if found is None:
        raise TypeError(
            f"Layer {layer.name!r} calls tf.{name}, which has no form in Keras 3 here. Rebuild that part of the model "
            "with layers, or with keras.ops in Keras 3."
        )
    is_ours = isinstance(layer, Operator)

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = layer.filled(*args) if is_ours else (args, kwargs)
        try:
            return found(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"Layer {layer.name!r} calls tf.{name} in a form that Keras 3 does not have here: {error}"
            ) from error

    return call


def _accepted(part: Part, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call that mean something to a layer: training and mask only where it takes them."""
    if not isinstance(part, keras.layers.Layer):
        return {key: value for key, value in kwargs.items() if key != "training"}
    known = inspect.signature(part.call).parameters
    free = {key for key in ("training", "mask") if key not in known}
    return {key: value for key, value in kwargs.items() if value is not None and key not in free}


def _is_relu(inner: Any) -> bool:
    if type(inner).__name__ == "ReLU":
        return inner.max_value is None and not inner.negative_slope and not inner.threshold
    return type(inner).__name__ == "Activation" and activation_of(inner) == "relu"
