"""Float subgraphs: operations that stay float, kept as the one-subgraph .tflite that the converter made of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_lowbit.deploy.graph.tensors import PLAIN
from keras_lowbit.deploy.graph.unpacking import unpack


class End(NamedTuple):
    """An input or output of a subgraph. shape: the batch first.   dtype: one of `tensors.PLAIN`."""

    shape: tuple[int, ...]
    dtype: str


class FloatSubgraph(NamedTuple):
    """Inputs and outputs in the order of the subgraph."""

    inputs: list[End]
    outputs: list[End]
    batch_size: int


def describe(model: bytes, name: str) -> FloatSubgraph:
    """What the subgraph takes and gives. ValueError if it is not a model of values, of one subgraph with one batch size."""
    graph = read(model, name).subgraphs[0]
    types = _types()
    inputs, outputs = (
        [End(_shape(graph.tensors[i]), types[graph.tensors[i].type]) for i in side]
        for side in (graph.inputs, graph.outputs)
    )
    batches = {end.shape[0] if end.shape else 0 for end in (*inputs, *outputs)}
    if len(batches) != 1 or 0 in batches:
        raise ValueError(
            f"float_subgraph {name!r} has inputs of shapes {[e.shape for e in inputs]} and outputs of shapes "
            f"{[e.shape for e in outputs]}: expected the same batch size first in all of them"
        )
    return FloatSubgraph(inputs, outputs, batches.pop())


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(map(int, tensor.shape if tensor.shape is not None else ()))


def _types() -> dict[int, str]:
    """Number of a tensor type in LiteRT's schema -> our name of it, for those that values have."""
    from ai_edge_litert import schema_py_generated as schema

    return {getattr(schema.TensorType, dtype.upper()): dtype for dtype in PLAIN}


def load(model: bytes, name: str) -> Any:
    """The model as objects of LiteRT's schema. ValueError for bytes that are none."""
    from ai_edge_litert import schema_py_generated as schema

    where = f"float_subgraph {name!r}"
    if len(model) < 8 or model[4:8] != b"TFL3":
        raise ValueError(
            f"{where} is not a .tflite model ({len(model)} bytes): expected the bytes of a converted float model"
        )
    try:
        found = unpack(schema, "Model", model)
        graph = found.subgraphs[0]
        _ = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    except Exception as error:  # the schema raises whatever the damaged bytes lead it to
        raise ValueError(
            f"{where} holds a damaged .tflite model ({type(error).__name__}: {error}): convert it again"
        ) from error
    return found


def read(model: bytes, name: str) -> Any:
    """The model, checked to be one that can be spliced into another."""
    where, found = f"float_subgraph {name!r}", load(model, name)
    graph = found.subgraphs[0]
    if len(found.subgraphs) != 1:
        raise ValueError(
            f"{where} has {len(found.subgraphs)} subgraphs, those of loops or branches: expected one; leave control flow "
            "out of the exported model"
        )
    ends = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    computed = {int(i) for op in graph.operators or () for i in op.outputs}
    if any(tensor.type not in _types() for tensor in ends):
        raise ValueError(
            f"{where} has an input or output of another type than {', '.join(PLAIN)}: cast it to one of them with "
            "keras.ops.cast"
        )
    if len(set(graph.outputs)) != len(graph.outputs) or not computed.issuperset(map(int, graph.outputs)):
        raise ValueError(
            f"{where} must have outputs that are all different and all computed: leave constant results out of the "
            "exported model"
        )
    if any(b.offset for b in found.buffers):
        raise ValueError(f"{where} keeps its buffers outside the flatbuffer: convert it as a model below 2 GB")
    return found


def origins(model: bytes, name: str) -> list[int]:
    """Where each output of a converted model comes from: the place of the first output that is the same tensor,
    or ``~i`` where input i is passed on as it is."""
    graph = load(model, name).subgraphs[0]
    inputs, outputs = list(map(int, graph.inputs)), list(map(int, graph.outputs))
    return [~inputs.index(i) if i in inputs else outputs.index(i) for i in outputs]
