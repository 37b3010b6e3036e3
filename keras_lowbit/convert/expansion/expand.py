"""A copy of a model in which stock layers without an integer form stand as compositions of operations that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import tree

from keras_lowbit.convert.analysis.operations import RECURRENT, is_loop, stock_kind
from keras_lowbit.convert.expansion import (
    arithmetic,
    attention,
    einsum,
    moves,
    normalizations,
    operations,
    products,
    recurrent,
    signals,
    volumes,
)
from keras_lowbit.convert.expansion.fusing import Fuser
from keras_lowbit.convert.expansion.implicit_masks import mask_behind
from keras_lowbit.convert.expansion.registry import EXPANSIONS, Compose, Parts
from keras_lowbit.keras_graph.calls import Call, all_calls, calls_of, is_graph_model
from keras_lowbit.keras_graph.comparison import check_layers
from keras_lowbit.keras_graph.copies import Copies, clone_model
from keras_lowbit.layers.constants import unrounded

_RULE_FILES = (
    arithmetic,
    attention,
    einsum,
    moves,
    normalizations,
    operations,
    products,
    recurrent,
    signals,
    volumes,
)  # importing them registers their rules
_OF_HEADS = ("GroupedQueryAttention", "MultiHeadAttention")
_READ_MASKS = ("AdditiveAttention", "Attention", *_OF_HEADS, "Softmax", *RECURRENT)
Leaves = Callable[[str, str], bool]  # of name and path: whether a call stays as it is


class Expanded(NamedTuple):
    """model: the copy, or the model itself where there was nothing to do.   whole: path of each of its operations that is part
    of a composition -> path of what it is part of.   operations: by that path, what is a composition now."""

    model: keras.Model
    whole: dict[str, str]
    operations: dict[str, Any]


def expand(
    model: keras.Model,
    leaves: Leaves = lambda name, path: False,
    unroll: bool = False,
    fuser: Fuser | None = None,
) -> Expanded:
    """Expand what has an expansion and no integer form of its own; the model computes the same.

    leaves: which calls stay as they are.   unroll: recurrent layers with a loop too.   fuser: makes LSTMs
    LiteRT's own, where they can be.
    ValueError if a composition computes something else than its layer.
    """
    walk = _Walk(leaves, unroll, fuser)
    if not any(walk.fuses(call, path) or walk.rule(call, path) for path, call in all_calls(model)):
        return Expanded(model, {}, {})
    copy = walk.copied(model)
    check_layers(model, walk.stand_in)
    return Expanded(copy, walk.whole, walk.operations)


class _Walk:
    """The copy on its way. whole, operations: as in `Expanded`."""

    def __init__(self, leaves: Leaves, unroll: bool, fuser: Fuser | None) -> None:
        self.leaves, self.unroll, self.fuser = leaves, unroll, fuser
        self.whole: dict[str, str] = {}
        self.operations: dict[str, Any] = {}
        self._copies, self._layers = Copies(), dict[tuple[int, str], Any]()
        self._masks: dict[int, Any] = {}  # by the key of the value that Keras hands it on beside

    def fuses(self, call: Call, path: str) -> bool:
        """Whether a call becomes LiteRT's LSTM."""
        return self.fuser is not None and not self.leaves(call.name, path) and self.fuser.takes(call, path)

    def rule(self, call: Call, path: str) -> Compose | None:
        """What stands for a call; None if it stays as it is."""
        kind = stock_kind(call.operation)
        if kind not in EXPANSIONS or self.leaves(call.name, path) or self.fuses(call, path):
            return None
        if kind in RECURRENT and is_loop(call.operation) and not self.unroll:
            return None
        types = {str(tensor.dtype) for tensor in (*call.tensors, *call.results)}
        reals = all("float" in kind for kind in types - ({"bool", "int32"} if kind in _READ_MASKS else set()))
        return EXPANSIONS[kind](call) if reals and (len(call.results) == 1 or kind in RECURRENT) else None

    def copied(self, model: Any, prefix: str = "") -> keras.Model:
        """The copy of a model, or of one inside it."""
        calls = calls_of(model).calls
        names = {call.name: call for call in calls if not self.rule(call, prefix + call.path)}
        others = set(names)
        has_attention = any(stock_kind(call.operation) in _OF_HEADS for call in calls)

        def nested_copy(inner: Any) -> Any:
            return self._copies.get(inner, lambda: self.copied(inner, f"{prefix}{inner.name}/"))

        def emit(call: Call, values: dict[int, Any]) -> list[Any]:
            path = prefix + call.path
            if is_graph_model(call.operation):
                return call.run(values, nested_copy(call.operation))
            if self.fuser is not None and self.fuses(call, path):
                return [self.fuser.emit(call, path, values)]
            if (compose := self.rule(call, path)) is None:
                return self._copies.call(call, values)[0]
            self.operations[path] = call.operation
            return tree.flatten(compose(Parts(call, self._layers, names, self._masks, nested_copy), values))

        def emit_with_mask(call: Call, values: dict[int, Any]) -> list[Any]:
            made = emit(call, values)
            if has_attention and (mask := mask_behind(call, values, self._masks)) is not None:
                self._masks |= dict.fromkeys(call.outputs[:1], mask)
            return made

        copy = clone_model(model, emit_with_mask)
        self.whole |= {prefix + name: prefix + call.path for name, call in names.items() if name not in others}
        return copy

    def stand_in(self, call: Call, values: dict[int, Any]) -> list[Any] | None:
        """The outputs of the composition of a call, None if it has none."""
        if self.fuser is not None and (made := self.fuser.stand_in(call, values)) is not None:
            return made
        compose = self.rule(call, call.path)
        if compose is None:
            return None
        with unrounded(part.made for part in self._layers.values()):
            return tree.flatten(compose(Parts(call, self._layers, {}), values))
