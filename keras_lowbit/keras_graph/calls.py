"""A Functional model as a list of calls. The one place that reads Keras' own graph structures.

Tensors are known by integer keys. `calls_of(model)` keeps nested models as single calls (for rewriting),
`calls_of(model, inline=True)` dissolves them (for lowering to integers).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

import keras
import numpy as np
from keras import tree

from keras_lowbit.arguments import check_layer, model_remedy, shown

KerasTensor: Any = keras.KerasTensor


@dataclasses.dataclass(eq=False)
class Call:
    """One call of one operation: a layer, a `keras.ops` operation or (not inlined) a nested model.

    path: name with the names of the enclosing models, ``"backbone/block1_conv"``.
    inputs, outputs: keys of the tensors it reads and makes, in flattened order.
    """

    operation: Any
    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[KerasTensor, ...]  # the symbolic inputs, beside `inputs`
    results: tuple[KerasTensor, ...]  # the symbolic outputs, beside `outputs`
    arguments: Any  # Keras' SymbolicArguments: the call's arguments with holes for the tensors

    @property
    def name(self) -> str:
        """The operation's own name."""
        return str(self.operation.name)

    @property
    def kind(self) -> str:
        """The operation's class name."""
        return type(self.operation).__name__

    @property
    def is_layer(self) -> bool:
        """Whether the operation is a layer (with weights and a configuration) and not a bare op."""
        return isinstance(self.operation, keras.layers.Layer)

    def fill(self, values: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the call with `values` (by key) for its tensors."""
        by_id = {id(tensor): values[key] for tensor, key in zip(self.tensors, self.inputs, strict=True)}
        return self.arguments.fill_in(by_id)

    def run(self, values: Mapping[int, Any], operation: Any = None) -> list[Any]:
        """Call the operation (or another in its place) on `values`; its outputs, flattened.

        Values are computed as in `predict`: every layer is told training=False, which overrules a recorded True and the
        default of its own `call` (of augmentation layers it is True). Symbolic tensors keep what was recorded, so that a
        model built again is the same model.
        """
        args, kwargs = self.fill(values)
        if self.is_layer and not any(isinstance(value, KerasTensor) for value in values.values()):
            kwargs = {**kwargs, "training": False}
        return tree.flatten((operation or self.operation)(*args, **kwargs))

    def constants(self) -> list[Any]:
        """The call's positional and keyword arguments that are not tensors of the graph, flattened."""
        args, kwargs = self.arguments.args, self.arguments.kwargs
        return [leaf for leaf in tree.flatten((args, kwargs)) if not isinstance(leaf, KerasTensor)]


class Runnable(Protocol):
    """A `Call`, or a part of one that runs like it."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, values: dict[int, Any], /) -> list[Any]:
        """The outputs, flattened, from the values by key."""


Compute = Callable[[Any, dict[int, Any]], list[Any]]


def _plainly(call: Runnable, values: dict[int, Any]) -> list[Any]:
    return call.run(values)


@dataclasses.dataclass(eq=False)
class CallGraph:
    """Calls in an order in which they can run, and the keys of the model's inputs and outputs (flattened)."""

    calls: list[Call]
    inputs: list[int]
    outputs: list[int]
    tensors: dict[int, KerasTensor]  # shape and dtype of every key

    def __post_init__(self) -> None:
        self._consumers: dict[int, list[Call]] = {}
        self.producers: dict[int, Call] = {}
        for call in self.calls:
            self.producers |= dict.fromkeys(call.outputs, call)
            for key in dict.fromkeys(call.inputs):
                self._consumers.setdefault(key, []).append(call)

    def consumers(self, key: int) -> list[Call]:
        """The calls that read a tensor, each once."""
        return self._consumers.get(key, [])

    def only_consumer(self, key: int) -> Call | None:
        """The one call that reads a tensor, or None if several do, none does, or the model returns it."""
        found = self.consumers(key)
        return found[0] if len(found) == 1 and key not in self.outputs else None

    def uses(self, operation: Any) -> int:
        """How often one run of the model calls an operation, or another with some of its variables (tied weights).

        The calls inside nested models are included.
        """
        return sum(self._uses[key] for key in self._tied.get(id(operation), {id(operation)}))

    @cached_property
    def _uses(self) -> Counter[int]:
        found = Counter(id(call.operation) for call in self.calls)
        for call in self.calls:
            if is_graph_model(call.operation):
                found += calls_of(call.operation)._uses
        return found

    @cached_property
    def _layers(self) -> dict[int, Any]:
        """The layers that are called, those of nested models in place of these, by id."""
        found: dict[int, Any] = {}
        for call in self.calls:
            if is_graph_model(call.operation):
                found |= calls_of(call.operation)._layers
            elif call.is_layer:
                found[id(call.operation)] = call.operation
        return found

    @cached_property
    def _tied(self) -> dict[int, set[int]]:
        """id of a layer -> ids of the layers that share a variable with it, its own among them."""
        users: dict[int, set[int]] = {}
        for key, layer in self._layers.items():
            for variable in layer.variables:
                users.setdefault(id(variable), set()).add(key)
        return {
            key: {key}.union(*(users[id(variable)] for variable in layer.variables))
            for key, layer in self._layers.items()
        }

    def run(self, inputs: Iterable[Any], compute: Compute = _plainly) -> list[Any]:
        """Run the calls on the model's inputs (flattened); its outputs, flattened. compute: as in `run_calls`."""
        values = dict(zip(self.inputs, inputs, strict=True))
        run_calls(self.calls, [values], compute, keep=self.outputs)
        return [values[key] for key in self.outputs]


def run_calls(
    calls: Iterable[Runnable],
    samples: list[dict[int, Any]],
    compute: Compute = _plainly,
    before: Callable[[Any], None] = lambda call: None,
    keep: Collection[int] = (),
) -> None:
    """Run calls in order on several sets of values side by side: all sets through one call, then through the next.

    samples: for each set the values by key, those of the inputs at first; changed in place. A value is dropped as soon as
    the last call that reads it has run.   compute: gives the outputs of a call, flattened, from the values by key; without
    it the call is run.   before: sees each call before it runs.   keep: keys of values that are not dropped.
    """
    calls = list(calls)
    last = {key: call for call in calls for key in call.inputs}
    for call in calls:
        before(call)
        read_out = [key for key in set(call.inputs).difference(keep) if last[key] is call]
        for values in samples:
            values.update(zip(call.outputs, compute(call, values), strict=True))
            for key in read_out:
                values.pop(key, None)


def calls_of(model: keras.Model, inline: bool = False) -> CallGraph:
    """The calls of a Functional or Sequential model in running order."""
    return _Walker(inline).walk(functional_of(model))


def all_calls(model: Any, prefix: str = "") -> Iterator[tuple[str, Call]]:
    """Path and call of everything in running order: nested models, then what is in them."""
    for call in calls_of(model).calls:
        yield prefix + call.path, call
        if is_graph_model(call.operation):
            yield from all_calls(call.operation, f"{prefix}{call.path}/")


def functional_of(model: Any) -> Any:
    """The Functional form of a Functional or built Sequential model; a ValueError with the remedy otherwise."""
    if isinstance(model, keras.Sequential) and _calls_as_keras(model):
        if not model.built or getattr(model, "_functional", None) is None:
            raise ValueError(
                f"Sequential model {model.name!r} has no input shape yet. Add keras.Input(shape) as its first layer, "
                "or call model.build(input_shape)."
            )
        return model._functional
    if is_graph_model(model):
        return model
    remedy = "" if isinstance(model, keras.Model) else f": {model_remedy(model)}"
    raise TypeError(f"{shown(model)} is not a Functional or Sequential Keras 3 model{remedy}.")


def chosen_inputs(model: keras.Model, batch: Any) -> list[Any]:
    """The arrays of a batch in the model's own order, as they are; a dict may name them after the model's input layers."""
    functional = functional_of(model)
    names = [tensor.name for tensor in functional.inputs]
    if isinstance(batch, Mapping):
        keys = list(functional.input) if isinstance(functional.input, Mapping) else names
        if missing := [name for name in keys if name not in batch]:
            raise ValueError(f"The data hold the inputs {sorted(batch)}, but {model.name!r} needs {missing} too.")
        parts = {name: batch[name] for name in keys}
        batch = parts if isinstance(functional.input, Mapping) else list(parts.values())
    arrays = tree.flatten(batch)
    if len(arrays) != len(names):
        raise ValueError(
            f"The data hold {len(arrays)} inputs, but {model.name!r} needs {len(names)}: {names}. Give one array for "
            "each, in this order or in a dict."
        )
    return arrays


def as_taken(model: keras.Model, batch: Any) -> Any:
    """A dict of inputs in the structure that calling the model takes without a warning; other batches as they are.

    ValueError for one sample without a batch axis.
    """
    if not getattr(model, "inputs", None):
        return batch
    structure = functional_of(model).input if is_graph_model(model) else model.input
    if not isinstance(batch, Mapping):
        shape = getattr(structure, "shape", (None, 1))
        if shape[-1] != 1 and tuple(np.shape(batch)) == shape[1:]:
            raise ValueError(f"Input {model.inputs[0].name!r} takes {shape}, got one sample. Give images[np.newaxis].")
        return batch
    arrays = chosen_inputs(model, batch)
    if isinstance(structure, Mapping):
        return {name: batch[name] for name in structure}
    return arrays[0] if len(arrays) == 1 else arrays


def inputs_in_order(model: keras.Model, batch: Any) -> list[np.ndarray]:
    """The inputs in the model's own order, as running the model takes them: cast, and of its rank.

    batch: NumPy arrays. An axis of size 1 at the end is added or dropped where only that is missing, as by Keras.
    """
    arrays = map(np.asarray, chosen_inputs(model, batch))
    return [_adapted(array, symbolic) for array, symbolic in zip(arrays, functional_of(model).inputs, strict=True)]


def _adapted(array: np.ndarray, symbolic: KerasTensor) -> np.ndarray:
    array = array.astype(symbolic.dtype, copy=False)
    if array.ndim == len(symbolic.shape) - 1 and symbolic.shape[-1] == 1:
        return array[..., np.newaxis]
    if array.ndim == len(symbolic.shape) + 1 and array.shape[-1] == 1:
        return array[..., 0]
    if array.ndim != len(symbolic.shape):
        raise ValueError(
            f"Input {symbolic.name!r} takes arrays of shape {symbolic.shape}, got {array.shape}. Axis 0 counts samples."
        )
    return array


def is_graph_model(operation: Any) -> bool:
    """Whether an operation is itself a graph of operations: Functional, Sequential, or a subclass with their `call`."""
    is_graph = isinstance(operation, keras.Sequential) or (
        isinstance(operation, keras.Model) and hasattr(operation, "_nodes_by_depth")
    )
    return is_graph and _calls_as_keras(operation)


def _calls_as_keras(model: Any) -> bool:
    """Whether running the model is running its graph: no class of the user's redefines `call`."""
    defining = next(cls for cls in type(model).__mro__ if "call" in vars(cls))
    return defining.__module__.startswith("keras.")


def layers_of(model: Any) -> list[tuple[str, Any]]:
    """Path and layer of every layer in a model, those inside custom layers included, each once, in running order.

    A layer that several calls or parents share has the path of the first. In a subclassed model the paths start at its
    attributes' layers. Equal paths, which only custom layers can bring about, get a number: "block/conv_1".
    """
    try:
        roots = [(call.path, call.operation) for call in calls_of(model, inline=True).calls if call.is_layer]
    except TypeError:
        roots = [(layer.name, layer) for layer in _children(model)]
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for root_path, root in roots:
        for path, layer in _descendants(root_path, root):
            if id(layer) not in seen:
                seen.add(id(layer))
                found[fresh_name(path, found)] = layer
    return list(found.items())


def layers_inside(model: Any, kind: type) -> list[str]:
    """Paths of the layers of type `kind` that stand inside custom layers, where running call by call does not meet them."""
    called = {id(call.operation) for call in calls_of(model, inline=True).calls}
    return [path for path, layer in layers_of(model) if isinstance(layer, kind) and id(layer) not in called]


def fresh_name(name: str, taken: Container[str]) -> str:
    """The name, or the first of name_1, name_2, ... that is not taken."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _children(layer: Any) -> list[Any]:
    check_layer(layer)
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _descendants(path: str, layer: Any) -> Iterator[tuple[str, Any]]:
    yield path, layer
    for child in _children(layer):
        yield from _descendants(f"{path}/{child.name}", child)


class _Walker:
    def __init__(self, inline: bool) -> None:
        self.inline = inline
        self.calls: list[Call] = []
        self.tensors: dict[int, KerasTensor] = {}

    def walk(self, model: Any) -> CallGraph:
        keys = {id(tensor): self._key(tensor) for tensor in tree.flatten(model.inputs)}
        inputs = list(keys.values())
        outputs = self._calls(model, keys, "")
        return CallGraph(self.calls, inputs, outputs, self.tensors)

    def _calls(self, model: Any, keys: dict[int, int], prefix: str) -> list[int]:
        for node in _nodes(model):
            inputs = tuple(keys[id(tensor)] for tensor in node.arguments.keras_tensors)
            path = prefix + node.operation.name
            if self.inline and is_graph_model(node.operation):
                inner = functional_of(node.operation)
                inner_keys = {
                    id(t): key
                    for t, key in zip(tree.flatten(inner.inputs), _ordered(node.arguments, inputs), strict=True)
                }
                results = self._calls(inner, inner_keys, path + "/")
                keys |= {id(t): key for t, key in zip(tree.flatten(node.outputs), results, strict=True)}
                continue
            results = tree.flatten(node.outputs)
            made = tuple(self._key(tensor) for tensor in results)
            keys |= {id(tensor): key for tensor, key in zip(results, made, strict=True)}
            arguments = node.arguments
            call = Call(node.operation, path, inputs, made, tuple(arguments.keras_tensors), tuple(results), arguments)
            self.calls.append(call)
        return [keys[id(tensor)] for tensor in tree.flatten(model.outputs)]

    def _key(self, tensor: KerasTensor) -> int:
        key = len(self.tensors)
        self.tensors[key] = tensor
        return key


def nested_inputs(call: Any) -> list[int]:
    """Keys of a nested model's arguments in the order of that model's own flattened inputs. call: a `Call` of it."""
    return _ordered(call.arguments, call.inputs)


def _ordered(arguments: Any, inputs: tuple[int, ...]) -> list[int]:
    struct = arguments.args[0] if arguments.args else arguments.kwargs["inputs"]
    by_id = {id(t): key for t, key in zip(arguments.keras_tensors, inputs, strict=True)}
    return [by_id[id(tensor)] for tensor in tree.flatten(struct)]


def _nodes(model: Any) -> Iterator[Any]:
    """Keras' nodes of one model in running order, inputs left out."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if node.operation is not None and not node.is_input)


def find_layers(model: Any, kind: type) -> list[Any]:
    """Returns every layer of the class `kind` inside `model`, nested models and sub-layers included, each once.

    >>> [layer.name for layer in klb.layers.find_layers(model, keras.layers.Conv2D)]
    ['first', 'pointwise']
    """
    check_layer(model)
    # The public API has no such walk; this is the only place that uses the private one.
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
