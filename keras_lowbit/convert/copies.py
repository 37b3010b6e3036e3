"""Copies of single operations, so that a rebuilt model shares nothing with the original."""

from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_lowbit.layers.graph import Call, calls_of, functional_of
from keras_lowbit.layers.host import find_layers, to_numpy


def rebuilt(sequence: Any, run: Callable[[Call, dict[int, Any]], list[Any]]) -> keras.Model:
    """A Functional model of the form of `sequence`: `run` gives the outputs of each call from the values by key."""
    graph = calls_of(sequence)
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history.operation.name)
        for tensor in functional_of(sequence).inputs
    ]
    values = dict(zip(graph.inputs, inputs, strict=True))
    for call in graph.calls:
        values |= dict(zip(call.outputs, run(call, values), strict=True))
    return model_like(sequence, inputs, [values[key] for key in graph.outputs])


def model_like(sequence: Any, inputs: list[Any], outputs: list[Any]) -> keras.Model:
    """The model between flat inputs and outputs, with the structure, name and own trainable flag of `sequence`."""
    model = functional_of(sequence)
    built = keras.Model(
        tree.pack_sequence_as(model.input, inputs),
        tree.pack_sequence_as(model.output, outputs),
        name=sequence.name,  # the Functional inside a Sequential has another
    )
    copy_own_trainable(sequence, built)
    return built


def bare_copy(operation: Any) -> Any:
    """A layer or op of the same configuration and name, not built; raises whatever `from_config` raises.

    A layer that keeps state outside its variables (vocabularies) cannot be copied: NotImplementedError.
    """
    if hasattr(operation, "load_assets"):
        raise NotImplementedError("it keeps state outside its weights")
    if isinstance(operation, keras.layers.Lambda):
        return _copy_of_lambda(operation)
    copy = type(operation).from_config(operation.get_config())
    if copy.name != operation.name:  # an automatic configuration may leave the name out
        copy.name = operation.name
    return copy


def copy_variables(old: Any, new: Any) -> None:
    """Give `new`, a built copy of the layer `old`, its variables (random state included) and trainable flags.

    Raises ValueError if the two do not have the same variables.
    """
    shapes = [[tuple(variable.shape) for variable in layer.variables] for layer in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"its variables have shapes {shapes[0]}, those of a copy {shapes[1]}")
    for source, target in zip(old.variables, new.variables, strict=True):
        target.assign(to_numpy(source))
    if hasattr(new, "finalize_state"):  # Normalization derives its constants from its weights
        new.finalize_state()
    sides = (find_layers(layer, keras.layers.Layer) for layer in (old, new))
    for source, target in zip(*sides, strict=True):
        if target.trainable != source.trainable:
            target.trainable = source.trainable


def copy_own_trainable(old: keras.Model, new: keras.Model) -> None:
    """Give the model `new` the trainable flag of `old` and leave those of its layers alone."""
    if new.trainable != old.trainable:
        flags = [(layer, layer.trainable) for layer in find_layers(new, keras.layers.Layer) if layer is not new]
        new.trainable = old.trainable
        for layer, flag in flags:
            layer.trainable = flag


def _copy_of_lambda(layer: Any) -> Any:
    # From its configuration it would get a copy of its code without the globals, and only outside of safe mode.
    config = layer.get_config()
    config |= {"function": layer.function, "arguments": layer.arguments, "mask": layer.mask}
    return keras.layers.Lambda(**config | {"output_shape": layer._output_shape})
