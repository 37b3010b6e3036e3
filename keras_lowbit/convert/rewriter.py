"""Rebuilds a model call by call with quantized layers and ranges in place."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_lowbit.convert.analysis.float_flow import BETWEEN
from keras_lowbit.convert.analysis.operations import (
    GATES,
    Category,
    activation_name,
    fallback_reason,
    no_file_because,
    stock_kind,
)
from keras_lowbit.convert.analysis.range_placement import RangePlan, plan_ranges
from keras_lowbit.convert.choice import Choice, widen_only
from keras_lowbit.convert.layer_factory import LayerFactory
from keras_lowbit.convert.nest import Nest
from keras_lowbit.convert.range_inserter import RangeInserter
from keras_lowbit.convert.reports.conversion import NO_FILE, ReportBuilder
from keras_lowbit.keras_graph.calls import Call, find_layers, functional_of
from keras_lowbit.keras_graph.copies import first_line, model_like
from keras_lowbit.layers import KeepFloat, QuantizedLayer
from keras_lowbit.layers.find import hosts
from keras_lowbit.quantizers import Quantizer


class Rewriter:
    """Rewrites a model and the models inside it, as `choice` decides for each layer. report: what was done."""

    def __init__(self, model: Any, choice: Choice) -> None:
        self.choice = choice
        self.nest = Nest(model, choice)
        self.layers = LayerFactory()
        self.report = ReportBuilder()

    def rewrite(self, model: Any) -> keras.Model:
        """A rewritten copy of the model, or of one inside it. One all of which stays float says so by a mark at its inputs."""
        built = _GraphWalk(self, model).build()
        level, place, _ = self.nest.of(model)
        if place.prefix or self.choice.recipe.activations is None or hosts(built) or find_layers(built, KeepFloat):
            return built
        level.chosen_inputs = set(level.graph.inputs)
        return _GraphWalk(self, model).build()


class _GraphWalk:
    """One model of the nest: values flow through its calls, each of which is emitted anew."""

    def __init__(self, rewriter: Rewriter, model: Any) -> None:
        self.rewriter, self.choice, self.report = rewriter, rewriter.choice, rewriter.report
        self.model = model
        self.level, self.place, self.final = rewriter.nest.of(model)
        self.graph, self.categories, self.reasons = self.level.graph, self.level.categories, self.level.reasons
        self.products: set[str] = set()  # names of the operations that became a gate and a product
        inputs = [tensor._keras_history.operation for tensor in functional_of(self.model).inputs]
        self.plan = self._plan()
        names = {*(call.name for call in self.graph.calls), *(layer.name for layer in inputs)}
        self.ranges = RangeInserter(self.plan, names, self.model.trainable)
        self.makers = dict(zip(self.graph.inputs, inputs, strict=True))  # by key: what made each tensor
        self.makers |= {key: call.operation for call in self.graph.calls for key in call.outputs}

    def build(self) -> keras.Model:
        """The rewritten copy."""
        inputs = [self._input(tensor) for tensor in functional_of(self.model).inputs]
        values = [self._chosen(key, x) for key, x in zip(self.graph.inputs, inputs, strict=True)]
        outputs = self.graph.run(values, self._with_ranges)
        returned = zip(self.graph.outputs, outputs, strict=True)
        built = model_like(self.model, inputs, [self._returned(key, value) for key, value in returned])
        if self._outputs_are_named():
            for old, new in zip(functional_of(self.model).output_names, built.output_names, strict=True):
                if old != new:
                    self.report.note(old, f"as an output of the model it is called {new!r}")
        return built

    def _plan(self) -> RangePlan:
        plan = plan_ranges(self.level, self.choice.activations(self.place), self.final)
        if self._outputs_are_named():
            for call in self.graph.calls:
                returned = call.outputs[0] in self.graph.outputs
                if returned and self.categories[call] is Category.WEIGHTED and not self._runs_often(call):
                    plan.move_into(call)
        return plan

    def _outputs_are_named(self) -> bool:
        """Whether Keras knows the outputs by the operations that make them; in a dict their keys are the names."""
        is_dict = isinstance(functional_of(self.model).output, Mapping)
        return not self.place.prefix and len(self.graph.outputs) > 1 and not is_dict

    def _runs_often(self, call: Call) -> bool:
        return self.choice.uses(call.operation) > 1

    def _input(self, tensor: Any) -> Any:
        layer = tensor._keras_history.operation
        where = "the nested model" if self.place.prefix else "the model"
        kept = "; float32 in the file" if self.choice.keeps_input(layer.name, self.place) else ""
        self.report.add(self.place.prefix + layer.name, layer, "kept", f"input of {where}{kept}")
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name)

    def _chosen(self, key: int, value: Any) -> Any:
        """An input, behind the mark of those that stay float if it is one."""
        marked = key in self.level.chosen_inputs and self.choice.recipe.activations is not None
        return self.ranges.kept_float(key, value, self.makers[key].name) if marked else value

    def _with_ranges(self, call: Call, values: dict[int, Any]) -> list[Any]:
        read = {key: self._read(call, key, values[key]) for key in call.inputs}
        results = zip(call.outputs, self._emit(call, read), strict=True)
        return [value if key in self.plan.floats else self._stored(key, value) for key, value in results]

    def _stored(self, key: int, value: Any) -> Any:
        return self.ranges.behind(key, value, self.makers[key])

    def _read(self, call: Call, key: int, value: Any) -> Any:
        """A tensor as a call reads it: a float value behind its range, or as it is where the call runs in float."""
        if key in self.plan.floats and (call, key) not in self.plan.in_float:
            value = self._stored(key, value)
        producer = self.graph.producers.get(key)
        begins = producer is None or self.categories[producer] is not Category.FLOAT
        marked = call in self.level.chosen and begins and key not in self.level.chosen_inputs
        if marked and self.choice.recipe.activations is not None:
            return self.ranges.kept_float(key, value, self.makers[key].name)
        return value

    def _returned(self, key: int, value: Any) -> Any:
        return self._stored(key, value) if key in self.plan.returned else value

    def _emit(self, call: Call, values: dict[int, Any]) -> list[Any]:
        """The outputs of what stands for a call in the new model."""
        category, path = self.categories[call], self.place.prefix + call.path
        if category is Category.NESTED_MODEL:
            return self._nested(call, path, values)
        if category is Category.WEIGHTED:
            return self._weighted(call, path, values)
        if category is Category.GATED_ACTIVATION and self.choice.recipe.activations is not None:
            return self._gated(call, path, values)
        if category is Category.MANY and self.plan.learned is not None:
            return self._many(call, path, values, self.plan.learned)
        return self._copied(call, path, values)

    def _nested(self, call: Call, path: str, values: dict[int, Any]) -> list[Any]:
        self.report.add(path, call.operation, "kept", "model inside the model, rewritten in turn")
        copies = self.rewriter.layers.copies
        return call.run(values, copies.get(call.operation, lambda: self.rewriter.rewrite(call.operation)))

    def _weighted(self, call: Call, path: str, values: dict[int, Any]) -> list[Any]:
        quantizer, own = self.choice.kernel(call, path), self._own_range(call)
        changes: dict[str, Any] = {"kernel_quantizer": quantizer}
        gate = activation_name(call.operation) if own is not None else None
        if own is not None:
            changes["output_quantizer"] = own
        if gate in GATES:
            changes["activation"] = "linear"
        if stock_kind(call.operation) == "SeparableConv2D":
            outputs = self._separable(call, path, values, changes)
        else:
            keeps = "keeps the quantizer it has: " if isinstance(call.operation, QuantizedLayer) else ""
            merged = "; LoRA merged" if getattr(call.operation, "lora_enabled", False) else ""
            self.report.add(path, call.operation, "quantized", f"{keeps}{quantizer!r}{merged}")
            outputs = call.run(values, self.rewriter.layers.quantized(call.operation, changes))
        if gate in GATES:
            return [self.ranges.gated(outputs[0], gate, call.operation, self.ranges.fresh(f"{call.name}_{gate}"))]
        return outputs

    def _own_range(self, call: Call) -> Quantizer | None:
        """The quantizer of the range inside a weighted layer; a layer that runs more than once widens it only."""
        quantizer = self.plan.own.get(call)
        return widen_only(quantizer) if quantizer is not None and self._runs_often(call) else quantizer

    def _separable(self, call: Call, path: str, values: dict[int, Any], changes: dict[str, Any]) -> list[Any]:
        name, quantizer = self.ranges.fresh(f"{call.name}_depthwise"), changes["kernel_quantizer"]
        own, activations = self.choice.depthwise_half(call, path, quantizer), self.choice.recipe.activations
        depthwise, pointwise = self.rewriter.layers.halves(call.operation, name, own, changes)
        middle = depthwise(values[call.inputs[0]])
        if activations is not None:
            middle = self.ranges.layer(activations, f"{name}_range", middle.dtype, call.operation)(middle)
        detail = f"depthwise {own or 'float'}, then pointwise {quantizer!r}"
        self.report.add(path, call.operation, "quantized", detail)
        return [pointwise(middle)]

    def _gated(self, call: Call, path: str, values: dict[int, Any]) -> list[Any]:
        """silu or hard-swish as an operation of its own."""
        function = activation_name(call.operation)
        self.report.add(path, call.operation, "rewritten", f"{function}: a gate and a product")
        name = self.ranges.fresh(call.name) if call.name in self.products else call.name
        self.products.add(call.name)
        return [self.ranges.gated(values[call.inputs[0]], function, call.operation, name)]

    def _many(self, call: Call, path: str, values: dict[int, Any], learned: Quantizer) -> list[Any]:
        """A sum or average of many tensors as sums of two; the last operation has its name, its range is in the plan."""
        total, *rest = (values[key] for key in call.inputs)
        averages = stock_kind(call.operation) == "Average"
        self.report.add(path, call.operation, "rewritten", f"{len(rest)} sums of two{' and a factor' * averages}")
        for place, value in enumerate(rest, 1):
            last = place == len(rest) and not averages
            name = call.name if last else self.ranges.fresh(f"{call.name}_sum_{place}")
            total = keras.layers.Add(name=name, dtype=total.dtype)([total, value])
            if not last:
                total = self.ranges.layer(learned, f"{name}_range", total.dtype, call.operation)(total)
        if averages:
            total = keras.layers.Rescaling(1 / len(call.inputs), name=call.name, dtype=total.dtype)(total)
        return [total]

    def _copied(self, call: Call, path: str, values: dict[int, Any]) -> list[Any]:
        """The results of an operation's copy, or of the operation itself if it cannot be copied and has no weights."""
        category, has_quantizer = self.categories[call], getattr(call.operation, "kernel_host", None) is not None
        outcome, detail = "kept", category.value
        if category in (Category.BATCH_NORM, Category.RELU) and call not in self.plan.fused and self.plan.learned:
            detail = f"{detail.split(', ')[0]}, an integer operation of its own: nothing before it takes it in"
        if category is Category.FUSED_LOOP:
            outcome, detail = "quantized", f"{call.operation.kernel_quantizer!r}, as LiteRT's LSTM"
        if category is Category.FLOAT:
            ending = "keeps the quantizer it has" if has_quantizer else "runs in float"
            outcome = "kept" if self.reasons[call] == BETWEEN else "skipped"
            detail = f"{self.reasons[call] or fallback_reason(call)}; {ending}"
        if (refused := no_file_because(call)) is not None:
            outcome, detail = NO_FILE, refused
        self.report.add(path, call.operation, outcome, detail)
        results, error = self.rewriter.layers.copies.call(call, self.ranges.given(call, values))
        if error is not None:
            reason = f"shared with the original: it cannot be copied ({first_line(error)})"
            self.report.note(path, reason, None if outcome == NO_FILE else "skipped")
        return results
