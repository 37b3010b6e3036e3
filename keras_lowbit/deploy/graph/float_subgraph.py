"""Float islands: operations that stay float, kept as the one-subgraph .tflite that the converter made of
them.

`describe` reads what goes in and out, `origins` which outputs are one value; `splice` copies operators, tensors
and buffers into the file that is being written.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from keras_lowbit.deploy.litert.flatbuffer import FileBuilder


class Island(NamedTuple):
    """Shapes with the batch first, in the order of the subgraph's inputs and outputs."""

    input_shapes: list[tuple[int, ...]]
    output_shapes: list[tuple[int, ...]]
    batch_size: int


def describe(model: bytes, name: str) -> Island:
    """What the island takes and gives. ValueError if it is not a float model of one subgraph with one batch
    size."""
    graph = _read(model, name).subgraphs[0]
    ends = [[graph.tensors[i] for i in side] for side in (graph.inputs, graph.outputs)]
    shapes = [[tuple(map(int, t.shape if t.shape is not None else ())) for t in side] for side in ends]
    batches = {s[0] if s else 0 for side in shapes for s in side}
    if len(batches) != 1 or 0 in batches:
        raise ValueError(
            f"float_island {name!r} has inputs of shapes {shapes[0]} and outputs of shapes "
            f"{shapes[1]}: expected the "
            "same batch size first in all of them"
        )
    return Island(shapes[0], shapes[1], batches.pop())


def origins(model: bytes, name: str) -> list[int]:
    """Where each output of a converted model comes from: the place of the first output that is the same tensor,
    or ``~i`` where input i is passed on as it is."""
    graph = _load(model, name).subgraphs[0]
    inputs, outputs = list(map(int, graph.inputs)), list(map(int, graph.outputs))
    return [~inputs.index(i) if i in inputs else outputs.index(i) for i in outputs]


def splice(file: FileBuilder, model: bytes, name: str, inputs: list[int], outputs: list[int]) -> None:
    """Append the island's operators to `file`, reading the file's tensors `inputs` and writing its tensors
    `outputs`.

    Every other tensor of the island is added as `name/<its own name>`.
    """
    island = _read(model, name)
    graph = island.subgraphs[0]
    place = {-1: -1}  # an optional input that is left out
    for theirs, ours in ((graph.inputs, inputs), (graph.outputs, outputs)):
        place.update(zip(map(int, theirs), ours, strict=True))
    for index, tensor in enumerate(graph.tensors):
        if index not in place:
            place[index] = _copy_tensor(file, tensor, island.buffers, name, index)
    for operator in graph.operators:
        code = island.operatorCodes[operator.opcodeIndex]
        moved = copy.copy(operator)
        moved.opcodeIndex = file.code(max(code.builtinCode, code.deprecatedBuiltinCode), code.version, code.customCode)
        for side in ("inputs", "outputs", "intermediates"):
            old = getattr(operator, side)
            if old is not None:
                setattr(moved, side, np.array([place[int(i)] for i in old], np.int32))
        file.graph.operators.append(moved)


def _copy_tensor(file: FileBuilder, tensor: Any, buffers: list[Any], name: str, index: int) -> int:
    moved = copy.copy(tensor)
    content = buffers[tensor.buffer].data
    moved.buffer = file.buffer(b"" if content is None else np.asarray(content, np.uint8).tobytes())
    own = tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name
    moved.name = f"{name}/{own or index}"
    return file.add_tensor(moved)


def _load(model: bytes, name: str) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    where = f"float_island {name!r}"
    if len(model) < 8 or model[4:8] != b"TFL3":
        raise ValueError(
            f"{where} is not a .tflite model ({len(model)} bytes): expected the bytes of a converted float model"
        )
    try:
        island = schema.ModelT.InitFromPackedBuf(model)
        graph = island.subgraphs[0]
        _ = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    except Exception as error:  # the schema raises whatever the damaged bytes lead it to
        raise ValueError(
            f"{where} holds a damaged .tflite model ({type(error).__name__}: {error}): convert it again"
        ) from error
    return island


def _read(model: bytes, name: str) -> Any:
    """The model, checked to be one that can be spliced into another."""
    from ai_edge_litert import schema_py_generated as schema

    where, island = f"float_island {name!r}", _load(model, name)
    graph = island.subgraphs[0]
    if len(island.subgraphs) != 1:
        raise ValueError(
            f"{where} has {len(island.subgraphs)} subgraphs, those of loops or branches: expected one. An LSTM, GRU or "
            "SimpleRNN has no loop with unroll=True; leave other control flow out of the exported model"
        )
    floats = all(graph.tensors[i].type == schema.TensorType.FLOAT32 for i in (*graph.inputs, *graph.outputs))
    computed = {int(i) for op in graph.operators or () for i in op.outputs}
    if not floats or len(set(graph.outputs)) != len(graph.outputs) or not computed.issuperset(map(int, graph.outputs)):
        raise ValueError(
            f"{where} must have float32 inputs and outputs, and outputs that are all different and all computed: leave "
            "integer and constant results out of the exported model"
        )
    if any(b.offset for b in island.buffers):
        raise ValueError(f"{where} keeps its buffers outside the flatbuffer: convert it as a model below 2 GB")
    return island
