"""The state of a lowering: the builder, what each Keras tensor is so far, and the ties to the model."""

import dataclasses
import itertools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import keras

from keras_lowbit.deploy.graph.builder import GraphBuilder
from keras_lowbit.deploy.graph.tensors import Range
from keras_lowbit.deploy.lowering import int8_overflow as overflow_
from keras_lowbit.deploy.lowering.values import Entry, Floating, LoweredLayer, Pending, Segment, Stored, Trail, Value
from keras_lowbit.keras_graph.calls import Call, CallGraph
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.quantizers import is_activation_quantizer, serialize


@dataclasses.dataclass(frozen=True)
class Island:
    """A Keras operation that runs in float, and why."""

    path: str
    reason: str


class Lowering:
    """The walk's state: the builder, what each Keras tensor is so far, and the ties collected."""

    def __init__(
        self,
        model: keras.Model,
        calls: CallGraph,
        input_shapes: Any,
        batch_size: int,
        placeholder: Range | None,
        overflow: str,
    ) -> None:
        self.calls, self.batch_size, self.placeholder = calls, batch_size, placeholder
        self.overflow = overflow_.check_policy(overflow)
        self.builder = GraphBuilder(metadata=_metadata(model))
        self.values: dict[int, Value] = {}
        self.segments: list[Segment] = []
        self.layers: dict[str, LoweredLayer] = {}
        self.islands: list[Island] = []
        self.input_keys: dict[str, int] = {}
        self._names: set[str] = set()
        self._stand_ins: dict[int, Range] = {}
        self._pseudo_keys = itertools.count(-1, -1)
        for key in calls.inputs:
            tensor = calls.tensors[key]
            name = self.name(tensor.name)
            self.input_keys[name] = key
            self.values[key] = Entry(name, _input_shape(tensor, input_shapes), Trail({key: name}))

    def name(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, ...: every name is used once."""
        candidate, count = wanted, 0
        while candidate in self._names:
            count += 1
            candidate = f"{wanted}_{count}"
        self._names.add(candidate)
        return candidate

    def fresh_key(self) -> int:
        """A key for a value that Keras computes inside one call."""
        return next(self._pseudo_keys)

    def store(self, key: int, tensor: str, trail: Trail, alias: bool = False) -> Stored:
        """Note that the graph stores Keras tensor `key` as `tensor`. alias: the same tensor under another key."""
        if alias:
            value = Stored(tensor, trail)
        else:
            self.segments.append(Segment(tensor, key, trail))
            value = Stored(tensor, Trail({key: tensor}))
        self.values[key] = value
        return value

    def emit(self, pending: Pending, grid: Range) -> str:
        """Make a waiting operation's node(s) for the range behind it; the tensor's name."""
        activation = pending.activation
        if activation == "relu6" and grid.scale * (127 - grid.zero_point) <= 6:
            activation = "relu"  # int8 saturates before 6; LiteRT cannot hold 6 / scale for a tiny scale
        return pending.emit(grid, activation, pending.affine)

    def stored(self, key: int, reader: Call) -> Stored:
        """The value as int8; a ValueError that names both sides if no range stands in between."""
        value = self.values[key]
        if isinstance(value, Stored):
            return value
        producer = self.calls.producers.get(key)
        what = f"the output of {producer.path!r}" if producer is not None else "an input of the model"
        raise ValueError(
            f"{reader.path!r} reads {what}, which has no activation range. Put keras_lowbit.layers.QuantActivation between "
            "them, or quantize the model with a recipe whose activations are not None."
        )

    def floating(self, key: int) -> Floating:
        """The value as float32, through a dequantize where it is stored as int8."""
        value = self.values[key]
        if isinstance(value, Pending):
            producer = self.calls.producers[key]
            raise ValueError(
                f"The output of {producer.path!r} goes to a float operation but has no activation range. Put "
                "keras_lowbit.layers.QuantActivation behind it."
            )
        if isinstance(value, Entry):
            value = self.values[key] = Floating(self.builder.input(value.name, value.shape, "float32"), value.trail)
        if isinstance(value, Stored):
            name = self.name(f"{value.tensor}/float")
            return Floating(self.builder.dequantize(value.tensor, name), value.trail)
        return value

    def range_of(self, host: QuantizerHost, path: str) -> Range:
        """Scale and zero point of a range, checked for export."""
        quantizer = host.quantizer
        if not is_activation_quantizer(quantizer) or quantizer.bits != 8:
            raise ValueError(
                f"The range of {path!r} is {quantizer!r}; the integer graph stores activations as 8-bit ranges. "
                "Train with 8-bit activations to export, or leave that model in Keras."
            )
        state = host.values()
        if not quantizer.has_static_range and float(state["count"]) == 0:
            if self.placeholder is not None:
                return self._stand_in(host, self.placeholder)
            raise ValueError(
                f"The range of {path!r} has seen no data. Run keras_lowbit.calibrate(model, images), or fit the model, "
                "before lowering or exporting it."
            )
        scale, zero_point = quantizer.grid(state)
        return Range(float(scale), int(zero_point))

    def _stand_in(self, host: QuantizerHost, like: Range) -> Range:
        """A range of its own for each host: equal ones would be stored once and make the file too small."""
        count = len(self._stand_ins)
        return self._stand_ins.setdefault(id(host), Range(like.scale * (1 + count / 1024), count % 100 - 50))

    def output(self, key: int) -> str:
        """The name of a model output's tensor; a float result in [0, 1] gets its known range elsewhere."""
        value = self.values[key]
        if isinstance(value, (Stored, Floating)):
            return value.tensor
        producer = self.calls.producers.get(key)
        where = producer.path if producer is not None else "an input"
        raise ValueError(
            f"The model returns {where!r} without an activation range. Put keras_lowbit.layers.QuantActivation behind it, "
            "or quantize the model with a recipe whose activations are not None."
        )


def static_shape(state: Lowering, tensor: str) -> tuple[int, ...]:
    """Sizes of a graph tensor without its batch."""
    return tuple(int(size) for size in state.builder.tensor(tensor).shape[1:] if size is not None)


def _input_shape(tensor: Any, given: Any) -> tuple[int, ...]:
    shape = tensor.shape[1:]
    wanted = given.get(tensor.name) if isinstance(given, Mapping) else given
    if wanted is not None:
        shape = tuple(wanted)
    if None in shape:
        raise ValueError(
            f"Input {tensor.name!r} has the shape {tensor.shape[1:]}: a phone needs fixed sizes. Give them without batch, "
            f"for example input_shapes={{{tensor.name!r}: (224, 224, 3)}}."
        )
    if "float" not in str(tensor.dtype):
        raise ValueError(
            f"Input {tensor.name!r} is {tensor.dtype}; the integer graph reads float32 or int8. Start the model with "
            "keras.Input(..., dtype='float32')."
        )
    return shape


def library_version() -> str:
    """The installed version of this library, as in `keras_lowbit.__version__`."""
    try:
        return version("keras_lowbit")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0.0.0+unknown"


def _metadata(model: keras.Model) -> dict[str, Any]:
    recipe = {path: serialize(layer.kernel_quantizer) for path, layer in quantized_layers(model).items()}
    return {"name": model.name, "keras_lowbit": library_version(), "quantizers": recipe}
