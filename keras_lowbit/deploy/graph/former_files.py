"""Reads integer graphs of format version 1: a zip of `graph.json` and `arrays.bin`, which holds every array end to end.

Nothing writes them any more. `read` gives them in the form of version 2.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from typing import Any

import numpy as np

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)
_FORMER_OPERATIONS = {"float_island": "float_subgraph"}


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of a file, as version 2 has them. Raises one of `DAMAGE` for a file that is none."""
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("graph.json"))
        content = archive.read("arrays.bin")
    arrays: dict[str, np.ndarray] = {}
    if header.get("version") != 1:
        return header, arrays
    for entry in header["tensors"]:
        _take(entry, "scale", np.dtype("<f4"), None, f"{entry['name']}:scale", content, arrays)
        kind = np.dtype(entry["dtype"]).newbyteorder("<")
        _take(entry, "data", kind, entry["shape"], f"{entry['name']}:data", content, arrays)
    for node in header["nodes"]:
        node["op"] = _FORMER_OPERATIONS.get(node["op"], node["op"])
        for key, value in node["attributes"].items():
            if isinstance(value, dict):
                node["attributes"][key] = value["bytes_at"]
                name = f"{node['name']}:{key}"
                _take(node["attributes"], key, np.dtype(np.uint8), None, name, content, arrays)
    return header, arrays


def _take(
    entry: dict[str, Any],
    key: str,
    dtype: np.dtype[Any],
    shape: list[int] | None,
    name: str,
    content: bytes,
    arrays: dict[str, np.ndarray],
) -> None:
    """Move one array out of the bytes; the entry names it instead."""
    place = entry[key]
    if not isinstance(place, dict):
        return
    start, size = place["offset"], place["bytes"]
    if start < 0 or size < 0 or start + size > len(content):
        raise ValueError(f"an array of {size} bytes at {start} lies outside the {len(content)} stored bytes")
    array = np.frombuffer(content[start : start + size], dtype).astype(dtype.newbyteorder("="))
    arrays[name] = array if shape is None else array.reshape(shape)
    entry[key] = {"array": name}
