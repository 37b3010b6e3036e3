"""Copies of layers attribute by attribute: everything that a layer has become, whether or not its configuration says so.

The only place that knows how Keras keeps what a layer holds.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_lowbit.keras_graph.variables import to_numpy

# Of what Keras itself makes in each layer this is carried over; the rest (nodes, trackers, wrappers) belongs to one object.
_CARRIED = (
    *"built autocast supports_jit activity_regularizer _supports_masking _input_spec _build_shapes_dict _auto_config".split(),
    *"_auto_config_error_args _convert_input_args _allow_non_tensor_positional_args".split(),
)

Memo = dict[int, Any]


def duplicate(layer: Any, memo: Memo, copy_layer: Callable[[Any], Any]) -> Any:
    """A copy of a layer with copies of its attributes: variables, layers and plain values; functions and modules are shared.

    memo: id of an object -> what stands for it in the copy, as for `copy.deepcopy`; what is new is added. So two layers that
    share a variable share it in their copies.   copy_layer: makes the copy of a layer inside the layer.
    Raises whatever Python raises for a class that cannot be made without its arguments.
    """
    cls: Any = type(layer)
    new = cls.__new__(cls)
    base: Any = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
    base.__init__(new, name=layer.name, dtype=layer.dtype_policy, trainable=layer.trainable)
    own = set(vars(new)) - set(_CARRIED)
    memo |= {id(layer): new, id(layer._tracker): new._tracker}
    memo |= {id(old): _new_variable(old) for old in own_variables(layer) if id(old) not in memo}
    for generator in layer._seed_generators:
        memo[id(generator)] = _new_generator(generator, memo)
    for child in layer._layers:
        memo[id(child)] = copy_layer(child)
    for name, value in _attributes(layer).items():
        if name not in own and not name.startswith("_self_"):
            setattr(new, name, copied(value, memo))
    _arrange(layer, new, memo)
    return new


def own_variables(layer: Any) -> list[Any]:
    """The variables of a layer without those of layers inside it, as Keras numbers them when it saves."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def rebind(layer: Any, old: Any, new: Any) -> None:
    """Let a layer use the variable `new` wherever it had `old`, with the same place among its weights."""
    for variables in (layer._trainable_variables, layer._non_trainable_variables):
        for index, variable in enumerate(variables):
            if variable is old:
                variables[index] = new
    for ids in layer._tracker.stored_ids.values():
        if id(old) in ids:
            ids.add(id(new))
    for name, value in list(vars(layer).items()):
        if value is old:
            setattr(layer, name, new)


def _attributes(layer: Any) -> dict[str, Any]:
    modules = {name: value for name, value in vars(layer).get("_modules", {}).items() if name != "_torch_params"}
    return {**vars(layer), **modules}  # on PyTorch layers inside a layer are no attributes of the object


def copied(value: Any, memo: Memo) -> Any:
    """A copy of an attribute's value; the value itself if Python cannot copy it."""
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # modules, locks, tables of TensorFlow: nothing that is trained
        return value


def _new_variable(old: Any) -> Any:
    """A variable of the same path and value."""
    *scopes, name = old.path.split("/")
    with _within(scopes):
        new = keras.Variable(
            to_numpy(old), dtype=old.dtype, trainable=old.trainable, aggregation=old.aggregation, name=name
        )
    for key in ("regularizer", "constraint", "overwrite_with_gradient", "_autocast"):
        if hasattr(old, key):
            setattr(new, key, getattr(old, key))
    return new


@contextlib.contextmanager
def _within(scopes: list[str]) -> Iterator[None]:
    """Inside of name scopes: variables made there have them in their path."""
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        yield


def _new_generator(old: Any, memo: Memo) -> Any:
    with _within(old.state.path.split("/")[:-2]):
        new = keras.random.SeedGenerator(1, name=old.name)
    new.state.assign(to_numpy(old.state))
    memo[id(old.state)] = new.state
    return new


def _arrange(old: Any, new: Any, memo: Memo) -> None:
    """Give the copy its variables and layers in the order of the original, those included that no attribute names."""
    stores = {"trainable_variables": "_trainable_variables", "non_trainable_variables": "_non_trainable_variables"}
    for store, name in (stores | {"layers": "_layers"}).items():
        found = [memo[id(value)] for value in getattr(old, name)]
        getattr(new, name)[:] = found
        new._tracker.stored_ids[store] = {id(value) for value in found}
    if hasattr(new, "_track_variables"):  # PyTorch's parameters
        new._track_variables()
