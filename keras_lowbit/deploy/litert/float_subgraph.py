"""Float subgraphs inside a LiteRT file: which outputs are one value, and copying their operators into another file."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.float_subgraph import read
from keras_lowbit.deploy.litert.flatbuffer import FileBuilder


def splice(file: FileBuilder, model: bytes, name: str, inputs: list[int], outputs: list[int]) -> None:
    """Append the subgraph's operators to `file`, reading the file's tensors `inputs` and writing its tensors
    `outputs`.

    Every other tensor of the subgraph is added as `name/<its own name>`.
    """
    source = read(model, name)
    graph = source.subgraphs[0]
    place = {-1: -1}  # an optional input that is left out
    for theirs, ours in ((graph.inputs, inputs), (graph.outputs, outputs)):
        place.update(zip(map(int, theirs), ours, strict=True))
    for index, tensor in enumerate(graph.tensors):
        if index not in place:
            place[index] = _copy_tensor(file, tensor, source.buffers, name, index)
    for operator in graph.operators:
        code = source.operatorCodes[operator.opcodeIndex]
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
