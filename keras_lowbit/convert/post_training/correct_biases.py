"""correct_biases: the mean error that quantizing brings into each channel, taken out of its bias."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import stock_kind
from keras_lowbit.data import Batches
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of, inputs_in_order, run_calls
from keras_lowbit.keras_graph.variables import to_numpy


def correct_biases(
    quantized: keras.Model,
    reference: keras.Model,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int | bool = 1,
) -> dict[str, float]:
    """Change the biases of a calibrated model so that no channel's mean output is shifted by quantization.

    Layer by layer in running order: ``b_k += mean(y_k of the float model) - mean(y_k of the quantized one)``, y the output of
    the layer before its activation, the mean over samples and positions; each layer sees the corrected ones before it.
    Nothing else changes. All of `data` are in memory at once, layer by layer: a few dozen images are enough.

    quantized: what `quantize_model` made of `reference` (Functional or Sequential), calibrated; changed in place.
    reference: the float model, folded, with layers of the same paths.
    data, batch_size, steps, verbose: as for `calibrate`.
    Returns path of each corrected layer -> the largest shift of its channels, in the units of its output. Layers without a
    bias, shared layers and those whose bias is quantized stay as they are. Of a separable convolution the pointwise half,
    which has its path and bias, is corrected for both.
    Raises ValueError if no layer of the two models matches.
    Nagel et al. 2019, arXiv:1906.04721, section 4.2, empirical form (appendix D).
    """
    means: dict[str, np.ndarray] = {}  # of the float model
    shifts: dict[str, float] = {}

    def remember(call: Call, values: list[dict[int, Any]]) -> None:
        means[call.path] = mean_output(call, values)

    def correct(call: Call, values: list[dict[int, Any]]) -> None:
        shift = means[call.path] - mean_output(call, values)
        call.operation.bias.assign(to_numpy(call.operation.bias) + shift.astype(np.float32))
        shifts[call.path] = float(np.abs(shift).max())

    layer_by_layer(quantized, reference, Batches(data, batch_size, steps, verbose), remember, correct)
    return shifts


Visit = Callable[[Call, list[dict[int, Any]]], None]


def layer_by_layer(
    quantized: keras.Model, reference: keras.Model, batches: Batches, remember: Visit, change: Visit
) -> None:
    """Run all batches through the float model, then through the quantized one, and stop at the layers that match.

    remember: sees a call of `reference` before it runs, and the values of every batch.   change: the same of `quantized`; it
    may change the layer, which the next ones then see.   ValueError if no layer of the two models matches.
    """
    arrays = list(batches)
    graphs = [calls_of(model, inline=True) for model in (reference, quantized)]
    targets = correctable(graphs[1], graphs[0])
    if not targets:
        raise ValueError(
            f"No quantized layer with a bias of {quantized.name!r} has a float one of the same path in {reference.name!r}. "
            "Give the model that was quantized, its batch norms folded."
        )
    bar = keras.utils.Progbar(len(targets), verbose=1 if batches.verbose else 0, unit_name="layer")

    def change_and_count(call: Call, values: list[dict[int, Any]]) -> None:
        change(call, values)
        bar.add(1)

    for model, graph, visit in zip((reference, quantized), graphs, (remember, change_and_count), strict=True):
        _visit(graph, [inputs_in_order(model, batch) for batch in arrays], targets, visit)


def _visit(graph: CallGraph, batches: list[list[Any]], paths: list[str], visit: Visit) -> None:
    """Run all batches call by call; before the calls of some paths show the call and the values of every batch."""
    values = [dict(zip(graph.inputs, map(keras.ops.convert_to_tensor, batch), strict=True)) for batch in batches]
    run_calls(graph.calls, values, before=lambda call: visit(call, values) if call.path in paths else None)


def correctable(graph: CallGraph, reference: CallGraph) -> list[str]:
    """Paths of quantized calls with a plain bias that run once and have a twin."""
    return [call.path for call, reason in candidates(graph, reference) if reason is None]


def candidates(graph: CallGraph, reference: CallGraph) -> list[tuple[Call, str | None]]:
    """Every call of a quantized layer, and why it is not `correctable`, None if it is.

    The pointwise half of a separable convolution has its name, and the whole of it as its twin.
    """
    twins = {call.path for call in reference.calls if hasattr(call.operation, "kernel") or _is_separable(call)}

    def reason(call: Call) -> str | None:
        layer = call.operation
        if call.path not in twins:
            return "no layer of its path in the float model"
        if graph.uses(layer) > 1:
            return f"shared: it runs {graph.uses(layer)} times"
        if layer.bias is None:
            return "it has no bias"
        return None if layer.bias_quantizer is None else "its bias is quantized"

    return [(call, reason(call)) for call in graph.calls if isinstance(call.operation, klb_layers.QuantizedLayer)]


def _is_separable(call: Call) -> bool:
    return stock_kind(call.operation) == "SeparableConv2D"


def mean_output(call: Call, values: list[dict[int, Any]]) -> np.ndarray:
    """Mean of every channel before the activation, over all batches, float64."""
    total, count = np.float64(0.0), 0
    for known in values:
        output = keras.ops.convert_to_numpy(keras.ops.cast(_linear_output(call, known), "float32"))
        total = total + output.reshape(-1, output.shape[-1]).sum(axis=0, dtype=np.float64)
        count += output.size // output.shape[-1]
    return np.asarray(total / count)


def _linear_output(call: Call, values: dict[int, Any]) -> Any:
    """What the call's layer gives before its activation: linear operation and bias, kernel quantized if it is."""
    layer, source = call.operation, values[call.inputs[0]]
    if isinstance(layer, klb_layers.QuantizedLayer):
        source = keras.ops.cast(source, layer.compute_dtype)
        return keras.ops.add(layer.linear(source, False), keras.ops.cast(layer.bias, layer.compute_dtype))
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        return layer(source)
    finally:
        layer.activation = activation
