"""to_keras3: a trained tf_keras model with our quantizers becomes the Keras 3 model of this library."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_lowbit.keras_graph.calls import fresh_name
from keras_lowbit.tfmot.kernels import quantized_kernels, quantized_layers
from keras_lowbit.tfmot.ranges import PlacedRange, range_layer, ranges_of
from keras_lowbit.tfmot.stock import activation_of, keras3_name, stock_layer, take_weights
from keras_lowbit.tfmot.wrappers import inner_layer, input_range, require_tf_keras

_KEEPS_GRID = ("Flatten", "Reshape", "Permute", "Dropout", "MaxPooling1D", "MaxPooling2D", "ZeroPadding2D", "ReLU")


def to_keras3(model: Any) -> keras.Model:
    """The Keras 3 quantized model of a tf_keras model that TFMOT's `quantize_apply` made with our QuantizeConfigs.

    Layers keep their names without TFMOT's prefix; kernels, biases, batch norms and the whole state of every quantizer
    (ratios, frozen partitions, ranges, random generators) are copied, so that training can go on too. Quantizers of ours
    give the same values bit for bit; TFMOT's own 8-bit ranges become `ActivationRange` with the same grid, whose values
    agree up to float rounding. Layers that are float here stay float there, but a relu behind a range gets that same
    range once more, which changes no value and lets the integer pipeline store the result. Where ranges are missing for
    an export, `quantize_model` and `calibrate` add them.

    Raises TypeError for a model that is not from tf_keras, is not Functional or Sequential, or holds a layer that Keras 3
    does not have; ValueError for kernels quantized by TFMOT's own quantizers.
    """
    require_tf_keras("to_keras3", model)
    if not getattr(model, "_is_graph_network", False):
        raise TypeError(
            f"to_keras3 needs a Functional or built Sequential tf_keras model, got the {type(model).__name__} {model.name!r}."
        )
    return _GraphWalk(model).build()


class _GraphWalk:
    """Values flow through the calls of a tf_keras model, each of which is emitted as calls of Keras 3 layers."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.names = {keras3_name(inner_layer(layer)) for layer in model.layers}
        self.values: dict[int, Any] = {}  # id of a tf_keras tensor -> its Keras 3 tensor
        self.grids: dict[int, PlacedRange] = {}  # id of a tf_keras tensor -> the range its values lie on
        self.made: dict[int, list[Any]] = {}  # id of a tf_keras layer -> its layers here, so that sharing is kept

    def build(self) -> keras.Model:
        """The Keras 3 model."""
        for tensor in self.model.inputs:
            name = keras3_name(tensor.node.layer)
            self.values[id(tensor)] = keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype.name, name=name)
        for node in _nodes(self.model):
            self._emit(node)
        inputs, outputs = (
            tf.nest.map_structure(lambda tensor: self.values[id(tensor)], structure)
            for structure in (self.model.input, self.model.output)
        )
        return keras.Model(inputs, outputs, name=self.model.name)

    def _emit(self, node: Any) -> None:
        args, kwargs = tf.nest.map_structure(
            lambda argument: self.values.get(id(argument), argument), (node.call_args, node.call_kwargs)
        )
        kwargs = {key: value for key, value in kwargs.items() if key != "training" and value is not None}
        ranges = self._ranges(node)
        first, *others = self._layers(node.layer, ranges, args)
        value = first(*args, **kwargs)
        for layer in others:
            value = layer(value)
        results = tf.nest.flatten(node.outputs)
        self.values |= {id(key): made for key, made in zip(results, keras.tree.flatten(value), strict=True)}
        self._note_grid(node, ranges.get("post"))

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

    def _layers(self, layer: Any, ranges: dict[str, PlacedRange], args: tuple[Any, ...]) -> list[Any]:
        """The Keras 3 layers that stand for a layer, built, with its weights; made at its first call."""
        if id(layer) not in self.made:
            made = _operation(layer, ranges, args)
            if "post" in ranges:
                made.append(range_layer(ranges["post"], self._range_name(layer)))
            self.made[id(layer)] = made or [keras.layers.Identity(name=layer.name)]
        return self.made[id(layer)]

    def _range_name(self, layer: Any) -> str:
        """The name of the range behind a layer; that of an input is the layer and keeps its name."""
        name = layer.name if input_range(layer) else fresh_name(f"{inner_layer(layer).name}_range", self.names)
        self.names.add(name)
        return name


def _nodes(model: Any) -> Iterator[Any]:
    """tf_keras' nodes of a model in running order, inputs left out."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _operation(layer: Any, ranges: dict[str, PlacedRange], args: tuple[Any, ...]) -> list[Any]:
    """What a layer does without the range behind it, as Keras 3 layers; nothing for the range of an input."""
    inner, kernels = inner_layer(layer), quantized_kernels(layer)
    if input_range(layer) is not None:
        return []
    if kernels:
        return quantized_layers(inner, kernels, ranges.get("pre"), args[0].shape)
    made = stock_layer(inner)
    if not made.built:
        made(*args)
    take_weights(made, inner)
    return [made]


def _is_relu(inner: Any) -> bool:
    if type(inner).__name__ == "ReLU":
        return inner.max_value is None and not inner.negative_slope and not inner.threshold
    return type(inner).__name__ == "Activation" and activation_of(inner) == "relu"
