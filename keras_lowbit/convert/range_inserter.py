"""The ranges of a plan as layers in the graph of one model."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_lowbit.convert.analysis.operations import GATES, fixed_range
from keras_lowbit.convert.analysis.range_placement import RangePlan
from keras_lowbit.convert.choice import widen_only
from keras_lowbit.keras_graph.calls import Call, fresh_name
from keras_lowbit.layers import KeepFloat, QuantActivation
from keras_lowbit.quantizers import Quantizer


class RangeInserter:
    """Makes the range layers of one model and gives them names that no other layer of it has.

    plan: which tensors get a range.   names: of the layers that the model has already.   trainable: of the model; the ranges of
    a frozen one are frozen, and so is that behind a frozen layer.
    """

    def __init__(self, plan: RangePlan, names: Iterable[str], trainable: bool = True) -> None:
        self._plan, self._names, self._trainable = plan, set(names), trainable
        self._layers: dict[int, QuantActivation] = {}  # by the key of the tensor, or of the first one that shares it
        self._stored: dict[int, Any] = {}  # values behind their range, by the key of the tensor
        self._kept: dict[int, Any] = {}  # values behind a `KeepFloat`
        self._again: dict[int, QuantActivation] = {}  # by the key of a result that is rounded to a range in front of it

    def given(self, call: Call, values: dict[int, Any]) -> dict[int, Any]:
        """What a call reads. One that rounds inside the range of its input gets a range in front of it if it has none."""
        if call not in self._plan.again:
            return values
        origin = self._plan.again[call]
        layer, key = self._layers.get(self._plan.shared.get(origin, origin)), call.inputs[0]
        if layer is None and self._plan.learned is not None:  # it stands inside a layer, or in another model
            layer = self.layer(self._plan.learned, f"{call.name}_input_range", values[key].dtype, call.operation)
            values = {**values, key: layer(values[key])}
        if layer is not None:
            self._again[call.outputs[0]] = layer
        return values

    def behind(self, key: int, value: Any, maker: Any) -> Any:
        """The value of a tensor with the range that the plan puts behind it. maker: the operation that made it."""
        if key in self._again:
            return self._again[key](value, observe=False)
        if key not in self._plan.after:
            return value
        if key not in self._stored:
            self._stored[key] = self._ranged(key, value, maker)
        return self._stored[key]

    def kept_float(self, key: int, value: Any, name: str) -> Any:
        """The value of a tensor for those who are left in float. name: of the operation that made it."""
        if key not in self._kept:
            self._kept[key] = KeepFloat(name=self.fresh(f"{name}_float"), dtype=value.dtype)(value)
        return self._kept[key]

    def _ranged(self, key: int, value: Any, maker: Any) -> Any:
        root = self._plan.shared.get(key, key)
        if root not in self._layers:
            quantizer = self._plan.after[key]
            if key in self._plan.shared:
                quantizer = widen_only(quantizer)
            self._layers[root] = self.layer(quantizer, f"{maker.name}_range", value.dtype, maker)
        return self._layers[root](value)

    def layer(
        self, quantizer: Quantizer | None, name: str, dtype: str, maker: Any, activation: Any = None
    ) -> QuantActivation:
        """A new range layer behind an operation, which hands on `dtype`, the tensor's own, whatever the global policy says."""
        trainable = self._trainable and getattr(maker, "trainable", True)
        return QuantActivation(activation, quantizer, name=self.fresh(name), dtype=dtype, trainable=trainable)

    def gated(self, value: Any, activation: str, maker: Any, name: str) -> Any:
        """silu or hard-swish of a value as ``x * gate(x)``: a gate of known range and a product called `name`."""
        gate = GATES[activation]
        fixed = fixed_range(gate, self._plan.learned)
        opened = self.layer(fixed, f"{name}_gate", value.dtype, maker, activation=gate)(value)
        return keras.layers.Multiply(name=name, dtype=value.dtype)([value, opened])

    def fresh(self, name: str) -> str:
        """The name, or the first of name_1, name_2, ... that is free; it is taken from then on."""
        name = fresh_name(name, self._names)
        self._names.add(name)
        return name
