"""Corrections of one layer after the other, in a quantized model beside its float one."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import activation_name, stock_kind
from keras_lowbit.convert.analysis.supported import DROPOUTS
from keras_lowbit.convert.expansion.expand import expand
from keras_lowbit.data.batching import Progress
from keras_lowbit.guard import Samples, Verdict, guarded, noise, outputs_of, say_left_out
from keras_lowbit.keras_graph.calls import Call, CallGraph, calls_of, inputs_in_order, run_calls

# Functions of each value alone that may stand behind a layer; the next layer reads what leaves them.
_ELEMENTWISE = (
    "linear relu relu6 leaky_relu elu selu celu silu swish hard_silu hard_swish gelu mish softplus softsign sigmoid "
    "hard_sigmoid tanh hard_tanh"
).split()
_ELEMENTWISE_KINDS = ("ReLU", "LeakyReLU", "ELU", "Relu", "Relu6", "LeakyRelu", "Elu", "Gelu", "Identity", *DROPOUTS)
_JUDGING_ROWS = 4096  # of each layer's output that judge it: all layers of the float model are in memory

Function = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Step:
    """One layer of either model, about to run.

    call: of the layer.   values: by key, for every batch, first those a change is made from, `fitted` of them, then those
    that judge it.   activation: what the next layer reads, as a function of the layer's sums; None: the sums themselves.
    """

    call: Call
    values: Sequence[dict[int, Any]]
    fitted: int
    activation: Function | None

    @property
    def inputs(self) -> list[Any]:
        """The layer's inputs, of the batches that a change is made from."""
        return [known[self.call.inputs[0]] for known in self.values[: self.fitted]]

    def sums(self) -> np.ndarray:
        """Linear operation and bias, kernel quantized if it is, before any activation: float32 [rows, channels]."""
        return self._rows(self.values[: self.fitted])

    def judging_sums(self) -> np.ndarray:
        """The same of the batches that judge, 4,096 rows at most, spread evenly; none without such batches."""
        held_back = self.values[self.fitted :]
        if not held_back:
            return np.zeros((0, 1), np.float32)
        rows = self._rows(held_back)
        return rows[:: -(-len(rows) // _JUDGING_ROWS)]

    def _rows(self, values: Sequence[dict[int, Any]]) -> np.ndarray:
        arrays = (keras.ops.convert_to_numpy(keras.ops.cast(self._linear(known), "float32")) for known in values)
        return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])

    def _linear(self, values: dict[int, Any]) -> Any:
        layer, source = self.call.operation, values[self.call.inputs[0]]
        if isinstance(layer, klb_layers.QuantizedLayer):
            source = keras.ops.cast(source, layer.compute_dtype)
            return keras.ops.add(layer.linear(source, False), keras.ops.cast(layer.bias, layer.compute_dtype))
        activation, layer.activation = layer.activation, keras.activations.linear
        try:
            return layer(source)
        finally:
            layer.activation = activation

    def activated(self, sums: np.ndarray) -> np.ndarray:
        """What the next layer reads of some sums, [rows, channels]."""
        return sums if self.activation is None else self.activation(sums)


Visit = Callable[[Step], None]


def layer_by_layer(
    quantized: keras.Model,
    reference: keras.Model,
    samples: Samples,
    remember: Visit,
    change: Visit,
    verbose: int | bool,
) -> None:
    """Run all batches through the float model, then through the quantized one, and stop at the layers that match.

    What is a composition in the quantized model is one in the float model too.

    remember: sees a layer of `reference` before it runs.   change: the same of `quantized`; it may change the layer, which the
    next ones then see.   ValueError if no layer of the two models matches.
    """
    batches = list(samples)
    expanded = expand(reference).model
    quantized_graph, float_graph = (calls_of(model, inline=True) for model in (quantized, expanded))
    targets = correctable(quantized_graph, float_graph)
    if not targets:
        raise ValueError(
            f"No quantized layer with a bias of {quantized.name!r} has a float one of the same path in {reference.name!r}. "
            "Give the model that was quantized, its batch norms folded."
        )
    functions = {call.path: _activation(float_graph, call) for call in float_graph.calls if call.path in targets}
    bar = Progress(len(targets), "layer", verbose)

    def change_and_count(step: Step) -> None:
        change(step)
        bar.advance()

    for model, graph, visit in ((reference, float_graph, remember), (quantized, quantized_graph, change_and_count)):
        values = [
            dict(zip(graph.inputs, map(keras.ops.convert_to_tensor, inputs_in_order(model, batch)), strict=True))
            for batch in (*batches, *samples.held_back)
        ]
        _visit(graph, values, len(batches), functions, visit)


def _visit(
    graph: CallGraph,
    values: list[dict[int, Any]],
    fitted: int,
    functions: dict[str, Function | None],
    visit: Visit,
) -> None:
    def before(call: Call) -> None:
        if call.path in functions:
            visit(Step(call, values, fitted, functions[call.path]))

    run_calls(graph.calls, values, before=before)


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


def _activation(graph: CallGraph, call: Call) -> Function | None:
    """The function of a float layer's sums that its readers see: its own activation, and those alone behind it."""
    if activation_name(call.operation) not in _ELEMENTWISE:
        return None
    own, behind = call.operation.activation or keras.activations.linear, list[Call]()
    last = call
    while (reader := graph.only_consumer(last.outputs[0])) is not None and _is_elementwise(reader):
        behind.append(reader)
        last = reader
    if activation_name(call.operation) == "linear" and all(_is_identity(reader) for reader in behind):
        return None

    def function(sums: np.ndarray) -> np.ndarray:
        values = {call.outputs[0]: own(keras.ops.convert_to_tensor(sums))}
        run_calls(behind, [values], keep=last.outputs)
        return keras.ops.convert_to_numpy(keras.ops.cast(values[last.outputs[0]], "float32"))

    return function


def _is_elementwise(call: Call) -> bool:
    kind = stock_kind(call.operation)
    has_name = kind in ("Activation", "Silu", "HardSilu", "Sigmoid", "Tanh", "HardSigmoid")
    return kind in _ELEMENTWISE_KINDS or (has_name and activation_name(call.operation) in _ELEMENTWISE)


def _is_identity(call: Call) -> bool:
    kind = stock_kind(call.operation)
    return kind in ("Identity", *DROPOUTS) or (kind == "Activation" and activation_name(call.operation) == "linear")


def relative_errors(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Squared error of every channel over the mean square of the whole layer, float64 [channels]; their mean is `noise`."""
    wanted = wanted.astype(np.float64)
    energy = max(float(np.square(wanted).mean()), 1e-30)
    return np.asarray(np.square(found - wanted).mean(axis=0) / energy)


def guarded_steps(
    what: str,
    quantized: keras.Model,
    reference: keras.Model,
    samples: Samples,
    steps: Callable[[], None],
) -> Verdict:
    """Change the layers of a model and keep that only if its outputs did not move away from the float model's.

    what: the name of the function.   steps: makes all changes; it reads `samples`.
    """
    layers = [call.operation for call in calls_of(quantized, inline=True).calls]
    layers = [layer for layer in layers if isinstance(layer, klb_layers.QuantizedLayer)]
    weights = {id(w): w for layer in layers for w in (layer.kernel, layer.bias) if w is not None}
    hosts = klb_layers.find_layers(quantized, klb_layers.QuantizerHost)
    weights |= {id(factor): factor for host in hosts for factor in host.learned}
    wanted: list[list[np.ndarray]] = []

    def measure() -> float:
        if not wanted:
            wanted.append(outputs_of(reference, samples.held_back))
        return noise(wanted[0], outputs_of(quantized, samples.held_back))

    verdict = guarded(samples, list(weights.values()), steps, measure)
    say_left_out(
        f"{what} left {quantized.name!r} as it was",
        verdict,
        "Give more data of the kind the model will see, or validation_data= that are more like it.",
    )
    return verdict
