"""What stands for a call, and the register of those who know."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import keras
import numpy as np

from keras_lowbit.keras_graph.calls import Call, fresh_name
from keras_lowbit.keras_graph.variables import to_numpy

Values = dict[int, Any]
Compose = Callable[
    ["Parts", Values], Any
]  # the outputs of what stands for a call (one, or a list), from the values by key
Rule = Callable[[Call], "Compose | None"]  # None: there is nothing for this call
EXPANSIONS: dict[str, Rule] = {}  # by the class name of a stock layer or operation
R = TypeVar("R", bound=Rule)


def expands(*kinds: str) -> Callable[[R], R]:
    """Decorator: the function says what stands for calls of these stock classes."""

    def register(rule: R) -> R:
        EXPANSIONS.update(dict.fromkeys(kinds, rule))
        return rule

    return register


class Parts:
    """Makes the layers and names the operations that stand for one call. layers: those of all calls of the same layer.

    names: taken in the new model, with the calls that took them; added to.   masks: that Keras hands on beside values, by key.
    nested: the copy of a model inside the model.
    """

    def __init__(
        self,
        call: Call,
        layers: dict[tuple[int, str], Any],
        names: dict[str, Call],
        masks: Mapping[int, Any] = MappingProxyType({}),
        nested: Callable[[Any], Any] = lambda model: model,
    ) -> None:
        self.call, self.operation, self.masks = call, call.operation, masks
        self._layers, self._names, self._within = layers, names, ""
        self.nested = nested

    def within(self, part: str) -> Parts:
        """The same for what stands for one part of the call: all its names begin with that of the part."""
        inner = copy.copy(self)
        inner._within = self._whole(part)
        return inner

    def layer(self, part: str, make: Callable[..., Any], weights: dict[str, Any] | None = None) -> Any:
        """The layer of a part, made once for all calls. make: takes name and dtype.   weights: by attribute, once it is built.

        part: "" for the one that has the name of the original.
        """
        key = (id(self.operation), self._whole(part))
        if key not in self._layers:
            policy = getattr(self.operation, "dtype_policy", None)
            made = make(name=self._name(part), **({} if policy is None else {"dtype": policy}))
            # What a bare operation computes with are constants, and stay so.
            self._layers[key] = _Filled(made, weights or {}, getattr(self.operation, "trainable", False))
        return self._layers[key]

    def known(self, part: str) -> Any:
        """A layer that is made already."""
        return self._layers[id(self.operation), self._whole(part)]

    def named(self, value: Any, part: str = "") -> Any:
        """The same value, the operation that made it named after the original."""
        if isinstance(value, keras.KerasTensor):
            value._keras_history.operation.name = self._name(part)
        return value

    def _whole(self, part: str) -> str:
        return f"{self._within}_{part}".strip("_")

    def _name(self, part: str) -> str:
        wanted = fresh_name(f"{self.call.name}_{self._whole(part)}".rstrip("_"), self._names.keys())
        self._names[wanted] = self.call
        return wanted


class _Filled:
    """A layer that gets its weights when it has been called for the first time."""

    def __init__(self, layer: Any, weights: dict[str, Any], trainable: bool) -> None:
        self.made, self._weights, self._trainable = layer, weights, trainable

    def __call__(self, *args: Any) -> Any:
        made = self.made(*args)
        for name, value in self._weights.items():
            getattr(self.made, name).assign(value)
        if self._weights:
            self.made.trainable = self._trainable
            self._weights = {}
        return made


def array(variable: Any) -> np.ndarray:
    """The value of a variable."""
    return to_numpy(variable)


def sizes_of(tensor: Any) -> tuple[int, ...] | None:
    """The sizes of a tensor without its batch; None if one of them is open."""
    sizes = tuple(tensor.shape[1:])
    return None if None in sizes else sizes


def turned(parts: Parts, value: Any, part: str) -> Any:
    """Matrices with rows and columns in each other's place; in front of a product it costs nothing."""
    *outer, rows, columns = range(len(value.shape))
    return parts.named(keras.ops.transpose(value, (*outer, columns, rows)), part)
