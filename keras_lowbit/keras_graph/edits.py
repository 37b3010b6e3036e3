"""Rewriting a model: a copy in which some layers have other weights, are replaced or are left out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_lowbit.keras_graph.calls import Call, find_layers, is_graph_model
from keras_lowbit.keras_graph.comparison import check_layers, check_outputs
from keras_lowbit.keras_graph.copies import Copies, clone_model, merged_config, warn_of_own_steps
from keras_lowbit.keras_graph.variables import refuse_keras_quantization, weight_value


@dataclasses.dataclass(frozen=True)
class LayerEdit:
    """What becomes of one layer.

    drop: its input passes on as it is.   config: changes of its configuration.   weights: values by the names of
    `weights_of`; those not named are copied.   replacement: a built layer that stands in its place, of any class.
    """

    drop: bool = False
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    replacement: Any = None


def weights_of(layer: Any) -> dict[str, np.ndarray]:
    """The weights of a stock layer by attribute name (kernel, bias, depthwise_kernel, pointwise_kernel), float64.

    DepthwiseConv2D's is "kernel" here, as everywhere in this library.
    """
    refuse_keras_quantization(layer)
    names = (
        ("depthwise_kernel", "pointwise_kernel", "bias") if hasattr(layer, "pointwise_kernel") else ("kernel", "bias")
    )
    found = [name for name in names if getattr(layer, name, None) is not None]
    return {name: weight_value(layer, name).astype(np.float64) for name in found}


def rewrite_model(model: keras.Model, edits: Mapping[int, LayerEdit], exact: bool = False) -> keras.Model:
    """A copy of a Functional or Sequential model with some layers changed; the original is not touched.

    edits: id of a layer of the model or of a model inside it -> what becomes of it. Weights are stored in the layer's own
    dtype. An operation without weights that cannot be copied is shared with the original, as by `quantize_model`.
    exact: the changes leave the function of the whole model as it is.
    Both models run once on a small random input. Raises ValueError for a layer with weights that cannot be copied, for one
    whose copy computes something else, and if the outputs of exact changes differ.
    """
    refuse_keras_quantization(model)
    warn_of_own_steps(model)
    copies = Copies()
    copy = _rewrite(model, edits, copies)
    copies.check_apart(model, copy)
    check_layers(model, lambda call, values: None if id(call.operation) in edits else _plain(copies, call, values))
    if exact:
        layers = find_layers(model, keras.layers.Layer)
        check_outputs(model, copy, [layer.name for layer in layers if id(layer) in edits])
    return copy


def _plain(copies: Copies, call: Call, values: dict[int, Any]) -> list[Any] | None:
    copy = copies.made(call.operation)
    return None if copy is None else call.run(values, copy)


def _rewrite(sequence: Any, edits: Mapping[int, LayerEdit], copies: Copies) -> keras.Model:
    def compute(call: Call, values: dict[int, Any]) -> list[Any]:
        operation, edit = call.operation, edits.get(id(call.operation))
        if edit is not None and edit.drop:
            return [values[call.inputs[0]]]
        if is_graph_model(operation):
            return call.run(values, copies.get(operation, lambda: _rewrite(operation, edits, copies)))
        if edit is not None:
            return call.run(values, copies.get(operation, lambda: edit.replacement or _edited_layer(operation, edit)))
        return copies.call(call, values)[0]

    return clone_model(sequence, compute)


def _edited_layer(layer: Any, edit: LayerEdit) -> Any:
    copy = type(layer).from_config({**merged_config(layer), **edit.config})
    if layer.variables:
        copy.build(layer.get_build_config()["input_shape"])
    for name, value in {**weights_of(layer), **edit.weights}.items():
        getattr(copy, name).assign(value)
    copy.trainable = layer.trainable
    return copy
