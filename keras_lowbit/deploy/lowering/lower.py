"""lower: a trained quantized Keras model becomes an IntegerGraph.

The model's calls are walked once in running order. Each Keras tensor is a `QuantizedTensor`, a `DeferredOp` that waits for
the range behind it (batch norms and a relu fuse meanwhile), or a `FloatTensor`. Operations the integer graph does not know,
and those that read values without a range, run in float between explicit dequantize and quantize nodes, and are listed.
"""

import dataclasses
import threading
import warnings
from typing import Any

import keras

from keras_lowbit.convert.analysis.operations import Category, category_of, stock_kind
from keras_lowbit.convert.analysis.supported import DROPOUTS
from keras_lowbit.data.batching import Progress
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.lowering import int8_overflow as overflow_
from keras_lowbit.deploy.lowering.arguments import check_model, check_not_packed
from keras_lowbit.deploy.lowering.float_fallback import check_lookups, lower_part
from keras_lowbit.deploy.lowering.float_parts import FloatPart, schedule
from keras_lowbit.deploy.lowering.handlers import lower_call
from keras_lowbit.deploy.lowering.ranges import range_of
from keras_lowbit.deploy.lowering.state import Lowering, RangeOf
from keras_lowbit.deploy.lowering.values import FloatFallback, LoweredLayer, Segment
from keras_lowbit.keras_graph.calls import calls_of, find_layers
from keras_lowbit.keras_graph.variables import not_finite, refuse_keras_quantization
from keras_lowbit.layers import KeepFloat
from keras_lowbit.layers.find import hosts

#: Layers are renamed while they are converted to what runs in float, and standard output is turned away. One thread at a time
#: lowers, and whoever reads layers by their names meanwhile holds this too: else names of another thread's conversion would be
#: taken for the layers' own, and put back as such for good.
LOWERING = threading.RLock()


@dataclasses.dataclass
class Lowered:
    """An integer graph with its ties to the Keras model: what `verify` and reports need beside the graph.

    unrounded: path of a call whose result only the graph rounds to int8 -> path of the first call that computes with it.
    """

    graph: IntegerGraph
    segments: list[Segment]
    layers: dict[str, LoweredLayer]  # by node: a shared layer has several
    float_fallbacks: list[FloatFallback]
    input_keys: dict[str, int]
    unrounded: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def overflows(self) -> dict[str, overflow_.Overflow]:
        """Path of every layer whose weights were altered to fit int8 -> what that changed."""
        return {layer.path: layer.overflow for layer in self.layers.values() if layer.overflow is not None}


def lower(model: keras.Model, input_shapes: Any = None, overflow: str = overflow_.DEFAULT) -> IntegerGraph:
    """The integer graph of a quantized model: int8 codes, scales, zero points, int32 biases, nothing else.

    model: from `quantize_model`, or built from the drop-in layers; every range seen in `calibrate` or `fit`.
    input_shapes: shapes without batch for inputs of variable size, a tuple or {input name: tuple}.
    overflow: what to do with codes beyond 127, as in `export_litert`; a UserWarning says what it altered. Another one names
    what only the graph rounds, which may be so in models that were not made by `quantize_model`.
    Returns an `IntegerGraph`.
    Raises ValueError before calibration, for a value with no range, for ranges that are not 8 bits, and for a bias
    that does not fit int32.

    >>> graph = klb.deploy.lower(quantized)
    >>> codes = klb.deploy.run_reference(graph, images[:4])
    """
    check_model(model, "lower")
    check_not_packed(model, "lower")
    lowered = lower_model(model, input_shapes, overflow=overflow)
    overflow_.warn(lowered.overflows)
    warn_of_unrounded(lowered)
    return lowered.graph


def warn_of_unrounded(lowered: Lowered) -> None:
    """A UserWarning, if the graph rounds where Keras goes on with finer values, for the caller of the calling function."""
    if lowered.unrounded:
        pairs = ", ".join(f"{path!r} (read by {reader!r})" for path, reader in lowered.unrounded.items())
        warnings.warn(
            f"Only the file rounds these results to codes; the Keras model goes on with finer values than a device: {pairs}. "
            "Put keras_lowbit.layers.QuantActivation behind each of them (behind bilinear resizing the range in front of it, "
            "called with observe=False), or convert the float model with keras_lowbit.quantize_model, which does.",
            stacklevel=3,
        )


def lower_model(
    model: keras.Model,
    input_shapes: Any = None,
    batch_size: int = 1,
    range_of: RangeOf = range_of,
    overflow: str = overflow_.DEFAULT,
    verbose: int | bool = 0,
) -> Lowered:
    """As `lower`, with the graph's ties to the Keras model, and without the warning.

    batch_size: what float subgraphs are converted for.   range_of: gives the range of a quantizer; that which it has learnt.
    """
    refuse_keras_quantization(model)
    if not hosts(model) and not find_layers(model, KeepFloat):
        raise ValueError(
            f"{model.name!r} has no quantized layer and no activation range. Quantize it first: "
            "keras_lowbit.quantize_model(model, 'int8')."
        )
    _check_finite(model)
    with LOWERING:
        return _lowered(model, input_shapes, batch_size, range_of, overflow, verbose)


def _lowered(
    model: keras.Model, input_shapes: Any, batch_size: int, range_of: RangeOf, overflow: str, verbose: int | bool
) -> Lowered:
    _check_inference(model)
    calls = calls_of(model, inline=True)
    check_lookups(calls.calls)
    state = Lowering(model, calls, input_shapes, batch_size, range_of, overflow)
    steps = schedule(state.calls)
    state.in_float.update(call for step in steps if isinstance(step, FloatPart) for call in step.calls)
    bar = Progress(len(steps), "operation", verbose)
    for step in steps:
        if isinstance(step, FloatPart):
            lower_part(state, step)
        else:
            lower_call(state, step)
        bar.advance()
    graph = state.builder.build(state.outputs(), _in_model_order(state), _notes(state))
    return Lowered(graph, state.segments, state.layers, state.float_fallbacks, state.input_keys, state.unrounded)


def _notes(state: Lowering) -> dict[str, Any]:
    """What the file says about itself: what runs in float, and which weights were altered to fit int8."""
    notes: dict[str, Any] = {"float_fallbacks": [dataclasses.asdict(found) for found in state.float_fallbacks]}
    altered = {layer.path: dataclasses.asdict(layer.overflow) for layer in state.layers.values() if layer.overflow}
    if altered:
        notes["overflow"] = {"policy": state.overflow, "layers": altered}
    return notes | ({"byte_inputs": state.byte_inputs} if state.byte_inputs else {})


def _in_model_order(state: Lowering) -> list[str]:
    """The graph's inputs as the model lists them; they were found in the order in which they are read."""
    read = state.builder.inputs
    unread = [name for name in state.input_keys if name not in read]
    if unread:
        raise ValueError(f"Nothing in the model reads its input {unread[0]!r}. Build the model without that input.")
    return list(state.input_keys)


def _check_finite(model: keras.Model) -> None:
    if found := not_finite(model):
        raise ValueError(
            f"{found}; integers cannot stand for them. Train again with a smaller learning rate, or load a checkpoint from "
            "before they appeared."
        )


def _check_inference(model: Any, prefix: str = "", training: bool = False) -> None:
    """Refuses layers that a call with training=True, their own or one of a model around them, keeps in training."""
    for call in calls_of(model).calls:
        always = training or call.arguments.kwargs.get("training") is True
        path, kind = prefix + call.path, stock_kind(call.operation)
        if category_of(call) is Category.NESTED_MODEL:
            _check_inference(call.operation, f"{path}/", always)
        elif always and kind in ("BatchNormalization", *DROPOUTS):
            does = "takes each batch's own statistics" if kind == "BatchNormalization" else "draws at random"
            raise ValueError(
                f"{path!r} is called with training=True: this {kind} {does} in inference too, which a file cannot do. "
                "Build the model again without training=True, give it the weights (new.set_weights(model.get_weights())), "
                "then quantize and export that one."
            )
