"""Structural comparison of a .tflite file with a graph, before LiteRT runs the file: a damaged one could end the process.

The file that the graph gives is written anew, in memory, and the two are compared field by field. What may differ is taken out
and said here: codes and scales of weights and biases, which `verify` reports, and names inside float subgraphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.litert.ends import ends_in
from keras_lowbit.deploy.litert.file_tree import first_difference
from keras_lowbit.deploy.litert.metadata import check, difference
from keras_lowbit.deploy.litert.reader import LiteRTFile, parsing
from keras_lowbit.deploy.litert.weight_formats import BITS, Formats, WeightFormat, weighted_nodes
from keras_lowbit.files import FilePath, name_of

# Constants of a float subgraph are what the converter computed in float32 on this machine or another, relative to the largest.
_CONVERTED = 1e-5


def formats_of(graph: IntegerGraph, file: LiteRTFile) -> Formats:
    """How the file holds the weights of each node of the graph, by node name."""
    found = {}
    for node in weighted_nodes(graph):
        kernel = file.tensors.get(f"{node.name}/kernel")
        kind = kernel.type.lower() if kernel is not None else "int8"
        dense = file.operator_of(node.outputs[0]) == "FULLY_CONNECTED"
        channels = np.asarray(graph.tensors[node.inputs[1]].scale).size
        one_scale = kernel is not None and kernel.scale.size == 1 and channels > 1
        found[node.name] = WeightFormat(kind if kind in BITS else "int8", dense, "read back", one_scale)
    for node in graph.nodes:
        if node.op in ("logistic", "tanh") and file.operator_of(node.outputs[0]) == "GATHER":
            found[node.name] = WeightFormat("int8", False, "read back", table=True)
    return found


def check_same_structure(graph: IntegerGraph, file: LiteRTFile, path: FilePath) -> Formats:
    """The formats of the file's weights, if it says all that the graph gives, its metadata too, and nothing else.

    Raises ValueError with the first difference.
    """
    _missing(graph, file, path)
    formats = formats_of(graph, file)
    described = graph.with_metadata(**_notes(file, path))
    sizes = (size for name in file.inputs for size in file.tensors[name].shape[:1])
    batch_size = None if file.has_any_batch else max(next(sizes, 1), 1)
    try:
        check(described)
        ends = ends_in(graph, file.inputs, file.outputs)
        content, _ = litert.to_bytes(described, weights=formats, io=ends, batch_size=batch_size)
    except ValueError as error:
        raise ValueError(_foreign(path, f"the model does not fit it ({error})")) from error
    expected = LiteRTFile.of_bytes(content)
    with parsing(path, file.size):
        found = first_difference(_tree(expected, graph), _tree(file, graph), "the file") or difference(
            expected.content, file.content
        )
    if found:
        raise ValueError(_foreign(path, found))
    return formats


def _notes(file: LiteRTFile, path: FilePath) -> dict[str, Any]:
    """What the file says about itself that the model does not know."""
    with parsing(path, file.size):
        notes = litert.metadata_of(file.content)
        if notes is None:
            raise ValueError("it has no metadata entry 'keras_lowbit'")
        about = ("labels", "normalization", "name", "description", "version")
        return {key: notes[key] for key in about if key in notes}


def _missing(graph: IntegerGraph, file: LiteRTFile, path: FilePath) -> None:
    missing = [name for node in graph.nodes for name in node.outputs if name not in file.tensors]
    if missing:
        raise ValueError(_foreign(path, f"it has no tensor {missing[0]!r}"))


def _foreign(path: FilePath, reason: str) -> str:
    return (
        f"{name_of(path)!r} was not exported from this model as it is now, or it is damaged: {reason}. Export it again: "
        "keras_lowbit.export_litert(model, path)."
    )


def _tree(file: LiteRTFile, graph: IntegerGraph) -> dict[str, Any]:
    """All that a file says but for what may differ."""
    names = _aliases(file, graph)
    tree = file.tree(names)
    tree["metadata"] = {name: entry for name, entry in tree["metadata"].items() if name in litert.METADATA}
    for node in weighted_nodes(graph):
        for name in (f"{node.name}/kernel", f"{node.name}/bias"):
            if name in tree["tensors"]:
                tree["tensors"][name] = _reported(tree["tensors"][name])
    for name, own in zip(names, file.tensors, strict=True):
        if name != own:
            tree["tensors"][name] = _converted(tree["tensors"][name], file.tensors[own].type)
    return tree


def _aliases(file: LiteRTFile, graph: IntegerGraph) -> list[str]:
    subgraphs = tuple(f"{node.name}/" for node in graph.nodes if node.op == "float_subgraph")
    return [
        f"inside a float subgraph, {place}"
        if subgraphs and name.startswith(subgraphs) and name not in graph.tensors
        else name
        for place, name in enumerate(file.tensors)
    ]


def _reported(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """A kernel or bias without its codes and scales: how many there are, and whether LiteRT can take them."""
    grid, data = tensor["quantization"] or {}, tensor["content"]["data"]
    scale = np.asarray(grid.get("scale") if grid.get("scale") is not None else [], np.float32)
    sound = bool(np.all(np.isfinite(scale) & (scale > 0)))
    return {
        **tensor,
        "quantization": {**grid, "scale": (scale.size, sound)},
        "content": {**tensor["content"], "data": None if data is None else len(data)},
    }


class _Constant:
    """Floats that are equal as far as two conversions of one model give equal ones."""

    def __init__(self, data: np.ndarray) -> None:
        self.values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), "<f4")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Constant) or self.values.shape != other.values.shape:
            return False
        largest = float(np.abs(self.values).max(initial=0.0))
        with np.errstate(all="ignore"):
            return bool(np.all(np.abs(self.values - other.values) <= _CONVERTED * largest))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.values.size} floats from {self.values[:4].tolist()} on"


def _converted(tensor: dict[str, Any], kind: str) -> dict[str, Any]:
    data = tensor["content"]["data"]
    if data is None or kind != "FLOAT32" or len(data) % 4:
        return tensor
    return {**tensor, "content": {**tensor["content"], "data": _Constant(data)}}
