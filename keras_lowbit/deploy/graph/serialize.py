"""One file for an integer graph: a sealed safetensors file, the same bytes for the same graph.

Per-tensor scales are in the JSON: the decimal form that Python prints for a float reads back to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph import former_files
from keras_lowbit.deploy.graph.tensors import Node, Tensor
from keras_lowbit.files import FilePath, atomic_write, name_of, read_whole
from keras_lowbit.sealed import DamagedError, seal, unseal

FORMAT = "keras_lowbit.integer_graph"
VERSION = 2
_KEY = "graph"
_HEADER = {
    "format": str,
    "version": int,
    "tensors": list,
    "nodes": list,
    "inputs": list,
    "outputs": list,
    "metadata": dict,
}
_TENSOR = {
    **{"name": str, "shape": list, "dtype": str, "scale": (int, float, dict, type(None)), "zero_point": int},
    "data": (dict, type(None)),
}
_NODE = {"op": str, "name": str, "inputs": list, "outputs": list, "attributes": dict}


class GraphFileError(ValueError):
    """The file is not a sound integer graph that this version reads."""


def save(
    path: FilePath,
    tensors: Mapping[str, Tensor],
    nodes: Sequence[Node],
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write the fields of a sound `IntegerGraph` to `path`, atomically. OSError if it cannot be written."""
    arrays: dict[str, np.ndarray] = {}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "tensors": [_tensor_entry(t, arrays) for t in tensors.values()],
        "nodes": [_node_entry(n, arrays) for n in nodes],
        "inputs": list(inputs),
        "outputs": list(outputs),
        "metadata": dict(metadata),
    }
    atomic_write(path, seal(_KEY, header, arrays))


def load(path: FilePath) -> dict[str, Any]:
    """The fields of the `IntegerGraph` in a file, of the right types; `IntegerGraph.validate` looks at what they say.

    Raises FileNotFoundError if there is none; GraphFileError if it is damaged, foreign or newer.
    """
    content, where = read_whole(path), repr(name_of(path))
    with damage(path):
        try:
            header, arrays = former_files.read(content) if content[:2] == b"PK" else unseal(_KEY, content)
        except DamagedError as error:
            raise GraphFileError(
                f"{where} is not an integer graph, or damaged or cut short ({error}): expected a file written by "
                "IntegerGraph.save"
            ) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise GraphFileError(f"{where} is not an integer graph: expected a file written by IntegerGraph.save")
        version = header.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise GraphFileError(
                f"{where} has format version {version!r}, this keras_lowbit reads 1 to {VERSION}: upgrade keras_lowbit, or "
                "save the graph again with this version"
            )
        return _fields(_typed(header, "the description", _HEADER), arrays)


@contextmanager
def damage(path: FilePath) -> Iterator[None]:
    """Whatever the content of a file leads its readers to, as one GraphFileError with the file's name."""
    try:
        yield
    except (GraphFileError, MemoryError):
        raise
    except Exception as error:
        raise GraphFileError(
            f"{name_of(path)!r} is damaged: {type(error).__name__}: {error}. Save the graph again."
        ) from error


def _tensor_entry(tensor: Tensor, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    scale: Any = None
    if tensor.scale is not None:
        scale = _stored(arrays, f"{tensor.name}:scale", tensor.scale) if tensor.scale.ndim else float(tensor.scale)
    data = None if tensor.data is None else _stored(arrays, f"{tensor.name}:data", tensor.data)
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "scale": scale,
        "zero_point": tensor.zero_point,
        "data": data,
    }


def _node_entry(node: Node, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    attributes = {
        key: _stored(arrays, f"{node.name}:{key}", np.frombuffer(value, np.uint8))
        if isinstance(value, bytes)
        else value
        for key, value in node.attributes.items()
    }
    return {
        "op": node.op,
        "name": node.name,
        "inputs": node.inputs,
        "outputs": node.outputs,
        "attributes": attributes,
    }


def _stored(arrays: dict[str, np.ndarray], key: str, array: np.ndarray) -> dict[str, str]:
    """Put an array into the file; what stands for it in the JSON."""
    arrays[key] = np.ascontiguousarray(array)
    return {"array": key}


def _fields(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    left = dict(arrays)
    tensors = [_tensor(_typed(entry, "a tensor", _TENSOR), left) for entry in header["tensors"]]
    nodes = tuple(_node(_typed(entry, "a node", _NODE), left) for entry in header["nodes"])
    if len({t.name for t in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    if left:
        raise ValueError(f"it holds arrays that nothing names: {sorted(left)[:3]}")
    return {
        "tensors": {t.name: t for t in tensors},
        "nodes": nodes,
        "inputs": _texts(header["inputs"], "inputs"),
        "outputs": _texts(header["outputs"], "outputs"),
        "metadata": header["metadata"],
    }


def _typed(entry: Any, what: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the JSON. ValueError unless it has these keys with values of these types; true is no number."""
    if not isinstance(entry, dict) or entry.keys() != types.keys():
        raise ValueError(f"{what} is {str(entry)[:80]}: expected {{{', '.join(types)}}}")
    for key, kind in types.items():
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise ValueError(f"{what} has {key} {str(entry[key])[:80]!r}")
    return entry


def _texts(values: list[Any], what: str) -> tuple[str, ...]:
    if any(not isinstance(value, str) for value in values):
        raise ValueError(f"{what} are {str(values)[:80]}: expected names")
    return tuple(values)


def _taken(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value of the JSON, or the array that it names. Each is named once: none is multiplied in memory."""
    if not isinstance(value, dict):
        return value
    return arrays.pop(_typed(value, "the place of an array", {"array": str})["array"])


def _tensor(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Tensor:
    scale, data = (_taken(entry[key], arrays) for key in ("scale", "data"))
    return Tensor(entry["name"], tuple(entry["shape"]), entry["dtype"], scale, entry["zero_point"], data)


def _node(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Node:
    attributes = {
        key: _taken(value, arrays).tobytes() if isinstance(value, dict) else value
        for key, value in entry["attributes"].items()
    }
    inputs, outputs = (_texts(entry[side], f"{side} of {entry['name']!r}") for side in ("inputs", "outputs"))
    return Node(entry["op"], entry["name"], inputs, outputs, attributes)
