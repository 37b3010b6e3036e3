"""Reads integer graphs of format version 1: a zip of `graph.json` and `arrays.bin`, which holds every array end to end.

Nothing writes them any more. `read` gives them in the form of version 2.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np

from keras_lowbit.deploy.graph.tensors import DTYPES
from keras_lowbit.files import zip_member
from keras_lowbit.sealed import strict_json

_FORMER_OPERATIONS = {"float_island": "float_subgraph"}
# A kilobyte for each tensor and node makes 64 MiB those of 30,000 layers. No trained weights shrink to a hundredth.
_LARGEST_TEXT = 64 << 20
_MOST_EXPANSION = 100


def read(content: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """Description and arrays of a file, as version 2 has them. Whatever is wrong with the bytes raises something."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        header = strict_json(zip_member(archive, "graph.json", _LARGEST_TEXT))
        if not isinstance(header, dict) or header.get("version") != 1:
            return header, {}
        places = _places(header)
        total = sum(place["bytes"] for _, _, place, *_ in places)
        if total > _MOST_EXPANSION * len(content):
            raise ValueError(f"{len(content):,} bytes cannot hold the {total:,} bytes of its arrays")
        stored = zip_member(archive, "arrays.bin", total)
    if len(stored) != total:
        raise ValueError(f"its arrays take {total:,} bytes, {len(stored):,} are stored")
    arrays: dict[str, np.ndarray] = {}
    for entry, key, place, dtype, shape, name in places:
        array = np.frombuffer(_cut(stored, place), dtype).astype(dtype.newbyteorder("="))
        arrays[name] = array if shape is None else array.reshape(shape)
        entry[key] = {"array": name}
    for node in header["nodes"]:
        node["op"] = _FORMER_OPERATIONS.get(node["op"], node["op"])
    return header, arrays


def _places(header: dict[str, Any]) -> list[tuple[dict[str, Any], str, dict[str, int], Any, Any, str]]:
    """(entry, key in it, place in the bytes, dtype, shape, name to be) of every array."""
    found: list[tuple[dict[str, Any], str, dict[str, int], Any, Any, str]] = []
    for entry in header["tensors"]:
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"tensor {entry['name']!r} has dtype {entry['dtype']!r}")
        kind = np.dtype(entry["dtype"]).newbyteorder("<")
        for key, dtype, shape in (("scale", np.dtype("<f4"), None), ("data", kind, entry["shape"])):
            if isinstance(entry[key], dict):
                found.append((entry, key, entry[key], dtype, shape, f"{entry['name']}:{key}"))
    for node in header["nodes"]:
        for key, value in node["attributes"].items():
            if isinstance(value, dict):
                name = f"{node['name']}:{key}"
                found.append((node["attributes"], key, value["bytes_at"], np.dtype(np.uint8), None, name))
    for _, _, place, *_ in found:
        if any(type(place[part]) is not int or place[part] < 0 for part in ("offset", "bytes")):
            raise ValueError(f"an array is said to be at {place}")
    return found


def _cut(stored: bytes, place: dict[str, int]) -> bytes:
    start, size = place["offset"], place["bytes"]
    if start + size > len(stored):
        raise ValueError(f"an array of {size} bytes at {start} lies outside the {len(stored)} stored bytes")
    return stored[start : start + size]
