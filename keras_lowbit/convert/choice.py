"""What the recipe and the user's patterns decide for each layer."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from keras_lowbit.convert.analysis.float_flow import NO_RULE
from keras_lowbit.convert.analysis.operations import (
    KINDS,
    Category,
    category_of,
    is_wide,
    lacks_int16,
    stock_kind,
)
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.copies import unreadable
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.quantizers import Quantizer, is_activation_quantizer
from keras_lowbit.recipes import Recipe

SKIP_LIST = "skip list"  # the reason of a layer that the user leaves in float


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model stands in the nest.

    prefix: path of the enclosing models, "" for the outermost.   shared: it runs more than once.   skipped: the
    user skips it whole.   last: positions of those of its outputs that leave the outermost model; None for all.
    """

    prefix: str = ""
    shared: bool = False
    skipped: bool = False
    last: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which layer gets what: the recipe (overrides first in its plan), the skip list, first and last layers.

    uses: how often one run of the whole model calls an operation.
    """

    recipe: Recipe
    skip: tuple[str, ...]
    positions: dict[str, tuple[str, ...]]
    uses: Callable[[Any], int]

    def skips(self, name: str, path: str) -> bool:
        """Whether the user wants that layer left float."""
        return any(re.fullmatch(pattern, name) or re.fullmatch(pattern, path) for pattern in self.skip)

    def keeps_input(self, name: str, place: Place) -> bool:
        """Whether the user wants an input of the outermost model left float."""
        return not place.prefix and self.skips(name, name)

    def kernel(self, call: Call, path: str) -> Quantizer | None:
        """The quantizer of a weighted call's kernel; a layer that is quantized already keeps its own."""
        if isinstance(call.operation, QuantizedLayer):
            return call.operation.kernel_quantizer
        kind = KINDS[stock_kind(call.operation)]
        return self.recipe.kernel_quantizer(call.name, path, kind, self.positions.get(path, ()))

    def depthwise_half(self, call: Call, path: str, default: Quantizer | None) -> Quantizer | None:
        """The quantizer of a separable layer's depthwise half, "path_depthwise": that of its own rule if it has one."""
        name, half = f"{call.name}_depthwise", f"{path}_depthwise"
        if any(rule.matches(name, half, "depthwise", ()) for rule in self.recipe.plan):
            return self.recipe.kernel_quantizer(name, half, "depthwise")
        return default

    def activations(self, place: Place) -> Quantizer | None:
        """The quantizer of the ranges of a model; those of one that runs more than once only widen."""
        quantizer = self.recipe.activations
        return widen_only(quantizer) if place.shared and quantizer is not None else quantizer

    def category(self, call: Call, place: Place) -> tuple[Category, str | None]:
        """What a call becomes, and why it stays float where it could be quantized; None where there is no such reason."""
        category, path = category_of(call), place.prefix + call.path
        if category is Category.NESTED_MODEL:
            return category, None
        if place.skipped or self.skips(call.name, path):
            return Category.FLOAT, SKIP_LIST
        if is_wide(self.recipe.activations) and (reason := lacks_int16(call, category)):
            return Category.FLOAT, reason
        if category is not Category.WEIGHTED:
            return category, None
        if self.kernel(call, path) is None:
            return Category.FLOAT, NO_RULE
        reason = unreadable(call.operation)
        return (category, None) if reason is None else (Category.FLOAT, reason)


def widen_only(quantizer: Quantizer) -> Quantizer:
    """The quantizer for a range that several tensors share: it grows with what it sees and never shrinks."""
    return quantizer.widen_only() if is_activation_quantizer(quantizer) else quantizer
