"""Which calls of a quantized model run in float, joined into parts that the file can hold each as one subgraph.

A call runs in float if it has no integer form, or if it reads a value without a range. Calls that read one another's
values are one part, unless an integer operation stands between them that needs the first and is needed by the second.
"""

import dataclasses
from collections.abc import Iterable

from keras_lowbit.convert.analysis.masks import reals_of
from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, lacks_int16
from keras_lowbit.deploy.lowering.activations import deferred_activation, has_fixed_range
from keras_lowbit.deploy.lowering.ranges import codes_of, reads_bytes, stored_inputs, uses_int16
from keras_lowbit.keras_graph.calls import Call, CallGraph
from keras_lowbit.keras_graph.depth import true_of_all
from keras_lowbit.layers import KeepFloat, QuantizedLayer


@dataclasses.dataclass(frozen=True, eq=False)
class FloatPart:
    """Calls that run in float together, in running order.

    reads: keys of the tensors that come from outside.   gives: keys of those that something outside reads.
    """

    calls: tuple[Call, ...]
    reads: tuple[int, ...]
    gives: tuple[int, ...]


def float_calls(graph: CallGraph) -> set[Call]:
    """The calls that run in float. A `KeepFloat` is one of them only where a call in float makes what it reads."""
    values = set(graph.inputs) - stored_inputs(graph)
    kept: set[int] = set()  # behind a KeepFloat
    found, wide = set(), uses_int16(graph)
    for call in graph.calls:
        if isinstance(call.operation, KeepFloat):
            kept |= set(call.outputs)
            runs = graph.producers.get(call.inputs[0]) in found
        else:
            runs = _runs_in_float(call, values, kept) or _lacks_range(graph, call)
            runs = runs or (category_of(call) is Category.PIXELS and not reads_bytes(graph, call))
            runs = runs or (wide and lacks_int16(call, category_of(call)) is not None)
        if runs:
            found.add(call)
        made = zip(call.outputs, call.results, strict=True)
        values |= {key for key, result in made if "float" not in str(result.dtype)}
        if runs or isinstance(call.operation, KeepFloat) or _ends_in_float(call):
            values |= set(call.outputs)
    return found


def _runs_in_float(call: Call, values: set[int], kept: set[int]) -> bool:
    category, operation = category_of(call), call.operation
    if category is Category.WEIGHTED and isinstance(operation, QuantizedLayer):
        # Behind another value without a range it is an error: a range was forgotten.
        has_range = operation.activation_fuses or operation.output_host is not None
        return operation.kernel_host is None or not has_range or not kept.isdisjoint(call.inputs)
    if category in (Category.WEIGHTED, Category.FLOAT):
        return True
    exact = (Category.RANGE_LAYER, Category.LOOKUP, Category.MASK)
    return category not in exact and not values.isdisjoint(reals_of(call))


def _lacks_range(graph: CallGraph, call: Call) -> bool:
    """Whether a function of one value, a row of a table or a mask as reals has no range behind it: what reads it needs it
    exactly."""
    category = category_of(call)
    of_mask = category is Category.SHARES_RANGE and not reals_of(call)
    return (of_mask or category in (Category.FUNCTION, Category.LOOKUP)) and not _has_range(graph, call.outputs[0])


def _has_range(graph: CallGraph, key: int) -> bool:
    """Whether all that reads a tensor is a range, behind operations at most whose parts share one."""

    def ranges(key: int) -> bool | list[int]:
        readers = [reader for reader in graph.consumers(key) if category_of(reader) is not Category.RANGE_LAYER]
        if any(category_of(reader) is not Category.SHARES_RANGE for reader in readers):
            return False
        return [reader.outputs[0] for reader in readers] or bool(graph.consumers(key))

    return true_of_all(key, ranges)


def _ends_in_float(call: Call) -> bool:
    """Whether a layer in integers has an activation without an integer form."""
    operation, name = call.operation, activation_name(call.operation)
    if not isinstance(operation, QuantizedLayer) or operation.activation_fuses:
        return False
    codes = "int8" if operation.output_host is None else codes_of(operation.output_host.quantizer)
    return not has_fixed_range(name) and deferred_activation(call, name, codes) is None


def schedule(graph: CallGraph) -> list[Call | FloatPart]:
    """All calls in an order in which they can run, those in float as parts."""
    floats = float_calls(graph)
    levels = _levels(graph, floats)
    found: list[tuple[int, bool, Call | FloatPart]] = [
        (levels[call], False, call) for call in graph.calls if call not in floats
    ]
    found += [(levels[part.calls[0]], True, part) for part in _parts(graph, floats, levels)]
    return [step for _, _, step in sorted(found, key=lambda entry: entry[:2])]


def _levels(graph: CallGraph, floats: set[Call]) -> dict[Call, int]:
    """How often the values that a call needs went from float to integers; calls in float as late as their readers allow.

    At one level the integer operations come first.
    """
    found: dict[Call, int] = {}
    for call in graph.calls:
        makers = [graph.producers[key] for key in call.inputs if key in graph.producers]
        found[call] = max((found[m] + (m in floats and call not in floats) for m in makers), default=0)
    for call in reversed(graph.calls):
        readers = [reader for key in call.outputs for reader in graph.consumers(key)]
        if call in floats and readers:
            found[call] = min(found[reader] - (reader not in floats) for reader in readers)
    return found


def _parts(graph: CallGraph, floats: set[Call], levels: dict[Call, int]) -> Iterable[FloatPart]:
    group: dict[Call, list[Call]] = {}
    for call in graph.calls:
        if call not in floats:
            continue
        group[call] = [call]
        for key in call.inputs:
            maker = graph.producers.get(key)
            if maker in floats and levels[maker] == levels[call] and group[maker] is not group[call]:
                _join(group, group[maker], group[call])
    place = {call: index for index, call in enumerate(graph.calls)}
    for members in {id(members): members for members in group.values()}.values():
        yield _part(graph, sorted(members, key=lambda call: place[call]))


def _join(group: dict[Call, list[Call]], first: list[Call], second: list[Call]) -> None:
    first.extend(second)
    group.update(dict.fromkeys(second, first))


def _part(graph: CallGraph, calls: list[Call]) -> FloatPart:
    made = {key for call in calls for key in call.outputs}
    reads = dict.fromkeys(key for call in calls for key in call.inputs if key not in made)
    gives = dict.fromkeys(
        key
        for call in calls
        for key in call.outputs
        if key in graph.outputs or any(reader not in calls for reader in graph.consumers(key))
    )
    return FloatPart(tuple(calls), tuple(reads), tuple(gives))
