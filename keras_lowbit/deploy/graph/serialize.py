"""One file for an integer graph: a zip of `graph.json` and `arrays.bin`, the same bytes for the same graph.

`arrays.bin` holds every array end to end, little-endian; the JSON says where. Per-tensor scales are in the
JSON too: the decimal form that Python prints for a float reads back to the same bits.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.checks import check_graph
from keras_lowbit.deploy.graph.tensors import Node, Tensor
from keras_lowbit.files import atomic_write

FORMAT = "keras_lowbit.integer_graph"
VERSION = 1
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    TypeError,
    IndexError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


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
    blob = _Blob()
    tensor_entries = [_tensor_entry(t, blob) for t in tensors.values()]
    node_entries = [
        {
            "op": n.op,
            "name": n.name,
            "inputs": n.inputs,
            "outputs": n.outputs,
            "attributes": {k: _pack_attribute(v, blob) for k, v in n.attributes.items()},
        }
        for n in nodes
    ]
    text = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "tensors": tensor_entries,
            "nodes": node_entries,
            "inputs": list(inputs),
            "outputs": list(outputs),
            "metadata": dict(metadata),
        },
        allow_nan=False,
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("graph.json", text.encode()), ("arrays.bin", b"".join(blob.parts))):
            info = zipfile.ZipInfo(name)  # its fixed date makes equal graphs equal files
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    atomic_write(path, stream.getvalue())


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the `IntegerGraph` in a file.

    Raises FileNotFoundError if there is none; GraphFileError if it is damaged, foreign or newer.
    """
    with open(path, "rb") as stream:
        content = stream.read()
    where = repr(os.fspath(path))
    text, arrays = _unzip(content, where)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise GraphFileError(
            f"{where} is damaged: its description is not JSON ({error}). Save the graph again."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise GraphFileError(f"{where} is not an integer graph: expected a file written by IntegerGraph.save")
    if not isinstance(header.get("version"), int) or header["version"] > VERSION:
        raise GraphFileError(
            f"{where} has format version {header.get('version')!r}, this keras_lowbit reads "
            f"up to {VERSION}: "
            "upgrade keras_lowbit, or save the graph again with this version"
        )
    try:
        fields = _read_fields(header, arrays)
        check_graph(**fields)
    except _DAMAGE as error:
        raise GraphFileError(f"{where} is damaged: {type(error).__name__}: {error}. Save the graph again.") from error
    return fields


def _unzip(content: bytes, where: str) -> tuple[bytes, bytes]:
    if content[:2] != b"PK":
        kind = "empty" if not content else f"starts with {content[:8]!r}"
        raise GraphFileError(f"{where} is not an integer graph ({kind}): expected a file written by IntegerGraph.save")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if not {"graph.json", "arrays.bin"} <= set(archive.namelist()):
                raise GraphFileError(
                    f"{where} is a zip file but not an integer graph: it holds "
                    f"{archive.namelist()[:5]}, "
                    "expected graph.json and arrays.bin. Give a file written by "
                    "IntegerGraph.save"
                )
            return archive.read("graph.json"), archive.read("arrays.bin")
    except GraphFileError:
        raise
    except _DAMAGE as error:
        raise GraphFileError(
            f"{where} is damaged or cut short ({error}; {len(content)} bytes). Save the graph again."
        ) from error


class _Blob:
    """Arrays laid end to end while a graph is described."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, content: bytes) -> dict[str, int]:
        entry = {"offset": self.size, "bytes": len(content)}
        self.parts.append(content)
        self.size += len(content)
        return entry


def _tensor_entry(tensor: Tensor, blob: _Blob) -> dict[str, Any]:
    scale: Any = None
    if tensor.scale is not None:
        scale = blob.add(tensor.scale.astype("<f4").tobytes()) if tensor.scale.ndim else float(tensor.scale)
    data = None
    if tensor.data is not None:
        data = blob.add(tensor.data.astype(tensor.data.dtype.newbyteorder("<")).tobytes())
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "scale": scale,
        "zero_point": tensor.zero_point,
        "data": data,
    }


def _pack_attribute(value: Any, blob: _Blob) -> Any:
    return {"bytes_at": blob.add(value)} if isinstance(value, bytes) else value


def _read_fields(header: dict[str, Any], arrays: bytes) -> dict[str, Any]:
    tensors = [_read_tensor(entry, arrays) for entry in header["tensors"]]
    if len({t.name for t in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    nodes = tuple(
        Node(
            n["op"],
            n["name"],
            tuple(n["inputs"]),
            tuple(n["outputs"]),
            {k: _cut(arrays, v["bytes_at"]) if isinstance(v, dict) else v for k, v in n["attributes"].items()},
        )
        for n in header["nodes"]
    )
    return {
        "tensors": {t.name: t for t in tensors},
        "nodes": nodes,
        "inputs": tuple(header["inputs"]),
        "outputs": tuple(header["outputs"]),
        "metadata": header["metadata"],
    }


def _read_tensor(entry: dict[str, Any], arrays: bytes) -> Tensor:
    scale, data, shape = entry["scale"], entry["data"], tuple(entry["shape"])
    if isinstance(scale, dict):
        scale = np.frombuffer(_cut(arrays, scale), "<f4")
    if data is not None:
        stored = np.dtype(entry["dtype"]).newbyteorder("<")
        data = np.frombuffer(_cut(arrays, data), stored).reshape(shape).astype(entry["dtype"])
    return Tensor(entry["name"], shape, entry["dtype"], scale, entry["zero_point"], data)


def _cut(arrays: bytes, entry: dict[str, int]) -> bytes:
    start, size = entry["offset"], entry["bytes"]
    if start < 0 or size < 0 or start + size > len(arrays):
        raise ValueError(f"an array of {size} bytes at {start} lies outside the {len(arrays)} stored bytes")
    return arrays[start : start + size]
