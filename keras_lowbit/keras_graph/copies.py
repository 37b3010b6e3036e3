"""Copies of models and of single operations that share nothing with the original."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_lowbit.keras_graph.calls import Call, Compute, calls_of, find_layers, functional_of, is_graph_model
from keras_lowbit.keras_graph.depth import build_model, recursion_for
from keras_lowbit.keras_graph.structural import Memo, copied, duplicate, own_variables, rebind
from keras_lowbit.keras_graph.variables import to_numpy


def clone_model(sequence: Any, compute: Compute) -> keras.Model:
    """A copy of a Functional or Sequential model, call by call.

    compute: gives the outputs of a call of `sequence` in the copy, flattened, from the symbolic values by key.
    """
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history.operation.name)
        for tensor in functional_of(sequence).inputs
    ]
    return model_like(sequence, inputs, calls_of(sequence).run(inputs, compute))


def model_like(sequence: Any, inputs: list[Any], outputs: list[Any]) -> keras.Model:
    """The model between flat inputs and outputs, with the structure, name and own trainable flag of `sequence`."""
    model = functional_of(sequence)
    built = build_model(
        tree.pack_sequence_as(model.input, inputs),
        tree.pack_sequence_as(model.output, outputs),
        name=sequence.name,  # the Functional inside a Sequential has another
    )
    copy_own_trainable(sequence, built)
    return built


_STEPS = "train_step test_step predict_step compute_loss compute_metrics".split()


def warn_of_own_steps(model: Any) -> None:
    """A UserWarning if the model's class has training steps of its own, which a copy has not."""
    kinds = type(model).__mro__
    # Keras' own model has no training steps on a backend that cannot train (NumPy).
    defining = {name: next((cls for cls in kinds if name in vars(cls)), keras.Model) for name in _STEPS}
    if own := [name for name, cls in defining.items() if not cls.__module__.startswith("keras.")]:
        kind = type(model).__name__
        warnings.warn(
            f"{kind} {model.name!r} has {', '.join(own)} of its own. The copy is a plain keras.Model with Keras' steps; to "
            f"train it with yours, make a {kind} of it: {kind}(copy.input, copy.output).",
            stacklevel=3,
        )


def unbuilt_copy(operation: Any) -> Any:
    """A layer or op of the same configuration and name, not built; raises whatever `from_config` raises.

    A layer that keeps state outside its variables (vocabularies) cannot be copied: NotImplementedError.
    """
    if hasattr(operation, "load_assets"):
        raise NotImplementedError("it keeps state outside its weights")
    if isinstance(operation, keras.layers.Lambda):
        return _copy_of_lambda(operation)
    copy = type(operation).from_config(live_config(operation))
    if copy.name != operation.name:  # an automatic configuration may leave the name out
        copy.name = operation.name
    return copy


def function_name(function: Any) -> str:
    """The name of one of Keras' activation functions; "?" for any other, whatever it is called."""
    name = getattr(function, "__name__", "?")
    module = getattr(function, "__module__", None) or ""
    if module.startswith(("tensorflow.", "keras.")):
        name = _RENAMED.get(name, name)
    try:
        known = keras.activations.get(name)
    except ValueError:
        return "?"
    same = name in _SAME and module.startswith(("tensorflow.", "keras."))
    return name if function is known or same else "?"


# What Keras, `keras.ops` and TensorFlow define alike (gelu is not among them), and what TensorFlow calls otherwise.
_SAME = "relu relu6 sigmoid tanh softmax silu leaky_relu hard_sigmoid hard_silu".split()
_RENAMED = {"softmax_v2": "softmax", "swish": "silu"}
_OBJECTS = ("_initializer", "_regularizer", "_constraint")


def live_config(layer: Any) -> dict[str, Any]:
    """The configuration of a layer, in which functions and objects that are not Keras' own stand as they are.

    Keras writes them by name, and reads a name that it does not know with an error, one that it has too as its own.
    """
    stock = type(layer).__module__.startswith(("keras.", "keras_lowbit."))
    live = {key: value for key, value in vars(layer).items() if _is_foreign(key, value)} if stock else {}
    for key in live:
        setattr(layer, key, keras.activations.linear if key.endswith("activation") else None)
    try:
        config = layer.get_config()
    finally:
        for key, value in live.items():
            setattr(layer, key, value)
    return config | {key: _in_config(value) for key, value in live.items() if key in config}


def merged_config(layer: Any) -> dict[str, Any]:
    """`live_config` of a layer that is made anew with weights of its own: without LoRA, which those have in them."""
    return {key: value for key, value in live_config(layer).items() if not key.startswith("lora_")}


def unreadable(layer: Any) -> str | None:
    """Why the layer cannot be made anew from its configuration, None if it can."""
    try:
        live_config(layer)
    except Exception as error:  # what a user's object does in a configuration is its own affair
        return f"its configuration cannot be read ({first_line(error)})"
    return None


def _is_foreign(key: str, value: Any) -> bool:
    """Whether a layer's attribute is a function or object that its configuration would only name."""
    if key.startswith("_") or not callable(value):
        return False
    if key.endswith("activation"):
        name = function_name(value)
        return name == "?" or value is not keras.activations.get(name)
    return key.endswith(_OBJECTS) and not type(value).__module__.startswith("keras.")


def _in_config(value: Any) -> Any:
    """A function by its name where Keras has it, a layer that serves as one as a copy, anything else as it is."""
    if not isinstance(value, keras.layers.Layer):
        name = function_name(value)
        return value if name == "?" else name
    copy = unbuilt_copy(value)
    if value.built:
        copy.build_from_config(value.get_build_config() or {})
        copy_variables(value, copy)
    return copy


class Copies:
    """Copies of operations, each made once, so that what several calls share they share in the copy too.

    So are variables: what two layers share (tied weights) their copies share. A layer that cannot be copied is used as it
    is only if it holds nothing that could be trained.
    """

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}  # by the id of the original
        self._memo: Memo = {}  # id of a layer or variable -> its copy

    def get(self, operation: Any, make: Callable[[], Any]) -> Any:
        """The copy of an operation; `make` makes it the first time."""
        if id(operation) not in self._made:
            self._remember(operation, make())
        return self._made[id(operation)]

    def made(self, operation: Any) -> Any:
        """The copy of an operation, None if there is none yet."""
        return self._made.get(id(operation))

    def call(self, call: Call, values: dict[int, Any]) -> tuple[list[Any], Exception | None]:
        """The results of the plain copy of a call's operation.

        If it cannot be copied, those of the operation itself, and the first time the error; a ValueError if it has weights.
        """
        operation = call.operation
        if id(operation) in self._made:
            return call.run(values, self._made[id(operation)]), None
        copy, results, error = self._copy(call, values)
        self._remember(operation, copy)
        return results, error

    def _copy(self, call: Call, values: dict[int, Any]) -> tuple[Any, list[Any], Exception | None]:
        """A copy of the call's operation and its results; the operation itself and the reason if it cannot be copied.

        Stock layers are what their configuration and weights say; a layer of the user's, or around one, may be more.
        """
        operation = call.operation

        def duplicated() -> tuple[Any, list[Any]]:
            copy = duplicate(operation, self._memo, self._inside)
            return copy, call.run(values, copy)

        ways = [lambda: _configured(call, values)]
        if call.is_layer and not hasattr(operation, "load_assets"):
            ways.insert(0, duplicated)
            if _is_stock(operation) and not any(id(variable) in self._memo for variable in operation.variables):
                ways.insert(0, lambda: _configured(call, values, complete=True))
        errors: list[Exception] = []
        for way in ways:
            try:
                return *way(), None
            except Exception as error:  # any custom layer may fail in its own way
                errors.append(error)
        if getattr(operation, "variables", None):
            raise ValueError(
                f"Layer {call.path!r} ({call.kind}) cannot be copied ({first_line(errors[0])}), and it has weights: "
                "training the copy would change them in your model too. Give its class a get_config that "
                "names the arguments of its constructor, or build it from stock layers."
            ) from errors[0]
        return operation, call.run(values), errors[0]

    def _inside(self, layer: Any) -> Any:
        """The copy of a layer inside a layer."""
        if id(layer) not in self._made:
            self._remember(layer, self._model(layer) if is_graph_model(layer) else self._duplicated(layer))
        return self._made[id(layer)]

    def _duplicated(self, layer: Any) -> Any:
        return layer if hasattr(layer, "load_assets") else duplicate(layer, self._memo, self._inside)

    def _model(self, model: Any) -> Any:
        """The copy of a model that a layer holds; a Sequential stays one, since the layer may go through its layers."""
        if not isinstance(model, keras.Sequential):
            return clone_model(model, lambda call, values: self._results(call, values))
        layers = [self._inside(layer) for layer in model.layers]
        begin = [keras.Input(batch_shape=model.inputs[0].shape, dtype=model.inputs[0].dtype)] if model.built else []
        with recursion_for(len(layers)):
            copy = keras.Sequential([*begin, *layers], name=model.name)
        copy_own_trainable(model, copy)
        return copy

    def _results(self, call: Call, values: dict[int, Any]) -> list[Any]:
        if is_graph_model(call.operation):
            return call.run(values, self._inside(call.operation))
        return self.call(call, values)[0]

    def _remember(self, original: Any, copy: Any) -> None:
        self._made[id(original)] = copy
        if isinstance(original, keras.layers.Layer) and copy is not original:
            self._memo[id(original)] = copy
            self._tie(original, copy)
            self._carry(original, copy)

    def _tie(self, original: Any, copy: Any) -> None:
        """Let the copy use the variables that stand for those of the original where another copy has brought them already."""
        for name, old in vars(original).items():
            new = vars(copy).get(name)
            if isinstance(old, keras.Variable) and isinstance(new, keras.Variable) and old.shape == new.shape:
                known = self._memo.setdefault(id(old), new)
                if known is not new:
                    rebind(copy, new, known)

    def _carry(self, original: Any, copy: Any) -> None:
        """Give the copy the plain attributes that someone has set on the original; methods set on it are not plain."""
        if not isinstance(copy, type(original)):
            return
        for name in sorted(set(vars(original)) - set(vars(copy))):
            value = vars(original)[name]
            kept = isinstance(value, (keras.Variable, keras.layers.Layer)) or hasattr(type(original), name)
            if not name.startswith("_") and not kept:
                setattr(copy, name, copied(value, self._memo))

    def check_apart(self, model: keras.Model, copy: keras.Model) -> None:
        """Raise a ValueError if the copy shares a variable with the model, or does not share what the model does."""
        theirs = {id(variable): variable for variable in model.variables}
        if common := [variable.path for variable in copy.variables if id(variable) in theirs]:
            raise ValueError(
                f"The copy of {model.name!r} would share {common[0]!r} with it, so that training the one would change the "
                "other. Give the layer that holds it a get_config, or build it from stock layers."
            )
        owners: dict[int, list[Any]] = {}
        for layer in find_layers(model, keras.layers.Layer):
            for variable in own_variables(layer):
                owners.setdefault(id(variable), []).append(layer)
        for key, layers in owners.items():
            made = [self.made(layer) for layer in layers]
            if len(layers) > 1 and any(one is None or not _holds(one, self._memo.get(key)) for one in made):
                raise ValueError(
                    f"The layers {', '.join(repr(layer.name) for layer in layers)} share the weight {theirs[key].path!r}, and "
                    "their copies would not. Leave them as they are with skip=, or give each its own weight."
                )


def _holds(layer: Any, variable: Any) -> bool:
    return any(one is variable for one in layer.variables)


def _is_stock(layer: Any) -> bool:
    """Whether a layer and all that it holds are of Keras' classes, or this library's."""
    return all(type(one).__module__.startswith(("keras.", "keras_lowbit.")) for one in layer._flatten_layers())


def _configured(call: Call, values: dict[int, Any], complete: bool = False) -> tuple[Any, list[Any]]:
    """The copy that the configuration of a call's operation makes, with its variables, and its results.

    complete: a ValueError if the operation has attributes that the copy has not.
    """
    copy = unbuilt_copy(call.operation)
    results = call.run(values, copy)  # calling it builds it, layers inside a layer included
    if call.is_layer:
        copy_variables(call.operation, copy)
        more = sorted(name for name in set(vars(call.operation)) - set(vars(copy)) if not name.startswith("_"))
        if complete and more:
            raise ValueError(f"it has attributes that its class does not set: {more}")
    return copy, results


def first_line(error: Exception) -> str:
    """Kind of an error and the first line of what it says; Keras' are pages long."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def copy_variables(old: Any, new: Any) -> None:
    """Give `new`, a built copy of the layer `old`, its variables (random state included) and trainable flags.

    Raises ValueError if the two do not have the same variables, or not the same activation functions.
    """
    shapes = [[tuple(variable.shape) for variable in layer.variables] for layer in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"its variables have shapes {shapes[0]}, those of a copy {shapes[1]}")
    for source, target in zip(old.variables, new.variables, strict=True):
        target.assign(to_numpy(source))
    if old.variables and hasattr(new, "finalize_state"):  # Normalization derives its constants from its weights
        new.finalize_state()
    sides = (find_layers(layer, keras.layers.Layer) for layer in (old, new))
    for source, target in zip(*sides, strict=True):
        if (there := _functions(source)) != (here := _functions(target)):
            raise ValueError(f"{source.name!r} has the functions {there}, its copy {here}")
        if target.trainable != source.trainable:
            target.trainable = source.trainable
    for source, target in zip(old.variables, new.variables, strict=True):
        if target.trainable != source.trainable:  # of one variable alone
            target.trainable = source.trainable


def _functions(layer: Any) -> dict[str, str]:
    """The activation functions of a layer by attribute: Keras' name, or where the user's was defined."""
    found = {}
    for key, value in vars(layer).items():
        if key.endswith("activation") and callable(value) and not isinstance(value, keras.layers.Layer):
            name, module = function_name(value), getattr(value, "__module__", "")
            found[key] = name if name != "?" else f"{module}.{getattr(value, '__qualname__', type(value).__name__)}"
    return found


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
