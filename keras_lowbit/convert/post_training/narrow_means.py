"""Ranges of means that hold rounding errors alone, as behind a normalization: LiteRT could not form their codes."""

from typing import Any

from keras_lowbit.convert.analysis.operations import is_wide, stock_kind
from keras_lowbit.keras_graph.calls import CallGraph, calls_of, is_graph_model
from keras_lowbit.layers import QuantActivation

_MEANS = ("Mean", "GlobalAveragePooling1D", "GlobalAveragePooling2D")
# Of the range of what is averaged. A mean of K codes is a whole number of K-th parts of a step: up to K = 128 nothing but zero
# lies below it, and of more codes nothing that another 8-bit operation on what is averaged could show.
LEAST = 2.0**-15
# In 16 bits a mean may be finer, but not than float32 forms it of values of that size: 2**-23 of them is a step of this range.
LEAST_16 = 2.0**-7

Ranges = dict[str, tuple[float, float]]


def widened_means(model: Any, found: Ranges) -> Ranges:
    """The ranges (path -> minimum and maximum), those of means at least `LEAST` of what is averaged, around zero."""
    if not is_graph_model(model):
        return found
    graph, widened = calls_of(model, inline=True), dict(found)
    for call in graph.calls:
        producer, path = graph.producers.get(call.inputs[0]) if call.inputs else None, f"{call.path}/output_quantizer"
        if not isinstance(call.operation, QuantActivation) or producer is None or path not in found:
            continue
        source = _range_before(graph, producer.inputs[0], found) if stock_kind(producer.operation) in _MEANS else None
        least = LEAST_16 if is_wide(call.operation.quantizer) else LEAST
        if source is not None and found[path][1] - found[path][0] < least * (source[1] - source[0]):
            half = least / 2 * (source[1] - source[0])
            widened[path] = (min(found[path][0], -half), max(found[path][1], half))
    return widened


def _range_before(graph: CallGraph, key: int, found: Ranges) -> tuple[float, float] | None:
    """The last range that a tensor went through; None if there is none."""
    call = graph.producers.get(key)
    while call is not None:
        if (path := f"{call.path}/output_quantizer") in found:
            return found[path]
        call = graph.producers.get(call.inputs[0]) if call.inputs else None
    return None
