"""QuantizeScheme: a recipe of this library as the scheme of TFMOT's `quantize_apply`, for whole models."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from keras_lowbit import recipes
from keras_lowbit.convert.analysis.operations import KINDS
from keras_lowbit.keras_graph.depth import recursion_for
from keras_lowbit.tfmot.adapter import LowbitQuantizer
from keras_lowbit.tfmot.configs import (
    KernelQuantizeConfig,
    LowbitQuantizeConfig,
    NoOpQuantizeConfig,
    OutputQuantizeConfig,
    kernels_of,
)
from keras_lowbit.tfmot.operators import Operator, with_operators_as_layers
from keras_lowbit.tfmot.scope import scope, tfmot_class
from keras_lowbit.tfmot.wrappers import require_tf_keras

_QuantizeLayer = tfmot_class("QuantizeLayer")
_QUANTIZED = ("QuantizeLayer", "QuantizeWrapper", "QuantizeWrapperV2")
_MADE_BY_LAYOUT: tuple[Callable[[], Any], ...] = (
    lambda: _QuantizeLayer(None),
    lambda: tf_keras.layers.Conv2D(1, 1),
    lambda: tf_keras.layers.DepthwiseConv2D(1),
)
_Default = tfmot.quantization.keras.default_8bit
# Layers that make new values and that TFMOT's default scheme refuses.
_COMPUTE = ("BatchNormalization", "Rescaling", "Normalization", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
# Of the functions of TensorFlow that make new values. Others move values, or run in float.
_COMPUTE_SYMBOLS = (
    *(f"__operators__.{name}" for name in ("add", "truediv")),
    *(
        f"math.{name}"
        for name in "add subtract multiply truediv divide square reduce_mean add_n squared_difference".split()
    ),
    *(f"nn.{name}" for name in "bias_add silu gelu leaky_relu elu".split()),
    *"concat clip_by_value image.resize".split(),
)


class QuantizeScheme(tfmot.quantization.keras.QuantizeScheme):
    """A recipe as a scheme: ``quantize_apply(annotated, scheme=QuantizeScheme("sq-twn"))``.

    Kernels get the quantizers of the recipe's plan, ranges its activation quantizer. Where ranges stand, and that
    conv-bn-relu is one operation, is decided by TFMOT's own default 8-bit layout; what that layout does not know
    (a batch norm by itself, Multiply, ...) is quantized at its result, and any other layer stays float instead of
    stopping the conversion. A QuantizeConfig given with an annotation wins, also in front of a relu, where TFMOT's
    layout would replace it by nothing.

    recipe: name, dict or `keras_lowbit.recipes.Recipe`.

    >>> annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    >>> with klt.scope():
    ...     quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme=klt.QuantizeScheme("sq-twn"))
    """

    def __init__(self, recipe: Any = "int8") -> None:
        self.recipe = recipes.get(recipe)

    def get_layout_transformer(self) -> Any:
        """TFMOT's default layout, with the quantizers of the recipe in the places of TFMOT's."""
        return _Layout(self.recipe)

    def get_quantize_registry(self) -> Any:
        """What stands around layers that were not annotated."""
        return _Registry(self.recipe)


def quantize_model(model: Any, recipe: Any = "int8", *, skip: Iterable[str] = ()) -> Any:
    """A quantized copy of a tf_keras model: annotated whole, `quantize_apply` with the scheme of `recipe`.

    model: Functional or built Sequential tf_keras model without nested models (TFMOT takes no others). Its operators and
    Lambda layers (``x / 255.``) become layers, each with the range of its result, under the names they have there.
    recipe: name, dict or `Recipe`.   skip: regular expressions; a layer whose whole name matches one is left as it is.
    Returns a tf_keras model, not compiled.
    Raises TypeError for a model of another kind, ValueError for a pattern that matches no layer and for a model that is
    quantized already.

    >>> quantized = klt.quantize_model(model, "sq-twn", skip=["head"])
    """
    require_tf_keras("keras_lowbit.tfmot.quantize_model", model)
    _require_not_quantized(model.name, model._flatten_layers())
    patterns = [skip] if isinstance(skip, str) else list(skip)
    names = [layer.name for layer in model.layers]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"The pattern {pattern!r} matches no layer; the model has for example {names[:5]}.")

    model, origins = with_operators_as_layers(model)

    def annotate(layer: Any) -> Any:
        skipped = any(re.fullmatch(pattern, origins.get(layer.name, layer.name)) for pattern in patterns)
        config = NoOpQuantizeConfig() if skipped else None
        return tfmot.quantization.keras.quantize_annotate_layer(layer, config)

    with scope(), recursion_for(len(model.layers)):
        annotated = tf_keras.models.clone_model(model, clone_function=annotate)
        annotated.set_weights(model.get_weights())
        quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme=QuantizeScheme(recipe))
    if not model.trainable:  # TFMOT's copies keep it of layers alone
        quantized.trainable = False
    return quantized


class _Layout(tfmot.quantization.keras.QuantizeLayoutTransform):
    """TFMOT's default 8-bit layout; afterwards every QuantizeConfig it placed is exchanged for one of ours."""

    def __init__(self, recipe: recipes.Recipe) -> None:
        self.recipe = recipe

    def apply(self, model: Any, layer_quantize_map: dict[str, dict[str, Any]]) -> tuple[Any, dict[str, dict[str, Any]]]:
        """The transformed model and what each of its layers gets."""
        _require_not_quantized(model.name, (layer for layer in model.layers if layer.name in layer_quantize_map))
        _use_up_names(model)
        given = {name: entry.get("quantize_config") for name, entry in layer_quantize_map.items()}
        layout = _Default.Default8BitQuantizeLayoutTransform()
        model, layer_quantize_map = layout.apply(model, layer_quantize_map)
        choice = _Choice(self.recipe, model)
        for layer in model.layers:
            if type(layer).__name__ == "QuantizeLayer":
                self._quantize_input(layer)
            entry = layer_quantize_map.get(layer.name)
            if entry is None:
                continue
            if given.get(layer.name) is not None:
                entry["quantize_config"] = given[layer.name]
            elif not isinstance(layer, tf_keras.layers.InputLayer) and type(layer).__name__ != "QuantizeLayer":
                entry["quantize_config"] = choice.config(layer, entry.get("quantize_config"))
        return model, layer_quantize_map

    def _quantize_input(self, layer: Any) -> None:
        """Exchange the quantizer of an input. One that several layers read TFMOT uses as it is built: it keeps its own."""
        if self.recipe.activations is None:
            layer.quantizer = None
        elif len(layer._outbound_nodes) < 2:
            layer.quantizer = LowbitQuantizer(self.recipe.activations)


class _Registry(tfmot.quantization.keras.QuantizeRegistry):
    """Answers for layers in front of annotated ones: their results get a range, as in TFMOT's default."""

    def __init__(self, recipe: recipes.Recipe) -> None:
        self.recipe = recipe

    def supports(self, layer: Any) -> bool:
        """The layers that get something; any other, and a nested model, stays as it is."""
        if isinstance(layer, tf_keras.Model):
            return False
        return not isinstance(self.get_quantize_config(layer), NoOpQuantizeConfig)

    def get_quantize_config(self, layer: Any) -> Any:
        """The config of a layer by itself."""
        return _Choice(self.recipe, None).config(layer, None)


class _Choice:
    """Which of our configs a layer gets, given the one TFMOT's layout placed there (None: nothing special)."""

    def __init__(self, recipe: recipes.Recipe, model: Any) -> None:
        self.recipe = recipe
        self.default = _Default.Default8BitQuantizeRegistry()
        layers = [] if model is None else [layer.name for layer in model.layers if _kind(layer) is not None]
        self.ends = {"first": layers[:1], "last": layers[-1:]}

    def config(self, layer: Any, placed: Any) -> LowbitQuantizeConfig:
        """The config; kernels by the recipe's plan, results where TFMOT quantizes them."""
        kind = _kind(layer)
        if kind is None:
            return self._output() if self._makes_values(layer, placed) else NoOpQuantizeConfig()
        positions = tuple(position for position, names in self.ends.items() if layer.name in names)
        kernel = self.recipe.kernel_quantizer(layer.name, layer.name, kind, positions)
        range_follows = type(placed).__name__ == "NoOpQuantizeConfig"
        if kernel is None:
            return NoOpQuantizeConfig() if range_follows else self._output()
        return KernelQuantizeConfig(kernel, None if range_follows else self.recipe.activations)

    def _output(self) -> LowbitQuantizeConfig:
        return (
            NoOpQuantizeConfig() if self.recipe.activations is None else OutputQuantizeConfig(self.recipe.activations)
        )

    def _makes_values(self, layer: Any, placed: Any) -> bool:
        name = type(layer).__name__
        if placed is not None:
            return bool(getattr(placed, "quantize_output", False))
        if name in _COMPUTE or (isinstance(layer, Operator) and layer.symbol in _COMPUTE_SYMBOLS):
            return not _relu_follows(layer)
        if name == "Activation":
            return _names(layer.activation) not in ("linear", "softmax", "sigmoid", "tanh")
        if not self.default.supports(layer):
            return False
        return bool(self.default.get_quantize_config(layer).get_output_quantizers(layer))


def _require_not_quantized(name: str, layers: Iterable[Any]) -> None:
    found = next((layer for layer in layers if type(layer).__name__ in _QUANTIZED), None)
    if found is not None:
        raise ValueError(
            f"The model {name!r} is quantized already: its layer {found.name!r} is a {type(found).__name__}. "
            "keras_lowbit.tfmot.to_keras3(model) takes it as it is, with the ranges it learnt; to quantize it in another way, "
            "start from the float model."
        )


def _use_up_names(model: Any) -> None:
    """Let tf_keras' counters run past the names in the model.

    TFMOT's layout makes layers with names from there. In a model from a file such a name may be taken, and the layout then
    reads a layer as its own input, without end.
    """
    for make in _MADE_BY_LAYOUT:
        made = make().name
        base = re.sub(r"_\d+$", "", made)
        taken = max((_number(layer.name, base) for layer in model.layers), default=-1)
        while _number(made, base) < taken:
            made = make().name


def _number(name: str, base: str) -> int:
    """7 of "conv2d_7", 0 of "conv2d", -1 of another name."""
    found = re.fullmatch(rf"{base}(?:_(\d+))?", name)
    return -1 if found is None else int(found[1] or 0)


def _kind(layer: Any) -> str | None:
    """The word of recipe rules for a layer with a kernel ("conv2d"), None for any other."""
    if not kernels_of(layer):
        return None
    return next(KINDS[cls.__name__] for cls in type(layer).__mro__ if cls.__name__ in KINDS)


def _relu_follows(layer: Any) -> bool:
    """Whether the only reader of a layer's result is a relu, which the integer operation takes in."""
    nodes = layer._outbound_nodes
    if len(nodes) != 1:
        return False
    reader = nodes[0].layer
    return type(reader).__name__ == "ReLU" or (
        type(reader).__name__ == "Activation" and _names(reader.activation) in ("relu", "relu6")
    )


def _names(activation: Any) -> str:
    return getattr(activation, "__name__", type(activation).__name__)
