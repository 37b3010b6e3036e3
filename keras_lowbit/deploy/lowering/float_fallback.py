"""Float islands: what has no integer form runs in float between explicit dequantize and quantize nodes, and is listed."""

from collections.abc import Callable, Sequence
from typing import Any

from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, fallback_reason
from keras_lowbit.deploy.graph.float_subgraph import origins
from keras_lowbit.deploy.lowering.float_convert import as_converted, convert_island
from keras_lowbit.deploy.lowering.state import Island, Lowering
from keras_lowbit.deploy.lowering.values import Floating, Part, Trail
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import QuantizedLayer

BOUNDED = ("softmax", "sigmoid")


def lower_island(state: Lowering, call: Call) -> bool:
    """A whole call in float."""

    def run(*values: Any) -> list[Any]:
        return call.run(dict(zip(call.inputs, values, strict=True)))

    sources = [state.floating(key) for key in call.inputs]
    trail = sources[0].trail.add(*(source.trail for source in sources[1:]), call=call)
    _insert(state, call, run, sources, trail, call.path)
    state.islands.append(Island(call.path, _reason(call)))
    return True


def activation_island(state: Lowering, call: Call, key: int, part: Part) -> bool:
    """Only the activation of a quantized layer in float; its operation is stored under `key`."""
    source = state.floating(key)
    trail = source.trail.add(call=part)
    name = activation_name(call.operation)
    _insert(state, call, lambda value: [part.function(value)], [source], trail, f"{call.path}/activation")
    named = f"activation {name!r}" if name != "?" else "activation"
    state.islands.append(Island(call.path, f"its {named} has no integer form; the layer itself is in integers"))
    return True


def _insert(
    state: Lowering,
    call: Call,
    run: Callable[..., list[Any]],
    sources: Sequence[Floating],
    trail: Trail,
    name: str,
) -> None:
    """The island's node, which computes each value once; the call's outputs become its float outputs."""
    given = [source.tensor for source in sources]
    shapes = [state.builder.tensor(tensor).shape[1:] for tensor in given]
    what = f"{call.path!r} ({type(call.operation).__name__})"
    with as_converted(call.operation):
        model = convert_island(run, shapes, what, state.batch_size)
        found = origins(model, name)
        kept = sorted({place for place in found if place >= 0})
        if kept and kept != found:
            model = convert_island(lambda *v: [run(*v)[place] for place in kept], shapes, what, state.batch_size)
    made = state.builder.float_island(given, model, state.name(name)) if kept else []
    tensors = dict(zip(kept, made, strict=True)) | {~place: tensor for place, tensor in enumerate(given)}
    bounded = activation_name(call.operation) in BOUNDED
    for key, place in zip(call.outputs, found, strict=True):
        state.values[key] = Floating(tensors[place], trail, bounded)


def _reason(call: Call) -> str:
    operation, kind = call.operation, type(call.operation).__name__
    role = category_of(call)
    if role is Category.FLOAT:
        return fallback_reason(call)
    if role is not Category.WEIGHTED:
        return f"{kind} stands between operations in float"
    if not isinstance(operation, QuantizedLayer) or operation.kernel_host is None:
        return f"{kind} is not quantized"
    name = activation_name(operation)
    return f"{kind} has the activation {name!r} and no output_quantizer: its sums have no range"
