"""Where activation ranges belong, so that training sees what the int8 integer pipeline will compute.

A range stands after each value the integer pipeline stores: the result of a weighted layer, after the batch norm and the
relu that fuse with it; sums, products, averages, concatenations. Operations that only move or select values keep the range of
their input; behind those that round inside it the same range stands again. A float value, that of an input or of an operation
that runs in float, has a range only for those who read it as int8; what runs in float reads it as it is, and so a token id, a
class or a mask is never rounded.

Ranges of fewer than 8 bits stand behind a relu whose result weighted layers alone read, the inputs of the products that the
bits are for; all others have 8. Their codes are the top ones of int8: there its own saturation ends the range above, and the
relu below.
"""

import dataclasses
from collections.abc import Container

from keras_lowbit.convert.analysis import masks
from keras_lowbit.convert.analysis.float_flow import Level
from keras_lowbit.convert.analysis.operations import (
    KINDS,
    PROBABILITIES,
    Category,
    activation_name,
    fixed_range,
    function_of,
    fuses,
    static_range,
    stock_kind,
)
from keras_lowbit.convert.analysis.pixels import is_affine
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.depth import true_of_all
from keras_lowbit.quantizers import Quantizer, is_activation_quantizer

# Operations whose integer form can carry a relu at its end.
_TAKES_RELU = {"Add", "Average", "Subtract", "Multiply", "Rescaling", "Normalization", "ChannelAffine"}
_ENDS_WITH_ACTIVATION = {*KINDS, "Activation", "Softmax", "Sigmoid"}
_BELOW_SCORES = 10.0  # exp(-10) of the smallest score is what a masked one has of a softmax: nothing, in 8 bits
_CONTAINER = 8  # bits of the codes that the integer graph stores, whatever a range uses of them
_OTHERS_RANGE = (Category.KEEPS_RANGE, Category.MASK, Category.RANGE_LAYER, Category.FUSED_LOOP)  # none behind them
_INSIDE = (Category.KEEPS_RANGE, Category.ROUNDS_IN_RANGE)


@dataclasses.dataclass
class RangePlan:
    """after: key of a tensor -> quantizer of the range that stands behind it.
    own: weighted calls -> quantizer of the range in the layer itself: before an activation that does not fuse, or at the
    end of a layer that gives one of several outputs its name.
    shared: key of a concatenation's result -> key of the first concatenation of its group, whose range it shares.
    floats: keys of float values, whose range only those see that read them as int8.   in_float: calls that read such a
    value as it is, with its key.   returned: those that the model returns behind their range.
    fused: batch norms, relus and affines behind affines that end the operation before them; the others are int8 operations of
    their own.
    again: calls that round inside the range of their input -> key of the tensor behind which that range stands.
    learned: quantizer of ranges learned from data.
    """

    after: dict[int, Quantizer] = dataclasses.field(default_factory=dict)
    own: dict[Call, Quantizer] = dataclasses.field(default_factory=dict)
    shared: dict[int, int] = dataclasses.field(default_factory=dict)
    floats: set[int] = dataclasses.field(default_factory=set)
    in_float: set[tuple[Call, int]] = dataclasses.field(default_factory=set)
    returned: set[int] = dataclasses.field(default_factory=set)
    fused: set[Call] = dataclasses.field(default_factory=set)
    again: dict[Call, int] = dataclasses.field(default_factory=dict)
    learned: Quantizer | None = None

    def move_into(self, call: Call) -> None:
        """Put the range behind a weighted call whose activation fuses into its layer, where it means the same."""
        if fuses(call.operation) and call.outputs[0] in self.after:
            self.own[call] = self.after.pop(call.outputs[0])


def plan_ranges(level: Level, activation: Quantizer | None, final: Container[int]) -> RangePlan:
    """The ranges of one model of the nest, the levels being settled (each plans its own).

    activation: the quantizer of ranges learned from data; None plans nothing.   final: keys of the tensors that
    leave the whole model; a softmax or sigmoid there gets no range.
    """
    if activation is None:
        return RangePlan()
    eight = activation
    if is_activation_quantizer(activation) and activation.bits < _CONTAINER:
        eight = activation.with_bits(_CONTAINER)
    plan = RangePlan(learned=eight)
    planner = _Planner(level, eight, final, plan)
    for key in level.graph.inputs:
        planner.float_value(key, eight)
    for call in level.graph.calls:
        planner.visit(call)
    planner.share_concatenations()
    if eight != activation:
        planner.narrow(eight, activation)
    return plan


class _Planner:
    def __init__(self, level: Level, activation: Quantizer, final: Container[int], plan: RangePlan) -> None:
        self.level, self.graph, self.categories = level, level.graph, level.categories
        self.activation, self.final, self.plan = activation, final, plan

    def visit(self, call: Call) -> None:
        category = self.categories[call]
        if category is Category.NESTED_MODEL:
            for key in call.outputs:
                self.float_value(key, self.activation)
        if category in (*_OTHERS_RANGE, Category.NESTED_MODEL):
            return
        if category is Category.ROUNDS_IN_RANGE:
            self._again(call)
        elif category is Category.WEIGHTED:
            self._weighted(call)
        elif category is Category.FLOAT:
            self._float(call)
        elif category is Category.FIXED_RANGE or (
            stock_kind(call.operation) in ("Softmax", "Activation") and category is Category.NEEDS_RANGE
        ):
            self._bounded(call)
        elif not self._waits(call):
            self.after(call.outputs[0], self.activation)

    def narrow(self, eight: Quantizer, activation: Quantizer) -> None:
        """Give the ranges between a relu and weighted layers the bits asked for."""
        for key, quantizer in self.plan.after.items():
            if quantizer == eight and self._feeds_products(key) and self._ends_at_zero(key):
                self.plan.after[key] = activation

    def _feeds_products(self, key: int) -> bool:
        """Whether weighted layers alone read a tensor, through what moves or selects values."""
        return true_of_all(key, self._products)

    def _products(self, key: int) -> bool | list[int]:
        """That of the readers of one tensor, or the tensors that those make which move or select its values."""
        readers = self.graph.consumers(key)
        if not readers or key in self.graph.outputs or key in self.plan.shared:
            return False
        moves = [reader for reader in readers if self.categories[reader] is not Category.WEIGHTED]
        if any(self.categories[reader] is not Category.KEEPS_RANGE for reader in moves):
            return False
        return [made for reader in moves for made in reader.outputs] or True

    def _ends_at_zero(self, key: int) -> bool:
        call = self.graph.producers.get(key)
        if call is None:
            return False
        weighted = self.categories[call] is Category.WEIGHTED and function_of(call) in ("relu", "relu6")
        return weighted or self.categories[call] is Category.RELU

    def after(self, key: int, quantizer: Quantizer) -> None:
        """Put a range behind a tensor, unless it is not float or a range that is there already reads it."""
        if "float" in str(self.graph.tensors[key].dtype) and not self._has_range(key):
            known = (0.0, 1.0) if self._is_of_mask(key) else self.level.known_ranges.get(key)
            reader = self.graph.only_consumer(key)
            if reader is not None and (stock_kind(reader.operation) == "MaskScores" or masks.hides(reader)):
                quantizer = (
                    quantizer.with_room_below(_BELOW_SCORES) if is_activation_quantizer(quantizer) else quantizer
                )
            self.plan.after[key] = static_range(*known, self.activation) if known else quantizer

    def float_value(self, key: int, quantizer: Quantizer) -> None:
        """The range behind a float value, for those who read it as int8 only; no other value's."""
        if not self.level.is_float(key):
            return
        self.plan.floats.add(key)
        readers = self.graph.consumers(key)
        in_float = {
            (call, key)
            for call in readers
            if self.level.reads_in_float(call, key) or self.categories[call] is Category.RANGE_LAYER
        }
        self.plan.in_float |= in_float
        returned = key in self.graph.outputs and not self.level.stays_float(key)
        if len(in_float) < len(readers) or returned:
            # That of a mask, also where the data show one of its two values only.
            self.after(key, static_range(0.0, 1.0, self.activation) if self.level.is_mask(key) else quantizer)
        if returned:
            self.plan.returned.add(key)

    def _is_of_mask(self, key: int) -> bool:
        """Whether a tensor has the ones and zeros of a mask."""
        call = self.graph.producers.get(key)
        return call is not None and stock_kind(call.operation) == "Cast" and str(call.tensors[0].dtype) == "bool"

    def _has_range(self, key: int) -> bool:
        consumer = self.graph.only_consumer(key)
        return consumer is not None and self.categories[consumer] is Category.RANGE_LAYER

    def _again(self, call: Call) -> None:
        if not self._has_range(call.outputs[0]):
            self.plan.again[call] = self._origin(masks.reals_of(call)[0])

    def _origin(self, key: int) -> int:
        """The tensor behind which the range of `key` stands."""
        call = self.graph.producers.get(key)
        while call is not None and self.categories[call] in _INSIDE and call.inputs:
            key = masks.reals_of(call)[0]
            call = self.graph.producers.get(key)
        return key

    def _weighted(self, call: Call) -> None:
        in_place = getattr(call.operation, "output_quantizer", None) is not None  # it was quantized before
        if fuses(call.operation):
            if not in_place and not self._waits(call):
                self.after(call.outputs[0], self.activation)
            return
        if not in_place:
            self.plan.own[call] = self.activation
        self._bounded(call)

    def _bounded(self, call: Call) -> None:
        """A result whose range the function bounds; a final softmax or sigmoid stays float for the loss."""
        name, key = function_of(call), call.outputs[0]
        if name in PROBABILITIES and key in self.final and not self.graph.consumers(key):
            return
        self.after(key, self._bounds(name))

    def _bounds(self, function: str) -> Quantizer:
        return fixed_range("sigmoid" if function == "softmax" else function, self.activation) or self.activation

    def _float(self, call: Call) -> None:
        # Of stock layers only: what a user's layer does with its activation is unknown.
        bounded = stock_kind(call.operation) in _ENDS_WITH_ACTIVATION and function_of(call) in PROBABILITIES
        for key in call.outputs:
            if not (bounded and key in self.final and not self.graph.consumers(key)):
                self.float_value(key, self._bounds(function_of(call)) if bounded else self.activation)

    def _waits(self, call: Call) -> bool:
        """Whether the range comes later: behind a batch norm, relu or concatenation that takes this result in."""
        reader = self.graph.only_consumer(call.outputs[0])
        if reader is None:
            return False
        if self.categories[reader] is Category.SHARES_RANGE:
            return True
        if self._takes_in(call, reader):
            self.plan.fused.add(reader)
            return True
        return False

    def _takes_in(self, call: Call, reader: Call) -> bool:
        """Whether a batch norm, relu or further affine ends the operation whose result it reads alone."""
        category, linear = self.categories[call], activation_name(call.operation) == "linear"
        if is_affine(call, category) and is_affine(reader, self.categories[reader]):
            return True
        if self.categories[reader] is Category.BATCH_NORM:
            return category is Category.WEIGHTED and linear
        if self.categories[reader] is Category.RELU:
            takes = category in (Category.NEEDS_RANGE, Category.MANY) and stock_kind(call.operation) in _TAKES_RELU
            return takes or category is Category.BATCH_NORM or (category is Category.WEIGHTED and linear)
        return False

    def share_concatenations(self) -> None:
        """Concatenations that feed one another, directly or through range-keeping operations, share one range."""
        for call in self.graph.calls:
            if self.categories[call] is not Category.SHARES_RANGE or call.outputs[0] not in self.plan.after:
                continue
            sources = [self._concat_behind(key) for key in masks.reals_of(call)]
            roots = [self.plan.shared.get(key, key) for key in sources if key is not None and key in self.plan.after]
            if roots:
                root = min(roots)
                merged = {key for key, old in self.plan.shared.items() if old in roots}
                for key in merged | set(roots) | {call.outputs[0]}:
                    self.plan.shared[key] = root

    def _concat_behind(self, key: int) -> int | None:
        key = self._origin(key)
        call = self.graph.producers.get(key)
        return key if call is not None and self.categories[call] is Category.SHARES_RANGE else None
