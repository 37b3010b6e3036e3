"""Sealed files: JSON and arrays in one safetensors file, with a digest over both.

Every array is a tensor of the file. What they mean stands as JSON under one key of its metadata, behind a line with the sha256
of that JSON and all arrays: no flipped bit goes unseen. The same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy


class DamagedError(ValueError):
    """The bytes are no sealed file, or not as they were written; the text says why."""


def seal(key: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a file. key: what kind of file it is.   about: plain JSON without NaN or infinity."""
    stored = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(about, allow_nan=False)
    return safetensors.numpy.save(stored, {key: f"{_digest(text, stored)}\n{text}"})


def unseal(key: str, content: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    """JSON and arrays of a file. DamagedError, whatever the bytes are; memory in proportion to their number."""
    try:
        header = _header(content)
        digest, _, text = header.get("__metadata__", {}).get(key, "").partition("\n")
        if not text:
            raise DamagedError(f"it has no entry {key!r}")
        arrays = safetensors.numpy.load(content)
        if digest != _digest(text, arrays):
            raise DamagedError("its content is not that which was written")
        return strict_json(text), arrays
    except (DamagedError, MemoryError):
        raise
    except Exception as error:  # whatever damaged bytes lead the readers to
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def strict_json(text: str | bytes) -> Any:
    """JSON as the standard has it. ValueError for NaN, infinity and numbers that become infinite, RecursionError for
    nesting beyond reason."""
    return json.loads(text, parse_constant=_not_finite, parse_float=_finite)


def _header(content: bytes) -> Any:
    """The description at the start, whose size stands in the first 8 bytes."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > len(content) - 8:
        raise DamagedError(f"{len(content):,} bytes that begin with {content[:8]!r}: no safetensors file, or cut short")
    return strict_json(content[8 : 8 + size])


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        array = arrays[key]
        found.update(f"{key}{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is beyond float64")
    return value


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
