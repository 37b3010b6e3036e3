"""Rebuilds a model call by call with quantized layers and ranges in place."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.analysis.operations import (
    FIXED_RANGES,
    GATES,
    KINDS,
    QUANTIZED_CLASSES,
    Role,
    activation_name,
    role_of,
    stock_kind,
    why_island,
)
from keras_lowbit.convert.analysis.range_placement import RangePlan, plan_ranges
from keras_lowbit.convert.reports.conversion import LayerReport
from keras_lowbit.convert.separable import split_separable
from keras_lowbit.keras_graph.calls import Call, calls_of, fresh_name, functional_of
from keras_lowbit.keras_graph.copies import copied, in_short, live_config, model_like, unreadable
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import ActivationRange, Quantizer, is_activation_quantizer
from keras_lowbit.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which layer gets what: the recipe (overrides first in its plan), the skip list, first and last layers.

    runs: id of an operation -> how often one run of the whole model calls it.
    """

    recipe: Recipe
    skip: tuple[str, ...]
    positions: dict[str, tuple[str, ...]]
    runs: Mapping[int, int]

    def skips(self, name: str, path: str) -> bool:
        """Whether the user wants that layer left float."""
        return any(re.fullmatch(pattern, name) or re.fullmatch(pattern, path) for pattern in self.skip)

    def kernel(self, call: Call, path: str) -> Quantizer | None:
        """The quantizer of a weighted call's kernel; a layer that is quantized already keeps its own."""
        if isinstance(call.operation, klb_layers.QuantizedLayer):
            return call.operation.kernel_quantizer
        kind = KINDS[stock_kind(call.operation)]
        return self.recipe.kernel_quantizer(call.name, path, kind, self.positions.get(path, ()))

    def depthwise_half(self, call: Call, path: str, default: Quantizer | None) -> Quantizer | None:
        """The quantizer of a separable layer's depthwise half, "path_depthwise": that of its own rule if it has one."""
        name, half = f"{call.name}_depthwise", f"{path}_depthwise"
        if any(rule.matches(name, half, "depthwise", ()) for rule in self.recipe.plan):
            return self.recipe.kernel_quantizer(name, half, "depthwise")
        return default


class Rewriter:
    """Rewrites a model and the models inside it; `rows` collects the report."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.rows: list[LayerReport] = []
        self.copies: dict[int, Any] = {}  # id of an original operation -> its copy, so that sharing is kept
        self.parts: dict[int, tuple[Any, Any]] = {}  # id of a separable layer -> its depthwise and pointwise copies
        self.reported: set[str] = set()

    def rewrite(self, model: Any, place: "Place | None" = None) -> keras.Model:
        """A rewritten copy of a Functional or Sequential model."""
        return _Level(self, model, place or Place()).build()

    def report(self, path: str, operation: Any, outcome: str, detail: str) -> None:
        """Add one row, once for each path."""
        if path not in self.reported:
            self.reported.add(path)
            self.rows.append(LayerReport(path, type(operation).__name__, outcome, detail))

    def note(self, path: str, what: str, outcome: str | None = None) -> None:
        """Add a remark to the row of `path`, and change its outcome if one is given."""
        for index, row in enumerate(self.rows):
            if row.path == path:
                self.rows[index] = LayerReport(path, row.layer, outcome or row.outcome, f"{row.detail}; {what}")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model stands in the nest.

    prefix: path of the enclosing models, "" for the outermost.   shared: it runs more than once.   skipped: the
    user skips it whole.   last: positions of those of its outputs that leave the outermost model; None for all.
    """

    prefix: str = ""
    shared: bool = False
    skipped: bool = False
    last: tuple[int, ...] | None = None


class _Level:
    """One model of the nest: values flow through its calls, each emitted anew."""

    def __init__(self, rewriter: Rewriter, model: Any, place: Place) -> None:
        self.rewriter, self.place, self.prefix = rewriter, place, place.prefix
        self.original, self.model = model, functional_of(model)
        self.graph = graph = calls_of(model)
        self.reasons: dict[Call, str] = {}
        self.roles = {call: self._role(call) for call in graph.calls}
        activations = rewriter.choice.recipe.activations
        if place.shared and activations is not None:
            activations = _widen_only(activations)
        self.final = {key for index, key in enumerate(graph.outputs) if place.last is None or index in place.last}
        self.plan: RangePlan = plan_ranges(graph, self.roles, activations, self.final, nested=bool(self.prefix))
        # Keras knows a list of outputs by the operations that make them; in a dict their keys are the names.
        self.named = not self.prefix and len(graph.outputs) > 1 and not isinstance(self.model.output, Mapping)
        if self.named:
            self._keep_output_names()
        self.names = {call.name for call in graph.calls}
        self.gates: set[str] = set()  # names of the products that stand for gated activations
        self.values: dict[int, Any] = {}
        self.range_layers: dict[int, klb_layers.QuantActivation] = {}

    def build(self) -> keras.Model:
        inputs = [self._input(tensor) for tensor in self.model.inputs]
        self.names |= {tensor.name for tensor in inputs}
        for key, tensor in zip(self.graph.inputs, inputs, strict=True):
            self._store(key, tensor, tensor.name)
        for call in self.graph.calls:
            for key, value in zip(call.outputs, self._emit(call), strict=True):
                self._store(key, value, call.name)
        outputs = [self.values[key] for key in self.graph.outputs]
        built = model_like(self.original, inputs, outputs)
        if self.named:
            for old, new in zip(self.model.output_names, built.output_names, strict=True):
                if old != new:
                    self.rewriter.note(old, f"as an output of the model it is called {new!r}")
        return built

    def _keep_output_names(self) -> None:
        for call in self.graph.calls:
            returned = call.outputs[0] in self.graph.outputs
            if returned and self.roles[call] is Role.WEIGHTED and not self._runs_often(call):
                self.plan.move_into(call)

    def _role(self, call: Call) -> Role:
        role, path = role_of(call), self.prefix + call.path
        if role is Role.NESTED:
            return role
        if self.place.skipped or self.rewriter.choice.skips(call.name, path):
            self.reasons[call] = "skip list"
            return Role.ISLAND
        if role is Role.WEIGHTED and self.rewriter.choice.kernel(call, path) is None:
            self.reasons[call] = "no rule of the recipe gives it a quantizer"
            return Role.ISLAND
        if role is Role.WEIGHTED and (reason := unreadable(call.operation)) is not None:
            self.reasons[call] = reason
            return Role.ISLAND
        return role

    def _input(self, tensor: Any) -> Any:
        layer = tensor._keras_history.operation
        where = "the nested model" if self.prefix else "the model"
        self.rewriter.report(self.prefix + layer.name, layer, "kept", f"input of {where}")
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name)

    def _store(self, key: int, value: Any, name: str) -> None:
        if key in self.plan.after:
            value = self._range_layer(key, name, value.dtype)(value)
        self.values[key] = value

    def _range_layer(self, key: int, name: str, dtype: str) -> Any:
        root = self.plan.shared.get(key, key)
        if root not in self.range_layers:
            quantizer = self.plan.after[key]
            if key in self.plan.shared:
                quantizer = _widen_only(quantizer)
            self.range_layers[root] = self._range(quantizer, f"{name}_range", dtype)
        return self.range_layers[root]

    def _range(self, quantizer: Quantizer, name: str, dtype: str, activation: Any = None) -> Any:
        """A new range layer that hands on `dtype`, the tensor's own, whatever the global policy says."""
        return klb_layers.QuantActivation(activation, quantizer, name=self._fresh(name), dtype=dtype)

    def _fresh(self, name: str) -> str:
        name = fresh_name(name, self.names)
        self.names.add(name)
        return name

    def _emit(self, call: Call) -> Iterable[Any]:
        role, path, report = self.roles[call], self.prefix + call.path, self.rewriter.report
        if role is Role.NESTED:
            report(path, call.operation, "kept", "model inside the model, rewritten in turn")
            return self._nested(call, path)
        if role is Role.WEIGHTED:
            return self._weighted(call, path)
        if role is Role.GATED and self.rewriter.choice.recipe.activations is not None:
            report(path, call.operation, "rewritten", f"{activation_name(call.operation)}: a gate and a product")
            name = self._fresh(call.name) if call.name in self.gates else call.name
            self.gates.add(call.name)
            return [self._gated(self.values[call.inputs[0]], activation_name(call.operation), name)]
        if role is Role.ISLAND:
            reason, quantizer = self.reasons.get(call) or why_island(call), getattr(call.operation, "kernel_host", None)
            end = "; runs in float" if quantizer is None else "; keeps the quantizer it has"
            report(path, call.operation, "skipped", reason + end)
        else:
            report(path, call.operation, "kept", role.value)
        return self._copied(call, path)

    def _weighted(self, call: Call, path: str) -> list[Any]:
        quantizer = self.rewriter.choice.kernel(call, path)
        gate = activation_name(call.operation)
        changes: dict[str, Any] = {"kernel_quantizer": quantizer}
        if call in self.plan.own:
            changes["output_quantizer"] = self._own_range(call)
            if gate in GATES:
                changes["activation"] = "linear"
        if stock_kind(call.operation) == "SeparableConv2D":
            outputs = self._separable(call, path, changes)
        else:
            keeps = "keeps the quantizer it has: " if isinstance(call.operation, klb_layers.QuantizedLayer) else ""
            self.rewriter.report(path, call.operation, "quantized", f"{keeps}{quantizer!r}")
            outputs = call.run(self.values, self._quantized(call.operation, changes))
        if gate in GATES and call in self.plan.own:
            return [self._gated(outputs[0], gate, self._fresh(f"{call.name}_{gate}"))]
        return outputs

    def _runs_often(self, call: Call) -> bool:
        return self.rewriter.choice.runs[id(call.operation)] > 1

    def _own_range(self, call: Call) -> Quantizer:
        quantizer = self.plan.own[call]
        return _widen_only(quantizer) if self._runs_often(call) else quantizer

    def _separable(self, call: Call, path: str, changes: dict[str, Any]) -> list[Any]:
        name, pointwise_quantizer = self._fresh(f"{call.name}_depthwise"), changes["kernel_quantizer"]
        recipe = self.rewriter.choice.recipe
        own = self.rewriter.choice.depthwise_half(call, path, pointwise_quantizer)
        parts = self.rewriter.parts
        if id(call.operation) not in parts:
            parts[id(call.operation)] = split_separable(call.operation, name, own, changes)
        depthwise, pointwise = parts[id(call.operation)]
        middle = depthwise(self.values[call.inputs[0]])
        if recipe.activations is not None:
            middle = self._range(recipe.activations, f"{name}_range", middle.dtype)(middle)
        detail = f"depthwise {own or 'float'}, then pointwise {pointwise_quantizer!r}"
        self.rewriter.report(path, call.operation, "quantized", detail)
        return [pointwise(middle)]

    def _gated(self, value: Any, name: str, layer_name: str) -> Any:
        gate = GATES[name]
        low, high = FIXED_RANGES[gate]
        fixed = ActivationRange(minimum=low, maximum=high)
        opened = self._range(fixed, f"{layer_name}_gate", value.dtype, activation=gate)(value)
        return keras.layers.Multiply(name=layer_name, dtype=value.dtype)([value, opened])

    def _quantized(self, layer: Any, changes: dict[str, Any]) -> Any:
        copies = self.rewriter.copies
        if id(layer) not in copies:
            cls = QUANTIZED_CLASSES[stock_kind(layer)]
            copy = cls.from_config({**live_config(layer), **changes})
            copy.build(_input_shape(layer))
            _copy_state(layer, copy)
            copies[id(layer)] = copy
        return copies[id(layer)]

    def _nested(self, call: Call, path: str) -> list[Any]:
        """The results of a nested model's rewritten copy."""
        operation, copies = call.operation, self.rewriter.copies
        if id(operation) not in copies:
            unread = (i for i, key in enumerate(call.outputs) if key in self.final and not self.graph.consumers(key))
            shared = self._runs_often(call)
            skipped = self.place.skipped or self.rewriter.choice.skips(call.name, path)
            place = Place(f"{path}/", shared, skipped, () if shared else tuple(unread))
            copies[id(operation)] = self.rewriter.rewrite(operation, place)
        return call.run(self.values, copies[id(operation)])

    def _copied(self, call: Call, path: str) -> list[Any]:
        """The results of an operation's copy, or of the operation itself if it cannot be copied."""
        operation, copies = call.operation, self.rewriter.copies
        if id(operation) in copies:
            return call.run(self.values, copies[id(operation)])
        copies[id(operation)], results, error = copied(call, self.values)
        if error is not None:
            reason = f"shared with the original: it cannot be copied ({in_short(error)})"
            self.rewriter.note(path, reason, "skipped")
        return results


def _widen_only(quantizer: Quantizer) -> Quantizer:
    return quantizer.widen_only() if is_activation_quantizer(quantizer) else quantizer


def _input_shape(layer: Any) -> Any:
    return layer.get_build_config()["input_shape"]


def _copy_state(layer: Any, copy: Any) -> None:
    """Copy kernel, bias and, from a layer that is quantized already, the state of its quantizers."""
    copy.kernel.assign(to_numpy(layer.kernel))
    if layer.bias is not None:
        copy.bias.assign(to_numpy(layer.bias))
    for host in ("kernel_host", "bias_host", "output_host"):
        old, new = getattr(layer, host, None), getattr(copy, host)
        if old is not None:
            state: dict[str, Any] = {}
            old.save_own_variables(state)
            new.load_own_variables(state)
    copy.trainable = layer.trainable
