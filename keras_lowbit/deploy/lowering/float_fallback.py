"""Float fallback: what has no integer form runs in float between explicit dequantize and quantize nodes, and is listed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_lowbit.convert.analysis.operations import (
    Category,
    activation_name,
    category_of,
    fallback_reason,
    lacks_int16,
    no_file_because,
)
from keras_lowbit.convert.expansion.signals import MOST_STEPS
from keras_lowbit.deploy.graph.float_subgraph import load, origins, read
from keras_lowbit.deploy.lowering.float_convert import check_batch, convert_to_float, in_float32, loops_in, unrolled
from keras_lowbit.deploy.lowering.float_forms import run_convertible
from keras_lowbit.deploy.lowering.float_parts import FloatPart
from keras_lowbit.deploy.lowering.ranges import uses_int16
from keras_lowbit.deploy.lowering.state import Lowering
from keras_lowbit.deploy.lowering.values import FloatFallback, FloatTensor, PartialCall, Provenance
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.layers import KeepFloat, QuantizedLayer


@dataclasses.dataclass(frozen=True)
class Piece:
    """What becomes one float subgraph. run: its outputs from its inputs.   operations: that it runs."""

    run: Callable[..., list[Any]]
    operations: Sequence[Any]
    description: str

    def giving(self, places: Sequence[int]) -> Callable[..., list[Any]]:
        """Only those of its outputs."""
        return lambda *values: [self.run(*values)[place] for place in places]


def lower_part(state: Lowering, part: FloatPart) -> None:
    """Calls that run in float together, as one node."""
    calls = [call for call in part.calls if not isinstance(call.operation, KeepFloat)]
    _check_stateless(calls)
    sources = {key: state.as_float(key, calls[-1].path) for key in part.reads}
    try:
        made = _insert(state, _piece(part, calls), list(sources.values()), calls[-1].path)
    except ValueError:
        if len(calls) > 1:
            _raise_for_one(calls, state.batch_size)
        raise
    provenances = _provenances(part, sources)
    for key, tensor in zip(part.gives, made, strict=True):
        state.values[key] = FloatTensor(tensor, provenances[key])
    state.float_fallbacks += [FloatFallback(call.path, _reason(call, uses_int16(state.calls))) for call in calls]


def _raise_for_one(calls: list[Call], batch_size: int) -> None:
    """What is wrong with one of several calls, if one alone cannot be in the file: the error that names it."""
    for call in calls:
        piece = _piece(FloatPart((call,), call.inputs, call.outputs), [call])
        shapes = [tuple(tensor.shape[1:]) for tensor in call.tensors]
        dtypes = ["float32" if "float" in str(tensor.dtype) else str(tensor.dtype) for tensor in call.tensors]
        with in_float32(piece.operations), unrolled(piece.operations):
            model = convert_to_float(piece.run, shapes, piece.description, batch_size, dtypes)
        if len(load(model, call.path).subgraphs) > 1:
            read(model, call.path)  # says why


def _piece(part: FloatPart, calls: list[Call]) -> Piece:
    loops = [call for call in calls if loops_in(call.operation)]

    def run(*given: Any) -> list[Any]:
        values = dict(zip(part.reads, given, strict=True))
        one_sample = any(value.shape[0] is not None for value in given)
        for call in part.calls:
            if call in loops:
                _check_steps(call, values)
            outputs = run_convertible(call, values)
            if not one_sample:
                check_batch(_described(call), outputs)
            values.update(zip(call.outputs, outputs, strict=True))
        return [values[key] for key in part.gives]

    shown = ", ".join(map(_described, calls[:4])) + (f" and {len(calls) - 4} more" if len(calls) > 4 else "")
    return Piece(run, [call.operation for call in calls], shown)


def _described(call: Call) -> str:
    return f"{call.path!r} ({type(call.operation).__name__})"


def _check_stateless(calls: list[Call]) -> None:
    """Refuses what one call hands to the next: a file gives equal results for equal inputs."""
    for call in calls:
        layers = call.operation._flatten_layers() if call.is_layer else ()
        if any(getattr(layer, "stateful", False) for layer in layers):
            raise ValueError(
                f"{_described(call)} keeps its state from one call to the next (stateful=True). A file written here gives "
                "equal results for equal inputs, so that it can be verified. Make the state an input and an output of the "
                "model: steps, state = GRU(8, unroll=True, return_state=True)(x, initial_state=state)."
            )


def check_lookups(calls: list[Call]) -> None:
    """Refuses what no file can hold, in float either, before anything else of it is: words are no inputs of a file."""
    for call in calls:
        if (refused := no_file_because(call)) is not None:
            raise ValueError(f"{_described(call)}: {refused}.")


def _check_steps(call: Call, values: Mapping[int, Any]) -> None:
    """Refuses a loop of many steps, each of which would be operators of the file."""
    steps = values[call.inputs[0]].shape[1]
    if steps is not None and steps > MOST_STEPS:
        raise ValueError(
            f"{_described(call)} runs {steps} steps in a loop, which a file written here has not: up to {MOST_STEPS} stand in "
            "it one by one. Give the model shorter sequences, or fewer steps with the state as an input and an output: "
            "steps, state = GRU(8, return_state=True)(x, initial_state=state)."
        )


def lower_float(state: Lowering, call: Call) -> None:
    """One call in float, all its outputs."""
    lower_part(state, FloatPart((call,), tuple(dict.fromkeys(call.inputs)), call.outputs))


def lower_activation_in_float(state: Lowering, call: Call, key: int, part: PartialCall) -> bool:
    """Only the activation of a quantized layer in float; its operation is stored under `key`."""
    source, name = state.as_float(key, call.path), activation_name(call.operation)
    piece = Piece(lambda value: [part.function(value)], [call.operation], _described(call))
    [made] = _insert(state, piece, [source], f"{call.path}/activation")
    state.values[call.outputs[0]] = FloatTensor(made, source.provenance.add(call=part))
    named = f"activation {name!r}" if name != "?" else "activation"
    state.float_fallbacks.append(
        FloatFallback(call.path, f"its {named} has no integer form; the layer itself is in integers")
    )
    return True


def _insert(state: Lowering, piece: Piece, sources: Sequence[FloatTensor], name: str) -> list[str]:
    """The float subgraph's node, which computes each value once; the names of the piece's outputs."""
    given = [source.tensor for source in sources]
    tensors = [state.builder.tensor(name) for name in given]
    shapes, dtypes = [tensor.shape[1:] for tensor in tensors], [tensor.dtype for tensor in tensors]
    with in_float32(piece.operations), unrolled(piece.operations):
        model = convert_to_float(piece.run, shapes, piece.description, state.batch_size, dtypes)
        found = origins(model, name)
        kept = sorted({place for place in found if place >= 0})
        if kept and kept != found:
            run = piece.giving(kept)
            model = convert_to_float(run, shapes, piece.description, state.batch_size, dtypes)
    made = state.builder.float_subgraph(given, model, state.name(name)) if kept else []
    by_place = dict(zip(kept, made, strict=True)) | {~place: tensor for place, tensor in enumerate(given)}
    return [by_place[place] for place in found]


def _provenances(part: FloatPart, sources: dict[int, FloatTensor]) -> dict[int, Provenance]:
    found = {key: source.provenance for key, source in sources.items()}
    for call in part.calls:
        first, *rest = (found[key] for key in call.inputs)
        found |= dict.fromkeys(call.outputs, first.add(*rest, call=call))
    return found


def _reason(call: Call, wide: bool) -> str:
    operation, kind = call.operation, type(call.operation).__name__
    category = category_of(call)
    if wide and (reason := lacks_int16(call, category)):
        return reason
    if category is Category.FLOAT:
        return fallback_reason(call)
    if category in (Category.FUNCTION, Category.LOOKUP):
        return f"{kind} is a table between two ranges only, and one is missing: it stays in float"
    if category is Category.MANY:
        return f"{kind} joins {len(call.inputs)} tensors, and no range stands behind each sum of two: it stays in float"
    if category is not Category.WEIGHTED:
        return f"{kind} reads a value without a range: it stays in float"
    if not isinstance(operation, QuantizedLayer) or operation.kernel_host is None:
        return f"{kind} is not quantized"
    if not operation.activation_fuses and operation.output_host is None:
        name = activation_name(operation)
        return f"{kind} has the activation {name!r} and no output_quantizer: its sums have no range"
    return f"{kind} is left in float"
