"""Where activation ranges belong, so that training sees what the int8 integer pipeline will compute.

A range stands after each value the integer pipeline stores: inputs; the result of a weighted layer, after the batch
norm and the relu that fuse with it; sums, products, concatenations; the result of a float operation. Operations that
only move or select values keep the range of their input.
"""

import dataclasses
from collections.abc import Container

from keras_lowbit.convert.analysis.operations import FIXED_RANGES, KINDS, Category, activation_name, fuses, stock_kind
from keras_lowbit.keras_graph.calls import Call, CallGraph
from keras_lowbit.quantizers import ActivationRange, Quantizer

# Operations whose integer form can carry a relu at its end.
_TAKES_RELU = {"Add", "Subtract", "Multiply", "Rescaling", "Normalization"}
_ENDS_WITH_ACTIVATION = {*KINDS, "Activation", "Softmax", "Sigmoid"}
_PROBABILITIES = ("softmax", "sigmoid")


@dataclasses.dataclass
class RangePlan:
    """after: key of a tensor -> quantizer of the range that stands behind it.
    own: weighted calls -> quantizer of the range in the layer itself: before an activation that does not fuse, or at the
    end of a layer that gives one of several outputs its name.
    shared: key of a concatenation's result -> key of the first concatenation of its group, whose range it shares.
    """

    after: dict[int, Quantizer] = dataclasses.field(default_factory=dict)
    own: dict[Call, Quantizer] = dataclasses.field(default_factory=dict)
    shared: dict[int, int] = dataclasses.field(default_factory=dict)

    def move_into(self, call: Call) -> None:
        """Put the range behind a weighted call whose activation fuses into its layer, where it means the same."""
        if fuses(call.operation) and call.outputs[0] in self.after:
            self.own[call] = self.after.pop(call.outputs[0])


def plan_ranges(
    graph: CallGraph,
    categories: dict[Call, Category],
    activation: Quantizer | None,
    final: Container[int],
    nested: bool = False,
) -> RangePlan:
    """The ranges of one model (one level: nested models plan their own).

    activation: the quantizer of ranges learned from data; None plans nothing.   final: keys of the tensors that
    leave the whole model; a softmax or sigmoid there gets no range.   nested: the inputs carry ranges already.
    """
    plan = RangePlan()
    if activation is None:
        return plan
    planner = _Planner(graph, categories, activation, final, plan)
    if not nested:
        for key in graph.inputs:
            planner.after(key, activation)
    for call in graph.calls:
        planner.visit(call)
    planner.share_concatenations()
    return plan


def _function(call: Call) -> str:
    """The name of the function a call ends with: its own activation, or itself."""
    return "softmax" if stock_kind(call.operation) == "Softmax" else activation_name(call.operation)


class _Planner:
    def __init__(
        self,
        graph: CallGraph,
        categories: dict[Call, Category],
        activation: Quantizer,
        final: Container[int],
        plan: RangePlan,
    ) -> None:
        self.graph, self.categories, self.activation, self.final, self.plan = graph, categories, activation, final, plan

    def visit(self, call: Call) -> None:
        category = self.categories[call]
        if category in (Category.KEEPS_RANGE, Category.RANGE_LAYER, Category.NESTED_MODEL):
            return
        if category is Category.WEIGHTED:
            self._weighted(call)
        elif category is Category.FLOAT:
            self._float(call)
        elif category is Category.FIXED_RANGE or (
            stock_kind(call.operation) in ("Softmax", "Activation") and category is Category.NEEDS_RANGE
        ):
            self._bounded(call)
        elif not self._waits(call):
            self.after(call.outputs[0], self.activation)

    def after(self, key: int, quantizer: Quantizer) -> None:
        """Put a range behind a tensor, unless it is not float or a range that is there already reads it."""
        consumer = self.graph.only_consumer(key)
        in_place = consumer is not None and self.categories[consumer] is Category.RANGE_LAYER
        if "float" in str(self.graph.tensors[key].dtype) and not in_place:
            self.plan.after[key] = quantizer

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
        name, key = _function(call), call.outputs[0]
        if name in _PROBABILITIES and key in self.final and not self.graph.consumers(key):
            return
        fixed = FIXED_RANGES.get("sigmoid" if name == "softmax" else name)
        self.after(key, self.activation if fixed is None else ActivationRange(minimum=fixed[0], maximum=fixed[1]))

    def _float(self, call: Call) -> None:
        # Of stock layers only: what a user's layer does with its activation is unknown.
        if stock_kind(call.operation) in _ENDS_WITH_ACTIVATION and _function(call) in _PROBABILITIES:
            return self._bounded(call)
        for key in call.outputs:
            readers = self.graph.consumers(key)
            if not readers or any(self.categories[reader] is not Category.FLOAT for reader in readers):
                self.after(key, self.activation)
        return None

    def _waits(self, call: Call) -> bool:
        """Whether the range comes later: behind a batch norm, relu or concatenation that takes this result in."""
        reader = self.graph.only_consumer(call.outputs[0])
        if reader is None:
            return False
        reader_category = self.categories[reader]
        if reader_category is Category.SHARES_RANGE:
            return True
        linear = activation_name(call.operation) == "linear"
        if reader_category is Category.BATCH_NORM:
            return self.categories[call] is Category.WEIGHTED and linear
        if reader_category is Category.RELU:
            category = self.categories[call]
            takes = category is Category.NEEDS_RANGE and stock_kind(call.operation) in _TAKES_RELU
            return takes or category is Category.BATCH_NORM or (category is Category.WEIGHTED and linear)
        return False

    def share_concatenations(self) -> None:
        """Concatenations that feed one another, directly or through range-keeping operations, share one range."""
        for call in self.graph.calls:
            if self.categories[call] is not Category.SHARES_RANGE or call.outputs[0] not in self.plan.after:
                continue
            sources = [self._concat_behind(key) for key in call.inputs]
            roots = [self.plan.shared.get(key, key) for key in sources if key is not None and key in self.plan.after]
            if roots:
                root = min(roots)
                merged = {key for key, old in self.plan.shared.items() if old in roots}
                for key in merged | set(roots) | {call.outputs[0]}:
                    self.plan.shared[key] = root

    def _concat_behind(self, key: int) -> int | None:
        call = self.graph.producers.get(key)
        while call is not None and self.categories[call] is Category.KEEPS_RANGE and call.inputs:
            key = call.inputs[0]
            call = self.graph.producers.get(key)
        return key if call is not None and self.categories[call] is Category.SHARES_RANGE else None
