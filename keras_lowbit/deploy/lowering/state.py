"""The state of a lowering: the builder, what each Keras tensor is so far, and the ties to the model."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import keras

from keras_lowbit.arguments import check_whole, shown
from keras_lowbit.deploy.graph import GraphBuilder, Range
from keras_lowbit.deploy.graph.operations import OPERATIONS
from keras_lowbit.deploy.graph.tensors import PLAIN
from keras_lowbit.deploy.interpreters import litert_version
from keras_lowbit.deploy.lowering.int8_overflow import check_policy
from keras_lowbit.deploy.lowering.ranges import stored_inputs
from keras_lowbit.deploy.lowering.values import (
    DeferredOp,
    FloatFallback,
    FloatTensor,
    GraphInput,
    LoweredLayer,
    Provenance,
    QuantizedTensor,
    Segment,
    Value,
)
from keras_lowbit.keras_graph.calls import Call, CallGraph, fresh_name, functional_of
from keras_lowbit.layers.host import QuantizerHost
from keras_lowbit.layers.kernels import quantized_layers
from keras_lowbit.quantizers import serialize

RangeOf = Callable[[QuantizerHost, str], Range]


class Lowering:
    """The walk's state.

    range_of: gives the range of a quantizer state layer.   overflow: policy for codes beyond int8.   batch_size: what float
    subgraphs are converted for.
    """

    def __init__(
        self,
        model: keras.Model,
        calls: CallGraph,
        input_shapes: Any,
        batch_size: int,
        range_of: RangeOf,
        overflow: str,
    ) -> None:
        self.calls, self.batch_size, self.range_of = calls, batch_size, range_of
        self.overflow = check_policy(overflow)
        self.builder = GraphBuilder(metadata=_metadata(model))
        self.values: dict[int, Value] = {}
        self.segments: list[Segment] = []
        self.layers: dict[str, LoweredLayer] = {}
        self.float_fallbacks: list[FloatFallback] = []
        self.unrounded: dict[str, str] = {}  # path of a call whose result only the graph rounds -> of one that reads it
        self.input_keys: dict[str, int] = {}
        self.byte_inputs: list[str] = []  # names of inputs of uint8 whose codes are these bytes less 128
        self.in_float: set[Call] = set()  # the calls that run in float
        self.stored_inputs = stored_inputs(calls)
        self._names: set[str] = set()
        self._floats: dict[str, str] = {}  # stored tensor -> the float one behind its dequantize
        self._pseudo_keys = itertools.count(-1, -1)
        _check_names(input_shapes, [calls.tensors[key].name for key in calls.inputs])
        for key in calls.inputs:
            tensor = calls.tensors[key]
            name = self.name(tensor.name)
            self.input_keys[name] = key
            shape, dtype = _input_shape(tensor, input_shapes), _input_type(tensor)
            self.values[key] = GraphInput(name, shape, dtype, Provenance({key: name}))

    def name(self, preferred: str) -> str:
        """`wanted`, or `wanted_1`, ...: every name is used once."""
        candidate = fresh_name(preferred, self._names)
        self._names.add(candidate)
        return candidate

    def fresh_key(self) -> int:
        """A key for a value that Keras computes inside one call."""
        return next(self._pseudo_keys)

    def store(self, key: int, tensor: str, provenance: Provenance, rounded: bool = True) -> QuantizedTensor:
        """Note that the graph stores Keras tensor `key` as `tensor`. rounded: as in `QuantizedTensor`."""
        self.segments.append(Segment(tensor, key, provenance))
        value = self.values[key] = QuantizedTensor(tensor, Provenance({key: tensor}), rounded)
        return value

    def alias(self, key: int, value: QuantizedTensor, call: Call) -> None:
        """A range in which the value is stored already. Where Keras rounds only here, the tensor's segment ends here."""
        if value.rounded:
            self.values[key] = QuantizedTensor(value.tensor, value.provenance.add(call=call))
            return
        at = next(i for i, segment in enumerate(self.segments) if segment.tensor == value.tensor)
        since = Provenance(calls=value.provenance.calls)
        self.segments[at] = Segment(value.tensor, key, self.segments[at].provenance.add(since, call=call))
        self.values[key] = QuantizedTensor(value.tensor, Provenance({key: value.tensor}))

    def defer(self, call: Call, op: str, *sources: QuantizedTensor, **fields: Any) -> bool:
        """The call's output waits for its range as operation `op` of stored tensors. fields: of the `DeferredOp`."""
        first, *rest = (source.provenance for source in sources)
        provenance = first.add(*rest, call=call)
        inputs = tuple(source.tensor for source in sources)
        self.values[call.outputs[0]] = DeferredOp(op, call.path, inputs, provenance, **fields)
        return True

    def emit(self, deferred: DeferredOp, grid: Range) -> str:
        """Make a waiting operation's node or nodes for the range behind it; the tensor's name."""
        activation = deferred.activation
        if activation == "relu6" and grid.scale * (grid.limits[1] - grid.zero_point) <= 6:
            activation = "relu"  # the codes saturate before 6; LiteRT cannot hold 6 / scale for a tiny scale
        return EMITTERS.get(deferred.op, _one_node)(self, deferred, grid, activation)

    def stored(self, key: int, reader: Call) -> QuantizedTensor:
        """The value as int8; a ValueError that names both sides if no range stands in between."""
        value = self._settled(key, reader.path)
        if isinstance(value, QuantizedTensor):
            return value
        producer = self.calls.producers.get(key)
        source = f"the output of {producer.path!r}" if producer is not None else "an input of the model"
        raise ValueError(
            f"{reader.path!r} reads {source}, which has no activation range. Put keras_lowbit.layers.QuantActivation between "
            "them, or quantize the model with a recipe whose activations are not None."
        )

    def _settled(self, key: int, reader: str = "") -> Value:
        """The value; one that can do without a range of its own is made. reader: path of the call that computes with it."""
        value = self.values[key]
        if isinstance(value, DeferredOp) and value.fallback is not None:
            value = self.store(key, self.emit(value, value.fallback), value.provenance, value.rounded)
        if reader and isinstance(value, QuantizedTensor) and not value.rounded:
            self.unrounded.setdefault(self.calls.producers[key].path, reader)
        return value

    def as_float(self, key: int, reader: str = "") -> FloatTensor:
        """The value as float32 (or as the integers that it is), through a dequantize where it is stored as int8.

        reader: path of the call that computes with it.
        """
        value = self._settled(key, reader)
        if isinstance(value, DeferredOp):
            producer = self.calls.producers[key]
            raise ValueError(
                f"The output of {producer.path!r} goes to a float operation but has no activation range. Put "
                "keras_lowbit.layers.QuantActivation behind it."
            )
        if isinstance(value, GraphInput):
            tensor = self.builder.input(value.name, value.shape, value.dtype)
            value = self.values[key] = FloatTensor(tensor, value.provenance)
        if isinstance(value, QuantizedTensor):
            return FloatTensor(self._dequantized(value.tensor), value.provenance)
        return value

    def _dequantized(self, tensor: str) -> str:
        if tensor not in self._floats:
            self._floats[tensor] = self.builder.dequantize(tensor, self.name(f"{tensor}/float"))
        return self._floats[tensor]

    def static_shape(self, tensor: str) -> tuple[int, ...]:
        """Sizes of a graph tensor without its batch."""
        return tuple(int(size) for size in self.builder.tensor(tensor).shape[1:] if size is not None)

    def outputs(self) -> list[str]:
        """The names of the model outputs' tensors.

        What the model returns again, and an input that it hands on, is a copy: LiteRT's CompiledModel has one buffer for each
        end, and fills one of those of a tensor. ValueError for a value that waits for a range that never comes.
        """
        found: list[str] = []
        for key in self.calls.outputs:
            value = self._output(key)
            taken = value.tensor in found or value.tensor in self.builder.inputs
            found.append(self._copy(key, value) if taken else value.tensor)
        return found

    def _copy(self, key: int, value: QuantizedTensor | FloatTensor) -> str:
        producer = self.calls.producers.get(key)
        name = self.name(producer.path if producer is not None and isinstance(value, FloatTensor) else value.tensor)
        self.builder.reshape(value.tensor, name, self.static_shape(value.tensor))
        if isinstance(value, QuantizedTensor):
            self.segments.append(Segment(name, key, Provenance({key: value.tensor})))
        return name

    def _output(self, key: int) -> QuantizedTensor | FloatTensor:
        value = self._settled(key)
        if isinstance(value, (QuantizedTensor, FloatTensor)):
            return value
        producer = self.calls.producers.get(key)
        where = producer.path if producer is not None else "an input"
        raise ValueError(
            f"The model returns {where!r} without an activation range. Put keras_lowbit.layers.QuantActivation behind it, "
            "or quantize the model with a recipe whose activations are not None."
        )


Emitter = Callable[[Lowering, DeferredOp, Range, "str | None"], str]
EMITTERS: dict[str, Emitter] = {}  # of compositions: what makes their nodes
E = TypeVar("E", bound=Emitter)


def emits(op: str) -> Callable[[E], E]:
    """Decorator: the function makes the nodes of a `DeferredOp` that is no single integer operation."""

    def register(emitter: E) -> E:
        EMITTERS[op] = emitter
        return emitter

    return register


def _one_node(state: Lowering, deferred: DeferredOp, grid: Range, activation: str | None) -> str:
    attributes = dict(deferred.attributes)
    if OPERATIONS[deferred.op].fuses_activation:
        attributes["activation"] = activation
    name = state.name(deferred.path)
    return state.builder.operation(deferred.op, deferred.inputs, name, grid, attributes)


def _whole_shape(name: str, given: Any) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"input_shapes gives {shown(given)} for {name!r}; give sizes without batch: (224, 224, 3).")
    return tuple(check_whole("input_shapes", repr(name), size) for size in given)


def _check_names(given: Any, names: Collection[str]) -> None:
    """ValueError for `input_shapes` of inputs that the model has not."""
    if isinstance(given, Mapping) and (unknown := [name for name in given if name not in names]):
        raise ValueError(f"input_shapes names {unknown}, but the model's inputs are {sorted(names)}.")


def _input_shape(tensor: Any, given: Any) -> tuple[int, ...]:
    shape = tensor.shape[1:]
    preferred = given.get(tensor.name) if isinstance(given, Mapping) else given
    if preferred is not None:
        shape = _whole_shape(tensor.name, preferred)
    if None in shape:
        raise ValueError(
            f"Input {tensor.name!r} has the shape {tensor.shape[1:]}: a file needs fixed sizes. Give them without batch, "
            f"for example input_shapes={{{tensor.name!r}: (224, 224, 3)}}."
        )
    return shape


def _input_type(tensor: Any) -> str:
    """The type of an input that is a value in the graph."""
    dtype = "float32" if "float" in str(tensor.dtype) else str(tensor.dtype)
    if dtype not in PLAIN:
        raise ValueError(
            f"Input {tensor.name!r} is {tensor.dtype}; the integer graph reads {', '.join(PLAIN)}. Start the model with "
            "keras.Input(..., dtype='float32') or another of them."
        )
    return dtype


def library_version() -> str:
    """The installed version of this library, as in `keras_lowbit.__version__`."""
    try:
        return version("keras_lowbit")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0.0.0+unknown"


def _metadata(model: keras.Model) -> dict[str, Any]:
    recipe = {path: serialize(layer.kernel_quantizer) for path, layer in quantized_layers(model).items()}
    # The release whose kernels the integers are those of: ties may fall otherwise in another one.
    versions = {"keras_lowbit": library_version(), "litert": litert_version()}
    return {"name": model.name, **versions, "quantizers": recipe, **_output_names(model)}


def _output_names(model: keras.Model) -> dict[str, list[str]]:
    """The keys of a model that gives a dict of tensors, as the metadata have them."""
    made = functional_of(model).output
    if not isinstance(made, Mapping) or any(isinstance(value, Mapping | list | tuple) for value in made.values()):
        return {}
    return {"output_names": keras.tree.flatten({key: str(key) for key in made})}
