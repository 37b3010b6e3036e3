"""quantize_model: a whole Keras model in, a quantized copy and a report out."""

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lowbit import quantizers, recipes
from keras_lowbit.arguments import check_flag, check_model, patterns, shown
from keras_lowbit.convert.analysis.operations import KINDS, stock_kind
from keras_lowbit.convert.byte_inputs import cast_once
from keras_lowbit.convert.channels_last import channels_last
from keras_lowbit.convert.choice import Choice
from keras_lowbit.convert.expansion.expand import Expanded, expand
from keras_lowbit.convert.expansion.fusing import Fuser
from keras_lowbit.convert.reports.conversion import ConversionReport, LayerReport
from keras_lowbit.convert.rewriter import Rewriter
from keras_lowbit.convert.unwrap import without_wrappers
from keras_lowbit.keras_graph.calls import Call, all_calls, calls_of, functional_of
from keras_lowbit.keras_graph.comparison import check_layers
from keras_lowbit.keras_graph.copies import warn_of_own_steps
from keras_lowbit.keras_graph.variables import not_finite, refuse_keras_quantization
from keras_lowbit.layers import QuantizedLayer
from keras_lowbit.recipes import Recipe, Rule

_SUBCLASSED = """{name!r} is a subclassed model ({kind}): Python code calls its layers, and that cannot be rewritten.
Use the drop-in layers in its place, they take the stock arguments:
    self.conv = keras_lowbit.layers.QuantConv2D(64, 3, kernel_quantizer="ternary", padding="same")
    self.out  = keras_lowbit.layers.QuantDense(10, kernel_quantizer="uniform")
    self.act  = keras_lowbit.layers.QuantActivation("relu")
or build the model with the Functional API."""

_TF_KERAS = """either move it to Keras 3 with keras_lowbit.tfmot.to_keras3(model) and quantize that, or train it
where it is with TFMOT:
    import keras_lowbit.tfmot as klt  # pip install "keras_lowbit[tfmot]"
    model = klt.quantize_model(model, "int8")"""


def quantize_model(
    model: keras.Model,
    recipe: Any = "int8",
    *,
    skip: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    unroll: bool = False,
    fuse_lstm: bool = False,
) -> tuple[keras.Model, ConversionReport]:
    """A quantized copy of a Functional or Sequential model, and a report that names every layer.

    Weights are copied, the original is not touched, and each layer of the copy is compared with its own once, on a small
    random input, before anything is quantized. Tied weights stay tied, and a LoRA delta is merged into its kernel.
    Kernels get the quantizers of the recipe's plan; 8-bit ranges
    stand where the integer pipeline stores values (see `convert.analysis.range_placement`) unless the recipe has none.
    Ranges in a frozen model, or behind a frozen layer, are frozen.
    Separable convolutions become a depthwise and a pointwise layer; silu and hard-swish become a gate and a product. Layer,
    group, RMS and unit normalization, attention, PReLU, EinsumDense, 1-D separable, depthwise and transposed convolutions,
    TimeDistributed, quotients of tensors and constants of every position become compositions of operations that have an integer
    form; their parts are named after the layer ("attention_query"), and are what `overrides` can name. Channels-first layers
    become channels-last ones of the same weights, with a transpose where the model begins and ends, and in front of what
    knows its axes in another way.
    Nested models, shared layers, several inputs and outputs, dict inputs and variable height and width are kept as they
    are. The copy is a plain keras.Model, not compiled. A layer that is not known stays float and is reported, it never
    stops the conversion; one that is quantized already keeps its quantizers.
    Of several outputs, those of weighted layers keep their names; for others the report has the new one.

    model: Functional or built Sequential Keras 3 model.   recipe: name, dict or `Recipe`.
    skip: regular expressions; a layer, operation or input whose whole name or path ("backbone/conv1") matches one stays
    float, in Keras and in an exported file; a nested model that matches stays float with all its layers. What is connected
    is one float part of the file; an input that only such a part reads is float32 there.
    overrides: regular expression -> quantizer (object, name, dict; None: float) of the kernels that match.
    unroll: whether LSTM, GRU and SimpleRNN layers that run in a loop of up to 64 steps become those steps, one behind the
    other, as those with their own ``unroll=True`` do: a loop has no integer form. The file's operators grow with the steps, its
    weights do not.
    fuse_lstm: whether LSTM layers become `layers.QuantLSTM`, which is one operator of the file, LiteRT's integer LSTM, for any
    number of steps. It has one weight scale for each gate's matrix, and tanh and sigmoid; a state that begins with zeros, no
    mask, one direction. The report says why another stays as it is, or is unrolled.
    Returns (quantized model, `ConversionReport`).
    Raises TypeError for a model of another kind; ValueError for a pattern that matches no layer, for an override of a
    layer that has another quantizer already, or for weights that are not finite. Warns of a model class with training
    steps of its own, which the copy has not, if the model runs on no random input, and of layers that no file can hold,
    such as those that look words up: the report has them as "no file", and what to do.
    ValueError too for a layer with weights that cannot be copied, for one whose copy computes something else, and for a
    model that Keras has quantized already.

    >>> quantized, report = klb.quantize_model(model, "sq-twn", overrides={"first": klb.quantizers.Uniform(bits=8)})
    >>> quantized.get_layer("first").kernel_quantizer
    Uniform(bits=8, granularity='channel', calibration='max', percentile=99.99)
    """
    _check_model(model)
    refuse_keras_quantization(model)
    warn_of_own_steps(model)
    recipe = recipes.get(recipe)
    skip = patterns("skip", skip)
    rules = _override_rules(overrides)
    check_flag("quantize_model", "unroll", unroll)
    check_flag("quantize_model", "fuse_lstm", fuse_lstm)
    fuser = Fuser(recipe.replace(plan=rules + recipe.plan)) if fuse_lstm else None
    expanded = _expanded(channels_last(cast_once(without_wrappers(model))), recipe, skip, unroll, fuser)
    model, calls = expanded.model, list(all_calls(expanded.model))
    for rule in rules:
        _check_pattern(rule.layers, [*_kernels(calls), *_left(fuser)], "layer with a kernel")
    _check_finite(model)
    choice = Choice(recipe.replace(plan=rules + recipe.plan), tuple(skip), _positions(calls), calls_of(model).uses)
    _check_quantized(choice, recipe.replace(plan=rules), calls)
    rewriter = Rewriter(model, choice)
    quantized = rewriter.rewrite(model)
    rewriter.layers.copies.check_apart(model, quantized)
    check_layers(model, rewriter.layers.stand_in)
    report = ConversionReport(model.name, recipe.name, _noted(_with_wholes(rewriter.report.rows, expanded), fuser))
    if report.no_file_because:
        warnings.warn(f"No file can be written of {model.name!r}: {report.no_file_because}.", stacklevel=2)
    return quantized, report


def _expanded(model: keras.Model, recipe: Recipe, skip: list[str], unroll: bool, fuser: Fuser | None) -> Expanded:
    """The model with compositions in place of what has no integer form and is not skipped; none where activations are float."""
    inputs = [(tensor._keras_history.operation.name,) * 2 for tensor in functional_of(model).inputs]
    names = [*inputs, *((call.name, path) for path, call in all_calls(model))]
    left = [_compiled(pattern) for pattern in skip]

    def leaves(name: str, path: str) -> bool:
        nests = [path[:at] for at, letter in enumerate(path) if letter == "/"]
        return any(found.fullmatch(each) for found in left for each in (name, path, *nests))

    expanded = Expanded(model, {}, {}) if recipe.activations is None else expand(model, leaves, unroll, fuser)
    parts = [] if expanded.model is model else [(call.name, path) for path, call in all_calls(expanded.model)]
    for pattern in skip:
        _check_pattern(pattern, [*names, *parts], "layer")
    return expanded


_COMPOSITION = "a composition of operations that have an integer form"


def _with_wholes(rows: Iterable[LayerReport], expanded: Expanded) -> tuple[LayerReport, ...]:
    """The rows, one for each composition in place of those of its parts that are kept."""
    found: dict[str, LayerReport] = {}
    for row in rows:
        whole = expanded.whole.get(row.path)
        if whole is not None and whole not in found:
            kind = type(expanded.operations[whole]).__name__
            found[whole] = LayerReport(whole, kind, "rewritten", _COMPOSITION)
        if row.path == whole and row.outcome != "kept":
            found[whole] = dataclasses.replace(
                found[whole], outcome=row.outcome, detail=f"{_COMPOSITION}, its last: {row.detail}"
            )
        elif whole is None or row.outcome != "kept":
            found[row.path] = row
    return tuple(found.values())


def _noted(rows: Iterable[LayerReport], fuser: Fuser | None) -> tuple[LayerReport, ...]:
    """The rows, with what became of each LSTM that was to be fused."""
    if fuser is None:
        return tuple(rows)
    stock = (dataclasses.replace(row, layer="LSTM") if row.path in fuser.fused else row for row in rows)
    left = {path: f"; not fused: {reason}" for path, reason in fuser.left.items()}
    return tuple(dataclasses.replace(row, detail=row.detail + left.get(row.path, "")) for row in stock)


def _left(fuser: Fuser | None) -> list[tuple[str, str]]:
    """Name and path of every LSTM that is not fused: a pattern of the user may be why."""
    return [(path.rpartition("/")[2], path) for path in (() if fuser is None else fuser.left)]


def _kernels(calls: list[tuple[str, Call]]) -> list[tuple[str, str]]:
    """Name and path of every layer with a kernel, and of the depthwise half of a separable convolution."""
    found = []
    for path, call in calls:
        kind = stock_kind(call.operation)
        found += [(call.name, path)] if kind in (*KINDS, "QuantLSTM") else []
        found += [(f"{call.name}_depthwise", f"{path}_depthwise")] if kind == "SeparableConv2D" else []
    return found


def _positions(calls: list[tuple[str, Call]]) -> dict[str, tuple[str, ...]]:
    """Path -> ("first",), ("last",) or both, of the first and last weighted layer in running order."""
    weighted = [path for path, call in calls if stock_kind(call.operation) in KINDS]
    if not weighted:
        return {}
    first, last = weighted[0], weighted[-1]
    return {first: ("first", "last")} if first == last else {first: ("first",), last: ("last",)}


def _override_rules(overrides: Any) -> tuple[Rule, ...]:
    if not isinstance(overrides or {}, Mapping):
        raise TypeError(
            f"overrides takes a dict from names or paths of layers to quantizers, got {shown(overrides)}. Write "
            "overrides={'conv1': 'ternary'}."
        )
    names = patterns("overrides", (overrides or {}).keys())
    return tuple(Rule(quantizers.get((overrides or {})[pattern]), layers=pattern) for pattern in names)


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        if type(model).__module__.startswith(("tf_keras", "keras.engine", "keras.src.engine")):
            kind = f"{type(model).__module__}.{type(model).__name__}"
            raise TypeError(
                f"quantize_model takes a Keras 3 model, got {kind}. It is a tf_keras (Keras 2) model: {_TF_KERAS}"
            )
        check_model(model, "quantize_model")
    try:
        functional_of(model)
    except TypeError as error:
        raise TypeError(_SUBCLASSED.format(name=model.name, kind=type(model).__name__)) from error


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from error


def _check_pattern(pattern: str, paths: list[tuple[str, str]], noun: str) -> None:
    compiled = _compiled(pattern)
    if not any(compiled.fullmatch(name) or compiled.fullmatch(path) for name, path in paths):
        near = [path for name, path in paths if compiled.search(path)] or [path for _, path in paths]
        raise ValueError(
            f"The pattern {pattern!r} matches no {noun}. It must match a whole name or path; the model has for "
            f"example {near[:5]}. Write '.*{pattern}.*' to match a part."
        )


def _check_quantized(choice: Choice, overrides: Recipe, calls: list[tuple[str, Call]]) -> None:
    """An override cannot change a layer that is quantized already."""
    for path, call in calls:
        if not isinstance(call.operation, QuantizedLayer) or choice.skips(call.name, path):
            continue
        given, known = overrides.kernel_quantizer(call.name, path, ""), call.operation.kernel_quantizer
        if given != known and any(rule.matches(call.name, path, "", ()) for rule in overrides.plan):
            raise ValueError(
                f"An override gives {path!r} {given or 'float weights'}, but it is quantized already and keeps {known}. "
                "Quantize the float model instead; keras_lowbit.dequantize(model) has its quantized values."
            )


def _check_finite(model: keras.Model) -> None:
    if found := not_finite(model):
        raise ValueError(f"{found}. Quantizing it would hide that; load weights that are finite.")
