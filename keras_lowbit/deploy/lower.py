"""lower: a trained quantized Keras model becomes an IntegerGraph.

The model's calls are walked once in running order. Each Keras tensor is a `Stored` int8 tensor, a `Pending` operation
that waits for the range behind it (batch norms and a relu fuse meanwhile), or `Floating`. Operations the integer graph
does not know run as float islands between explicit dequantize and quantize nodes, and are listed.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import keras

from keras_lowbit.convert.forms import DROPOUTS
from keras_lowbit.convert.roles import Role, role_of, stock_kind
from keras_lowbit.convert.weights import quantized_layers
from keras_lowbit.deploy import overflow as overflow_
from keras_lowbit.deploy.build import GraphBuilder
from keras_lowbit.deploy.graph import IntegerGraph, Range
from keras_lowbit.deploy.kinds import check_model, check_not_packed
from keras_lowbit.deploy.values import Entry, Floating, LoweredLayer, Pending, Segment, Stored, Trail, Value
from keras_lowbit.layers.graph import Call, CallGraph, calls_of
from keras_lowbit.layers.host import QuantizerHost, hosts, not_finite
from keras_lowbit.quantizers import serialize


@dataclasses.dataclass(frozen=True)
class Island:
    """A Keras operation that runs in float, and why."""

    path: str
    reason: str


@dataclasses.dataclass
class Lowered:
    """An integer graph with its ties to the Keras model: what `verify` and reports need beside the graph."""

    graph: IntegerGraph
    segments: list[Segment]
    layers: dict[str, LoweredLayer]  # by node: a shared layer has several
    islands: list[Island]
    input_keys: dict[str, int]

    @property
    def overflows(self) -> dict[str, overflow_.Overflow]:
        """Path of every layer whose weights were altered to fit int8 -> what that changed."""
        return {layer.path: layer.overflow for layer in self.layers.values() if layer.overflow is not None}


def lower(model: keras.Model, input_shapes: Any = None, overflow: str = overflow_.DEFAULT) -> IntegerGraph:
    """The integer graph of a quantized model: int8 codes, scales, zero points, int32 biases, nothing else.

    model: from `quantize_model`, or built from the drop-in layers; every range seen in `calibrate` or `fit`.
    input_shapes: shapes without batch for inputs of variable size, a tuple or {input name: tuple}.
    overflow: what to do with codes beyond 127, as in `export_litert`; a UserWarning says what it altered.
    Raises ValueError before calibration, for a value with no range, for ranges that are not 8 bits, and for a bias
    that does not fit int32.
    """
    check_model(model, "lower")
    check_not_packed(model, "lower")
    lowered = lower_model(model, input_shapes, overflow=overflow)
    overflow_.warn(lowered.overflows)
    return lowered.graph


def lower_model(
    model: keras.Model,
    input_shapes: Any = None,
    batch_size: int = 1,
    placeholder: Range | None = None,
    overflow: str = overflow_.DEFAULT,
) -> Lowered:
    """As `lower`, with the graph's ties to the Keras model, and without the warning.

    batch_size: what float islands are converted for.   placeholder: stands for ranges that saw no data yet (the size
    of a file does not depend on them).
    """
    from keras_lowbit.deploy.lower_calls import lower_call

    if not hosts(model):
        raise ValueError(
            f"{model.name!r} has no quantized layer and no activation range. Quantize it first: "
            "keras_lowbit.quantize_model(model, 'int8')."
        )
    _check_finite(model)
    _check_inference(model)
    state = Lowering(model, calls_of(model, inline=True), input_shapes, batch_size, placeholder, overflow)
    for call in state.calls.calls:
        lower_call(state, call)
    outputs = [state.output(key) for key in state.calls.outputs]
    graph = state.builder.build(outputs)
    graph.inputs = _in_model_order(state, graph.inputs)
    graph.metadata["islands"] = [dataclasses.asdict(island) for island in state.islands]
    lowered = Lowered(graph, state.segments, state.layers, state.islands, state.input_keys)
    if lowered.overflows:
        altered = {path: dataclasses.asdict(found) for path, found in lowered.overflows.items()}
        graph.metadata["overflow"] = {"policy": overflow, "layers": altered}
    return lowered


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
        if not quantizer.is_range or quantizer.bits != 8:
            raise ValueError(
                f"The range of {path!r} is {quantizer!r}; the integer graph stores activations as 8-bit ranges. "
                "Train with 8-bit activations to export, or leave that model in Keras."
            )
        state = host.values()
        if not quantizer.fixed and float(state["count"]) == 0:
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


def _in_model_order(state: Lowering, found: tuple[str, ...]) -> tuple[str, ...]:
    """The graph's inputs as the model lists them; they were found in the order in which they are read."""
    unread = [name for name in state.input_keys if name not in found]
    if unread:
        raise ValueError(f"Nothing in the model reads its input {unread[0]!r}. Build the model without that input.")
    return tuple(state.input_keys)


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
        if role_of(call) is Role.NESTED:
            _check_inference(call.operation, f"{path}/", always)
        elif always and kind in ("BatchNormalization", *DROPOUTS):
            does = "takes each batch's own statistics" if kind == "BatchNormalization" else "draws at random"
            raise ValueError(
                f"{path!r} is called with training=True: this {kind} {does} in inference too, which a file cannot do. "
                "Build the model again without training=True, give it the weights (new.set_weights(model.get_weights())), "
                "then quantize and export that one."
            )


def library_version() -> str:
    """The installed version of this library, as in `keras_lowbit.__version__`."""
    try:
        return version("keras_lowbit")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0.0.0+unknown"


def _metadata(model: keras.Model) -> dict[str, Any]:
    recipe = {path: serialize(layer.kernel_quantizer) for path, layer in quantized_layers(model).items()}
    return {"name": model.name, "keras_lowbit": library_version(), "quantizers": recipe}
