"""Rebuilds a model call by call with quantized layers and ranges in place."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import keras
from keras import tree

from keras_lowbit import layers as klb_layers
from keras_lowbit.convert.graph import Call, CallGraph, calls_of, functional_of
from keras_lowbit.convert.ranges import RangePlan, plan_ranges
from keras_lowbit.convert.report import LayerReport
from keras_lowbit.convert.roles import (
    FIXED_RANGES,
    GATES,
    KINDS,
    QUANTIZED_CLASSES,
    Role,
    activation_name,
    role_of,
    stock_kind,
)
from keras_lowbit.convert.separable import split_separable
from keras_lowbit.quantizers import ActivationRange, Quantizer
from keras_lowbit.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which layer gets what: the recipe (overrides first in its plan), the skip list, first and last layers."""

    recipe: Recipe
    skip: tuple[str, ...]
    positions: dict[str, tuple[str, ...]]

    def skips(self, name: str, path: str) -> bool:
        """Whether the user wants that layer left float."""
        return any(re.fullmatch(pattern, name) or re.fullmatch(pattern, path) for pattern in self.skip)

    def kernel(self, call: Call, path: str) -> Quantizer | None:
        """The quantizer of a weighted call's kernel; a layer that is quantized already keeps its own."""
        if isinstance(call.operation, klb_layers.QuantizedLayer):
            return call.operation.kernel_quantizer
        kind = KINDS[stock_kind(call.operation)]
        return self.recipe.kernel_quantizer(call.name, path, kind, self.positions.get(path, ()))


class Rewriter:
    """Rewrites a model and the models inside it; `rows` collects the report."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.rows: list[LayerReport] = []
        self.copies: dict[int, Any] = {}  # id of an original operation -> its copy, so that sharing is kept
        self.parts: dict[int, tuple[Any, Any]] = {}  # id of a separable layer -> its depthwise and pointwise copies
        self.reported: set[str] = set()

    def rewrite(self, model: Any, prefix: str = "", shared: bool = False) -> keras.Model:
        """A rewritten copy of a Functional model. prefix: path of the enclosing models.   shared: called repeatedly."""
        graph = calls_of(model)
        return _Level(self, model, graph, prefix, shared).build()

    def report(self, path: str, operation: Any, outcome: str, detail: str) -> None:
        """Add one row, once for each path."""
        if path not in self.reported:
            self.reported.add(path)
            self.rows.append(LayerReport(path, type(operation).__name__, outcome, detail))


class _Level:
    """One model of the nest: values flow through its calls, each emitted anew."""

    def __init__(self, rewriter: Rewriter, model: Any, graph: CallGraph, prefix: str, shared: bool) -> None:
        self.rewriter, self.model, self.graph, self.prefix = rewriter, model, graph, prefix
        self.reasons: dict[Call, str] = {}
        self.roles = {call: self._role(call) for call in graph.calls}
        activations = rewriter.choice.recipe.activations
        if shared and isinstance(activations, ActivationRange):
            activations = dataclasses.replace(activations, hold=True)
        self.plan: RangePlan = plan_ranges(graph, self.roles, activations, nested=bool(prefix))
        self.names = {call.name for call in graph.calls}
        self.values: dict[int, Any] = {}
        self.range_layers: dict[int, klb_layers.QuantActivation] = {}
        self.calls_of_operation: dict[int, int] = {}
        for call in graph.calls:
            self.calls_of_operation[id(call.operation)] = self.calls_of_operation.get(id(call.operation), 0) + 1

    def build(self) -> keras.Model:
        inputs = [self._input(tensor) for tensor in self.model.inputs]
        for key, tensor in zip(self.graph.inputs, inputs, strict=True):
            self._store(key, tensor, tensor.name)
        for call in self.graph.calls:
            for key, value in zip(call.outputs, self._emit(call), strict=True):
                self._store(key, value, call.name)
        outputs = [self.values[key] for key in self.graph.outputs]
        return keras.Model(
            tree.pack_sequence_as(self.model.input, inputs),
            tree.pack_sequence_as(self.model.output, outputs),
            name=self.model.name,
        )

    def _role(self, call: Call) -> Role:
        role, path = role_of(call), self.prefix + call.path
        if self.rewriter.choice.skips(call.name, path):
            self.reasons[call] = "skip list"
            return Role.ISLAND
        if role is Role.WEIGHTED and self.rewriter.choice.kernel(call, path) is None:
            self.reasons[call] = "no rule of the recipe gives it a quantizer"
            return Role.ISLAND
        if role is Role.BATCH_NORM and call.operation.axis not in (-1, len(call.tensors[0].shape) - 1):
            self.reasons[call] = f"normalises axis {call.operation.axis}, not the last one"
            return Role.ISLAND
        return role

    def _input(self, tensor: Any) -> Any:
        name = tensor.name if tensor.name not in self.names else None
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)

    def _store(self, key: int, value: Any, name: str) -> None:
        if key in self.plan.after:
            value = self._range_layer(key, name)(value)
        self.values[key] = value

    def _range_layer(self, key: int, name: str) -> Any:
        root = self.plan.shared.get(key, key)
        if root not in self.range_layers:
            quantizer = self.plan.after[key]
            if key in self.plan.shared and isinstance(quantizer, ActivationRange):
                quantizer = dataclasses.replace(quantizer, hold=True)
            self.range_layers[root] = klb_layers.QuantActivation(None, quantizer, name=self._fresh(f"{name}_range"))
        return self.range_layers[root]

    def _fresh(self, name: str) -> str:
        candidate, count = name, 0
        while candidate in self.names:
            count += 1
            candidate = f"{name}_{count}"
        self.names.add(candidate)
        return candidate

    def _emit(self, call: Call) -> Iterable[Any]:
        role, path, report = self.roles[call], self.prefix + call.path, self.rewriter.report
        if role is Role.NESTED:
            report(path, call.operation, "kept", "model inside the model, rewritten in turn")
            return call.run(self.values, self._copy(call))
        if role is Role.WEIGHTED:
            return self._weighted(call, path)
        if role is Role.GATED and self.rewriter.choice.recipe.activations is not None:
            report(path, call.operation, "rewritten", f"{activation_name(call.operation)}: a gate and a product")
            return [self._gated(self.values[call.inputs[0]], activation_name(call.operation), call.name)]
        if role is Role.ISLAND:
            reason = self.reasons.get(call, "not known to the integer pipeline")
            report(path, call.operation, "skipped", f"{reason}; runs in float")
        else:
            report(path, call.operation, "kept", role.value)
        return call.run(self.values, self._copy(call))

    def _weighted(self, call: Call, path: str) -> list[Any]:
        quantizer = self.rewriter.choice.kernel(call, path)
        gate = activation_name(call.operation)
        changes: dict[str, Any] = {"kernel_quantizer": quantizer}
        if call in self.plan.before_activation:
            changes["output_quantizer"] = self._own_range(call)
            if gate in GATES:
                changes["activation"] = "linear"
        if stock_kind(call.operation) == "SeparableConv2D":
            outputs = self._separable(call, path, changes)
        else:
            self.rewriter.report(path, call.operation, "quantized", repr(quantizer))
            outputs = call.run(self.values, self._quantized(call.operation, changes))
        if gate in GATES and call in self.plan.before_activation:
            return [self._gated(outputs[0], gate, self._fresh(f"{call.name}_{gate}"))]
        return outputs

    def _own_range(self, call: Call) -> Quantizer:
        quantizer = self.plan.before_activation[call]
        if self.calls_of_operation[id(call.operation)] > 1 and isinstance(quantizer, ActivationRange):
            return dataclasses.replace(quantizer, hold=True)
        return quantizer

    def _separable(self, call: Call, path: str, changes: dict[str, Any]) -> list[Any]:
        name, pointwise_quantizer = self._fresh(f"{call.name}_depthwise"), changes["kernel_quantizer"]
        recipe = self.rewriter.choice.recipe
        own = recipe.kernel_quantizer(name, f"{path}_depthwise", "depthwise") or pointwise_quantizer
        parts = self.rewriter.parts
        if id(call.operation) not in parts:
            parts[id(call.operation)] = split_separable(call.operation, name, own, changes)
        depthwise, pointwise = parts[id(call.operation)]
        middle = depthwise(self.values[call.inputs[0]])
        if recipe.activations is not None:
            middle = klb_layers.QuantActivation(None, recipe.activations, name=self._fresh(f"{name}_range"))(middle)
        detail = f"depthwise {own!r}, then pointwise {pointwise_quantizer!r}"
        self.rewriter.report(path, call.operation, "quantized", detail)
        return [pointwise(middle)]

    def _gated(self, value: Any, name: str, layer_name: str) -> Any:
        gate = GATES[name]
        low, high = FIXED_RANGES[gate]
        fixed = ActivationRange(minimum=low, maximum=high)
        opened = klb_layers.QuantActivation(gate, fixed, name=self._fresh(f"{layer_name}_gate"))(value)
        return keras.layers.Multiply(name=layer_name)([value, opened])

    def _quantized(self, layer: Any, changes: dict[str, Any]) -> Any:
        copies = self.rewriter.copies
        if id(layer) not in copies:
            cls = QUANTIZED_CLASSES[stock_kind(layer)]
            copy = cls.from_config({**layer.get_config(), **changes})
            copy.build(_input_shape(layer))
            _copy_state(layer, copy)
            copies[id(layer)] = copy
        return copies[id(layer)]

    def _copy(self, call: Call) -> Any:
        """The copy of an operation: a nested model rewritten, a layer cloned with its weights, a bare op itself."""
        operation, copies = call.operation, self.rewriter.copies
        if not call.is_layer:
            return operation
        if id(operation) not in copies:
            if self.roles[call] is Role.NESTED:
                shared = self.calls_of_operation[id(operation)] > 1
                inner = functional_of(operation)
                copies[id(operation)] = self.rewriter.rewrite(inner, f"{self.prefix}{call.path}/", shared)
            else:
                copies[id(operation)] = self._clone(call)
        return copies[id(operation)]

    def _clone(self, call: Call) -> Any:
        layer = call.operation
        try:
            copy = type(layer).from_config(layer.get_config())
            if layer.weights:
                copy.build_from_config(layer.get_build_config())
                copy.set_weights(layer.get_weights())
            if hasattr(copy, "finalize_state"):  # Normalization derives its constants from its weights
                copy.finalize_state()
            copy.trainable = layer.trainable
            return copy
        except Exception as error:  # any custom layer may fail in its own way; the model must still convert
            reason = f"shared with the original: it cannot be copied ({type(error).__name__}: {error})"
            self.rewriter.report(self.prefix + call.path, layer, "skipped", reason)
            return layer


def _input_shape(layer: Any) -> Any:
    return layer.get_build_config()["input_shape"]


def _copy_state(layer: Any, copy: Any) -> None:
    """Copy kernel, bias and, from a layer that is quantized already, the state of its quantizers."""
    copy.kernel.assign(layer.kernel)
    if layer.bias is not None:
        copy.bias.assign(layer.bias)
    for host in ("kernel_host", "bias_host", "output_host"):
        old, new = getattr(layer, host, None), getattr(copy, host)
        if old is not None:
            state: dict[str, Any] = {}
            old.save_own_variables(state)
            new.load_own_variables(state)
    copy.trainable = layer.trainable
