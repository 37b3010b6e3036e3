"""A model and the models inside it, with where each stands, what its calls are, and what of it runs in float."""

from typing import Any, NamedTuple

from keras_lowbit.convert.analysis.float_flow import Level, settle
from keras_lowbit.convert.analysis.operations import Category
from keras_lowbit.convert.analysis.pixels import know_ranges
from keras_lowbit.convert.choice import SKIP_LIST, Choice, Place
from keras_lowbit.keras_graph.calls import Call, calls_of, functional_of
from keras_lowbit.quantizers import ActivationRange, Quantizer


class Nested(NamedTuple):
    """One model of the nest. final: keys of those of its tensors that leave the outermost model."""

    level: Level
    place: Place
    final: set[int]


class Nest:
    """Every model of a nest, each once however often it is called."""

    def __init__(self, model: Any, choice: Choice) -> None:
        self._choice = choice
        self._found: dict[int, Nested] = {}  # by the id of the model
        self._read(model, Place())
        if choice.recipe.activations is not None:
            settle(self.of(model).level)
            if _is_of_any_scale(choice.recipe.activations):
                know_ranges(self.of(model).level)

    def of(self, model: Any) -> Nested:
        """What is known of one model."""
        return self._found[id(model)]

    def _read(self, model: Any, place: Place) -> Level:
        choice, graph = self._choice, calls_of(model)
        decided = {call: choice.category(call, place) for call in graph.calls}
        categories = {call: category for call, (category, _) in decided.items()}
        reasons = {call: reason for call, (_, reason) in decided.items()}
        level = Level(graph, categories, reasons, {call for call in graph.calls if reasons[call] == SKIP_LIST})
        names = (tensor._keras_history.operation.name for tensor in functional_of(model).inputs)
        level.chosen_inputs = {
            key for key, name in zip(graph.inputs, names, strict=True) if choice.keeps_input(name, place)
        }
        last = range(len(graph.outputs)) if place.last is None else place.last
        found = Nested(level, place, {graph.outputs[index] for index in last})
        self._found[id(model)] = found
        for call in graph.calls:
            if categories[call] is Category.NESTED_MODEL:
                self._enter(found, call)
        return level

    def _enter(self, found: Nested, call: Call) -> None:
        level, place, path = found.level, found.place, found.place.prefix + call.path
        if id(call.operation) not in self._found:
            unread = (i for i, key in enumerate(call.outputs) if key in found.final and not level.graph.consumers(key))
            shared = self._choice.uses(call.operation) > 1
            skipped = place.skipped or self._choice.skips(call.name, path)
            self._read(call.operation, Place(f"{path}/", shared, skipped, () if shared else tuple(unread)))
        level.inner[call] = self.of(call.operation).level
        level.inner[call].outer.append((level, call))


def _is_of_any_scale(quantizer: Quantizer) -> bool:
    """Whether ranges of a quantizer may be given by minimum and maximum: powers of two, and fewer bits, stay the recipe's."""
    base = getattr(quantizer, "base", quantizer)
    return type(base) is ActivationRange and base.bits == 8 and not base.has_static_range
