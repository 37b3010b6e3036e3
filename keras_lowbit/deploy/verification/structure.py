"""Structural comparison of a .tflite file with a graph, before LiteRT runs the file: a damaged one could end the process.

Weights, biases and scales may differ; `verify` reports those.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.reader import FileTensor, LiteRTFile
from keras_lowbit.deploy.litert.weight_formats import BITS, Formats, WeightFormat, weighted_nodes


def formats_of(graph: IntegerGraph, file: LiteRTFile) -> Formats:
    """How the file holds the weights of each node of the graph, by node name."""
    found = {}
    for node in weighted_nodes(graph):
        kernel = file.tensors.get(f"{node.name}/kernel")
        kind = kernel.type.lower() if kernel is not None else "int8"
        dense = file.operator_of(node.outputs[0]) == "FULLY_CONNECTED"
        found[node.name] = WeightFormat(kind if kind in BITS else "int8", dense, "read back")
    return found


def check_same_structure(graph: IntegerGraph, file: LiteRTFile, path: str | os.PathLike[str]) -> Formats:
    """The formats of the file's weights, if it has the operators, options, tensors and shapes that the graph gives.

    Raises ValueError with the first difference.
    """
    _missing(graph, file, path)
    formats = formats_of(graph, file)
    io = "float32" if any(f"{name}/float32" in file.tensors for name in (*graph.inputs, *graph.outputs)) else "int8"
    batch_size = int(file.tensors[file.inputs[0]].shape[0]) if file.inputs else 1
    try:
        content, _ = litert.to_bytes(graph, weights=formats, io=io, batch_size=max(batch_size, 1))
    except ValueError as error:
        raise ValueError(_foreign(path, f"the model does not fit it ({error})")) from error
    expected, got = (_structure(f, graph) for f in (LiteRTFile.of_bytes(content), file))
    for part in expected:
        if expected[part] != got[part]:
            raise ValueError(_foreign(path, _first_difference(part, expected[part], got[part])))
    return formats


def _missing(graph: IntegerGraph, file: LiteRTFile, path: Any) -> None:
    missing = [name for node in graph.nodes for name in node.outputs if name not in file.tensors]
    if missing:
        raise ValueError(_foreign(path, f"it has no tensor {missing[0]!r}"))


def _foreign(path: Any, reason: str) -> str:
    return (
        f"{os.fspath(path)!r} was not exported from this model as it is now, or it is damaged: {reason}. Export it again: "
        "keras_lowbit.export_litert(model, path)."
    )


def _structure(file: LiteRTFile, graph: IntegerGraph) -> dict[str, Any]:
    """Everything but names inside float subgraphs (they differ from one conversion to the next), weights, biases, scales."""
    alias = _aliases(file, graph)
    return {
        "inputs": [alias[name] for name in file.inputs],
        "outputs": [alias[name] for name in file.outputs],
        "operators": [
            (op.builtin, tuple(alias.get(n, n) for n in op.inputs), tuple(alias[n] for n in op.outputs), op.options)
            for op in file.operators
        ],
        "tensors": {alias[name]: _tensor(tensor) for name, tensor in file.tensors.items()},
    }


def _aliases(file: LiteRTFile, graph: IntegerGraph) -> dict[str, str]:
    subgraphs = tuple(f"{node.name}/" for node in graph.nodes if node.op == "float_subgraph")
    found = {}
    for place, name in enumerate(file.tensors):
        inside = subgraphs and name.startswith(subgraphs) and name not in graph.tensors
        found[name] = f"inside a float subgraph, {place}" if inside else name
    return found


def _tensor(tensor: FileTensor) -> Mapping[str, Any]:
    scale_ok = bool(np.all(np.isfinite(tensor.scale) & (tensor.scale > 0)))
    integers = None  # axes, shapes, paddings: int32 without a scale
    if tensor.type == "INT32" and not tensor.scale.size and tensor.codes is not None:
        integers = tensor.codes.tolist()
    return {
        "type": tensor.type,
        "shape": tensor.shape,
        "scales": (tensor.scale.size, scale_ok),
        "zero points": tensor.zero_point.tolist() if tensor.zero_point.size > 1 else tensor.zero_point.size,
        "constant": tensor.codes is not None,
        "values": integers,
    }


def _first_difference(part: str, expected: Any, got: Any) -> str:
    if isinstance(expected, dict):
        names = [name for name in (*expected, *got) if expected.get(name) != got.get(name)]
        return f"tensor {names[0]!r} is {got.get(names[0])}, expected {expected.get(names[0])}"
    if len(expected) != len(got):
        return f"it has {len(got)} {part}, expected {len(expected)}"
    index = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    return f"{part.rstrip('s')} {index} is {got[index]}, expected {expected[index]}"
