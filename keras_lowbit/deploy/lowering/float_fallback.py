"""Float fallback: what has no integer form runs in float between explicit dequantize and quantize nodes, and is listed."""

from collections.abc import Callable, Sequence
from typing import Any

from keras_lowbit.convert.analysis.operations import Category, activation_name, category_of, fallback_reason
from keras_lowbit.deploy.graph.float_subgraph import origins
from keras_lowbit.deploy.lowering.float_convert import convert_to_float, in_float32
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.deploy.lowering.values import FloatFallback, FloatTensor, PartialCall, Provenance
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import QuantizedLayer


def lower_float(state: Lowering, call: Call) -> bool:
    """A whole call in float."""

    def run(*values: Any) -> list[Any]:
        return call.run(dict(zip(call.inputs, values, strict=True)))

    sources = [state.as_float(key) for key in call.inputs]
    provenance = sources[0].provenance.add(*(source.provenance for source in sources[1:]), call=call)
    _insert(state, call, run, sources, provenance, call.path)
    state.float_fallbacks.append(FloatFallback(call.path, _reason(call)))
    return True


def lower_activation_in_float(state: Lowering, call: Call, key: int, part: PartialCall) -> bool:
    """Only the activation of a quantized layer in float; its operation is stored under `key`."""
    source = state.as_float(key)
    provenance = source.provenance.add(call=part)
    name = activation_name(call.operation)
    _insert(state, call, lambda value: [part.function(value)], [source], provenance, f"{call.path}/activation")
    named = f"activation {name!r}" if name != "?" else "activation"
    state.float_fallbacks.append(
        FloatFallback(call.path, f"its {named} has no integer form; the layer itself is in integers")
    )
    return True


def _insert(
    state: Lowering,
    call: Call,
    run: Callable[..., list[Any]],
    sources: Sequence[FloatTensor],
    provenance: Provenance,
    name: str,
) -> None:
    """The float subgraph's node, which computes each value once; the call's outputs become its float outputs."""
    given = [source.tensor for source in sources]
    shapes = [state.builder.tensor(tensor).shape[1:] for tensor in given]
    description = f"{call.path!r} ({type(call.operation).__name__})"
    with in_float32(call.operation):
        model = convert_to_float(run, shapes, description, state.batch_size)
        found = origins(model, name)
        kept = sorted({place for place in found if place >= 0})
        if kept and kept != found:
            model = convert_to_float(
                lambda *v: [run(*v)[place] for place in kept], shapes, description, state.batch_size
            )
    made = state.builder.float_subgraph(given, model, state.name(name)) if kept else []
    tensors = dict(zip(kept, made, strict=True)) | {~place: tensor for place, tensor in enumerate(given)}
    for key, place in zip(call.outputs, found, strict=True):
        state.values[key] = FloatTensor(tensors[place], provenance)


def _reason(call: Call) -> str:
    operation, kind = call.operation, type(call.operation).__name__
    category = category_of(call)
    if category is Category.FLOAT:
        return fallback_reason(call)
    if category is not Category.WEIGHTED:
        return f"{kind} stands between operations in float"
    if not isinstance(operation, QuantizedLayer) or operation.kernel_host is None:
        return f"{kind} is not quantized"
    name = activation_name(operation)
    return f"{kind} has the activation {name!r} and no output_quantizer: its sums have no range"
