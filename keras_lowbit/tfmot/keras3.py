"""to_keras3: a trained tf_keras model with our quantizers becomes the Keras 3 model of this library."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import QUANTIZED_CLASSES
from keras_lowbit.convert.separable import split_separable
from keras_lowbit.keras_graph.calls import fresh_name
from keras_lowbit.quantizers import ActivationRange
from keras_lowbit.quantizers.base import SEED
from keras_lowbit.tfmot.adapter import LowbitQuantizer
from keras_lowbit.tfmot.configs import KERNELS
from keras_lowbit.tfmot.stock import activation_of, keras3_name, stock_layer
from keras_lowbit.tfmot.wrappers import WrappedKernel, input_range, kernels_in, ranges_in, require_tf_keras

SEEN_BATCHES = 1000.0  # of a range that TFMOT's own quantizers learned: an average past its warm-up
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
    return _Translator(model).translate()


@dataclasses.dataclass(frozen=True)
class _Range:
    """A range to place: the quantizer and the values of its variables."""

    quantizer: Any
    state: dict[str, Any]

    @classmethod
    def of(cls, quantizer: Any, variables: dict[str, Any]) -> "_Range | None":
        """The range of a quantizer in a TFMOT model, None for one that does nothing."""
        if isinstance(quantizer, LowbitQuantizer):
            return cls(quantizer.quantizer, {name: variable.numpy() for name, variable in variables.items()})
        kind = type(quantizer).__name__
        if quantizer is None or kind == "NoQuantizer":
            return None
        per_axis, narrow = getattr(quantizer, "per_axis", False), getattr(quantizer, "narrow_range", False)
        if per_axis or narrow or getattr(quantizer, "symmetric", False) or "min_var" not in variables:
            raise ValueError(
                f"TFMOT's {kind} has a grid that ActivationRange cannot take over (per axis, symmetric or narrow). Use "
                "keras_lowbit.tfmot.OutputQuantizeConfig for that layer."
            )
        low, high = float(variables["min_var"].numpy()), float(variables["max_var"].numpy())
        if kind == "FixedQuantizer":
            return cls(ActivationRange(quantizer.num_bits, minimum=low, maximum=high), {})
        made = ActivationRange(quantizer.num_bits, hold=kind == "AllValuesQuantizer")
        return cls(made, {"minimum": low, "maximum": high, "count": SEEN_BATCHES, "frozen": 0.0})


class _Translator:
    """Emits the calls of a tf_keras model as calls of Keras 3 layers."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.names = {keras3_name(_inner(layer)) for layer in model.layers}
        self.values: dict[int, Any] = {}  # id of a tf_keras tensor -> its Keras 3 tensor
        self.grids: dict[int, _Range] = {}  # id of a tf_keras tensor -> the range its values lie on
        self.parts: dict[int, list[Any]] = {}  # id of a tf_keras layer -> its layers here, so that sharing is kept

    def translate(self) -> keras.Model:
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
        args, kwargs = tf.nest.map_structure(self._value, (node.call_args, node.call_kwargs))
        kwargs = {key: value for key, value in kwargs.items() if key != "training" and value is not None}
        layer, source = node.layer, node.keras_inputs[0]
        ranges = _ranges(layer)
        if "post" not in ranges and _is_relu(layer) and id(source) in self.grids:
            ranges["post"] = self.grids[id(source)]
        if id(layer) not in self.parts:
            self.parts[id(layer)] = self._layers(layer, ranges, args)
        first, *others = self.parts[id(layer)]
        value = first(*args, **kwargs)
        for part in others:
            value = part(value)
        results = tf.nest.flatten(node.outputs)
        self.values |= {id(key): made for key, made in zip(results, keras.tree.flatten(value), strict=True)}
        grid = ranges.get("post", self.grids.get(id(source)) if type(_inner(layer)).__name__ in _KEEPS_GRID else None)
        if grid is not None:
            self.grids[id(results[0])] = grid

    def _value(self, argument: Any) -> Any:
        return self.values.get(id(argument), argument)

    def _layers(self, layer: Any, ranges: dict[str, _Range], args: tuple[Any, ...]) -> list[Any]:
        """The Keras 3 layers that stand for one layer, built, with its weights."""
        inner, kernels = _inner(layer), _kernels(layer)
        if input_range(layer) is not None:
            made: list[Any] = []
        elif kernels:
            made = _quantized(inner, kernels, ranges.get("pre"), args[0])
        else:
            made = [stock_layer(inner)]
            made[0](*args) if not made[0].built else None
            _set_weights(inner, made[0])
        if "post" in ranges:
            made.append(self._range_layer(ranges["post"], layer.name if input_range(layer) else f"{inner.name}_range"))
        return made or [keras.layers.Identity(name=layer.name)]

    def _range_layer(self, placed: _Range, name: str) -> Any:
        name = fresh_name(
            name, self.names - {name} if name in (layer.name for layer in self.model.layers) else self.names
        )
        self.names.add(name)
        made = klb_layers.QuantActivation(None, placed.quantizer, name=name)
        made.build((None,))
        _set_state(made.output_host, placed.state)
        return made


def _nodes(model: Any) -> Iterable[Any]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _inner(layer: Any) -> Any:
    return layer.layer if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper) else layer


def _kernels(layer: Any) -> list[WrappedKernel]:
    if not isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        return []
    found = kernels_in(layer)
    if len(found) != len(layer._weight_vars):
        raise ValueError(
            f"Layer {layer.name!r} is quantized by TFMOT's own {type(layer.quantize_config).__name__}, which to_keras3 does "
            'not translate. Annotate it with KernelQuantizeConfig("uniform"), or quantize the model with '
            'keras_lowbit.tfmot.quantize_model(model, "int8").'
        )
    return found


def _ranges(layer: Any) -> dict[str, _Range]:
    """ "pre": before an activation that does not fuse; "post": behind everything else."""
    if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper):
        found = [("pre" if place == "pre_activation" else "post", *rest) for place, *rest in ranges_in(layer)]
    else:
        own = input_range(layer)
        found = [] if own is None else [("post", *own)]
    placed = {place: _Range.of(quantizer, variables) for place, quantizer, variables in found}
    return {place: value for place, value in placed.items() if value is not None}


def _is_relu(layer: Any) -> bool:
    inner = _inner(layer)
    if type(inner).__name__ == "ReLU":
        return inner.max_value is None and not inner.negative_slope and not inner.threshold
    return type(inner).__name__ == "Activation" and activation_of(inner) == "relu"


def _quantized(inner: Any, kernels: list[WrappedKernel], pre: _Range | None, source: Any) -> list[Any]:
    """The quantized layer of a wrapped one; two for a separable convolution."""
    stock = stock_layer(inner)
    stock.build(source.shape)
    for (name, _), kernel in zip(KERNELS[type(stock).__name__], kernels, strict=True):
        target = stock.kernel if name == "depthwise_kernel" and len(kernels) == 1 else getattr(stock, name)
        target.assign(kernel.kernel.numpy())
    if stock.bias is not None:
        stock.bias.assign(inner.bias.numpy())
    quantizers = [kernel.kernel_quantizer for kernel in kernels]
    changes = {"kernel_quantizer": quantizers[-1], "output_quantizer": None if pre is None else pre.quantizer}
    if len(kernels) == 2:
        made = list(split_separable(stock, f"{keras3_name(inner)}_depthwise", quantizers[0], changes))
    else:
        copy = QUANTIZED_CLASSES[type(stock).__name__].from_config(stock.get_config() | changes)
        copy.build(source.shape)
        copy.kernel.assign(stock.kernel)
        if stock.bias is not None:
            copy.bias.assign(stock.bias)
        made = [copy]
    for copy, kernel in zip(made, kernels, strict=True):
        _set_state(copy.kernel_host, {name: v.numpy() for name, v in kernel.kernel_host.variables.items()})
        copy.trainable = inner.trainable
    if pre is not None:
        _set_state(made[-1].output_host, pre.state)
    return made


def _set_state(host: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        (host.seed_generator.state if name == SEED else host.state[name]).assign(value)


def _set_weights(inner: Any, made: Any) -> None:
    weights = inner.get_weights()
    if [weight.shape for weight in weights] != [tuple(variable.shape) for variable in made.weights]:
        raise TypeError(
            f"Layer {inner.name!r} ({type(inner).__name__}) has weights of shapes {[w.shape for w in weights]} in tf_keras and "
            f"{[tuple(v.shape) for v in made.weights]} in Keras 3. Rebuild that part of the model with Keras 3."
        )
    made.set_weights(weights)
    made.trainable = inner.trainable
