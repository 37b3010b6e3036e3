"""One file for an integer graph: a safetensors file, the same bytes for the same graph.

Every array is a tensor of the file. What they mean stands as JSON under the key "graph" of its metadata, behind a line with
the sha256 of that JSON and all arrays: no flipped bit goes unseen. Per-tensor scales are in the JSON too: the decimal form
that Python prints for a float reads back to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from keras_lowbit.deploy.graph import former_files
from keras_lowbit.deploy.graph.tensors import Node, Tensor
from keras_lowbit.files import atomic_write

FORMAT = "keras_lowbit.integer_graph"
VERSION = 2
_DAMAGE = (KeyError, TypeError, IndexError, AttributeError, ValueError)


class GraphFileError(ValueError):
    """The file is not a sound integer graph that this version reads."""


def save(
    path: str | os.PathLike[str],
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
    text = json.dumps(header, allow_nan=False)
    atomic_write(path, safetensors.numpy.save(arrays, {"graph": f"{_digest(text, arrays)}\n{text}"}))


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        array = arrays[key]
        found.update(f"{key}{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the `IntegerGraph` in a file, not yet checked.

    Raises FileNotFoundError if there is none; GraphFileError if it is damaged, foreign or newer.
    """
    with open(path, "rb") as stream:
        start = stream.read(8)
    where = repr(os.fspath(path))
    if start[:2] == b"PK":
        try:
            header, arrays = former_files.read(path)
        except former_files.DAMAGE as error:
            raise damaged(path, error) from error
    else:
        header, arrays = _read(path, start)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise GraphFileError(f"{where} is not an integer graph: expected a file written by IntegerGraph.save")
    if not isinstance(header.get("version"), int) or header["version"] > VERSION:
        raise GraphFileError(
            f"{where} has format version {header.get('version')!r}, this keras_lowbit reads up to {VERSION}: upgrade "
            "keras_lowbit, or save the graph again with this version"
        )
    try:
        return _fields(header, arrays)
    except _DAMAGE as error:
        raise damaged(path, error) from error


def damaged(path: str | os.PathLike[str], error: Exception) -> GraphFileError:
    """What to raise for a file whose content is not sound."""
    return GraphFileError(f"{os.fspath(path)!r} is damaged: {type(error).__name__}: {error}. Save the graph again.")


def _read(path: str | os.PathLike[str], start: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    try:
        with safetensors.safe_open(os.fspath(path), "np") as file:
            text = (file.metadata() or {}).get("graph")
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, *_DAMAGE) as error:
        kind = "empty" if not start else f"starts with {start!r}"
        raise GraphFileError(
            f"{os.fspath(path)!r} is not an integer graph, or damaged or cut short ({kind}; {error}): expected a file "
            "written by IntegerGraph.save"
        ) from error
    digest, _, text = (text or "").partition("\n")
    if not text:
        return None, {}
    if digest != _digest(text, arrays):
        raise GraphFileError(f"{os.fspath(path)!r} is damaged: its content changed. Save the graph again.")
    try:
        return json.loads(text), arrays
    except ValueError as error:
        raise damaged(path, error) from error


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
    tensors = [_tensor(entry, arrays) for entry in header["tensors"]]
    if len({t.name for t in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    return {
        "tensors": {t.name: t for t in tensors},
        "nodes": tuple(_node(entry, arrays) for entry in header["nodes"]),
        "inputs": tuple(header["inputs"]),
        "outputs": tuple(header["outputs"]),
        "metadata": header["metadata"],
    }


def _tensor(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Tensor:
    scale, data = (
        arrays[entry[key]["array"]] if isinstance(entry[key], dict) else entry[key] for key in ("scale", "data")
    )
    return Tensor(entry["name"], tuple(entry["shape"]), entry["dtype"], scale, entry["zero_point"], data)


def _node(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Node:
    attributes = {
        key: arrays[value["array"]].tobytes() if isinstance(value, dict) else value
        for key, value in entry["attributes"].items()
    }
    return Node(entry["op"], entry["name"], tuple(entry["inputs"]), tuple(entry["outputs"]), attributes)
