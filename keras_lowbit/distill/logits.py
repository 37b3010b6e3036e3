"""A classifier's logits: the model without the softmax or sigmoid it ends with."""

from typing import Any

import keras
from keras import tree

from keras_lowbit.keras_graph.depth import build_model, node_of

# Operations that move values or hand them on, through which a softmax or sigmoid before them is seen.
_HANDS_ON = ("Reshape", "Flatten", "Identity", "Dropout", "Squeeze", "Permute")
_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)


def logits_model(model: Any) -> Any:
    """A model that shares all layers with `model` and gives its outputs (a list of several), final softmaxes and
    sigmoids left out.

    Found as a layer (Softmax, Activation), as the activation of the last layer (Dense, Conv2D, their quantized forms,
    QuantActivation), as an operation of `keras.ops`; inside nested models, and before a Reshape, Flatten, Dropout or linear
    Activation. An output without them is given as it is, and so are the outputs of a subclassed model: its code
    cannot be read. The model itself does not change.
    Returns a Keras model.

    >>> from keras_lowbit.distill import logits_model
    >>> logits = logits_model(model)
    >>> bool(abs(logits(images[:1]).numpy().sum() - 1) > 1e-3)  # no probabilities
    True
    """
    if not _is_graph(model):
        return _Outputs(model)
    return build_model(_structure(model), [_before_probabilities(output) for output in model.outputs], name=model.name)


def _is_graph(model: Any) -> bool:
    """Whether running the model is running its graph."""
    defining = next(cls for cls in type(model).__mro__ if "call" in vars(cls))
    return defining.__module__.startswith("keras.") and bool(getattr(model, "outputs", None))


def _structure(model: Any) -> Any:
    return model._functional.input if isinstance(model, keras.Sequential) else model.input


def _before_probabilities(tensor: Any) -> Any:
    """The symbolic tensor with the final softmax or sigmoid left out; itself if there is none."""
    source, passed = tensor, []
    while _hands_on(node := node_of(source)):
        passed.append(node)
        source = node.input_tensors[0]
    found = _without_probabilities(source)
    if found is source:
        return tensor
    for node in reversed(passed):
        found = Run(node.operation)(found, *node.arguments.args[1:], **node.arguments.kwargs)
    return found


def _without_probabilities(tensor: Any) -> Any:
    """The same for a tensor that no operation hands on."""
    operation, _, tensor_index = tensor._keras_history
    node = node_of(tensor)
    if isinstance(operation, keras.layers.InputLayer):
        return tensor
    if isinstance(operation, keras.Model) and _is_graph(operation):
        inner = _before_probabilities(operation.outputs[tensor_index])
        if inner is operation.outputs[tensor_index]:
            return tensor
        return Run(build_model(_structure(operation), inner))(*node.arguments.args, **node.arguments.kwargs)
    if _makes_probabilities(operation, len(tensor.shape)):
        return node.input_tensors[0]
    if getattr(operation, "activation", None) in _PROBABILITIES:
        return Run(operation, linear=True)(*node.arguments.args, **node.arguments.kwargs)
    return tensor


def _makes_probabilities(operation: Any, rank: int) -> bool:
    kind = type(operation).__name__
    if kind == "Softmax":
        return operation.axis in (-1, rank - 1)
    if kind in ("Activation", "QuantActivation"):
        return operation.activation in _PROBABILITIES
    return kind == "Sigmoid"


def _hands_on(node: Any) -> bool:
    kind = type(node.operation).__name__
    is_linear = kind == "Activation" and node.operation.activation is keras.activations.linear
    return len(node.input_tensors) == 1 and (kind in _HANDS_ON or is_linear)


class Run(keras.layers.Layer):
    """Calls an operation of another model without adding a node to it; `linear`: as if its activation were none."""

    def __init__(self, operation: Any, linear: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"autocast": False})
        self.operation, self.linear = operation, linear
        self.built = True

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the operation gives."""
        if not self.linear:
            return self.operation(*args, **kwargs)
        # At inference a layer reads its activation only here, and nothing else runs while a call is traced.
        activation, self.operation.activation = self.operation.activation, keras.activations.linear
        try:
            return self.operation(*args, **kwargs)
        finally:
            self.operation.activation = activation


class _Outputs(keras.Model):
    """The outputs of a subclassed model as a list."""

    def __init__(self, model: Any) -> None:
        super().__init__(name=model.name)
        self.model = model

    def call(self, inputs: Any, training: bool = False) -> list[Any]:
        """The outputs, flattened."""
        return tree.flatten(self.model(inputs, training=training))
