"""All that a .tflite file says, as dicts and lists without indices, and the first difference between two such trees.

Every field of every table is in it, whether anybody here knows it or not: what may differ is for the caller to take out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_LISTS = ("buffers", "operatorCodes", "subgraphs", "signatureDefs", "metadata")
_PARTS = ("tensors", "inputs", "outputs", "operators")
_SIDES = ("inputs", "outputs", "intermediates")


def file_tree(model: Any, names: list[str]) -> dict[str, Any]:
    """The tree of an unpacked model of one subgraph; of its metadata, the contents apart, which are tables of their own.

    names: of the tensors, instead of those they have.
    """
    graph = model.subgraphs[0]
    return {
        "model": _fields(model, *_LISTS) | {"subgraphs": len(model.subgraphs)},
        "graph": _fields(graph, *_PARTS),
        "inputs": named(graph.inputs, names),
        "outputs": named(graph.outputs, names),
        "signatures": [_signature(signature, names) for signature in model.signatureDefs or []],
        "metadata": {
            entry.name.decode(): _fields(model.buffers[entry.buffer], "data") for entry in model.metadata or []
        },
        "operators": [_operator(operator, model.operatorCodes, names) for operator in graph.operators],
        "tensors": {
            name: _fields(tensor, "name", "buffer") | {"content": _fields(model.buffers[tensor.buffer])}
            for name, tensor in zip(names, graph.tensors, strict=True)
        },
    }


def named(indices: Any, names: list[str], optional: bool = False) -> list[str]:
    """The tensors of some indices. IndexError for one that is none; -1, a tensor left out, is "" where that is allowed."""
    found = []
    for index in indices if indices is not None else ():
        if not 0 <= index < len(names) and not (optional and index == -1):
            raise IndexError(f"tensor {index} of {len(names)}")
        found.append(names[index] if index >= 0 else "")
    return found


def first_difference(expected: Any, got: Any, where: str) -> str | None:
    """Where two trees differ first, with both values; None if they are equal."""
    return next(_differences(expected, got, where), None)


def _differences(expected: Any, got: Any, where: str) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in dict.fromkeys((*expected, *got)):
            if key not in got or key not in expected:
                yield f"{where} has {'no' if key in expected else 'an unexpected'} {key!r}"
            else:
                yield from _differences(expected[key], got[key], f"{where}, {key}")
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            yield f"{where} has {len(got)} entries, expected {len(expected)}"
        for place, (left, right) in enumerate(zip(expected, got, strict=False)):
            yield from _differences(left, right, f"{where} {place}")
    elif not _same(expected, got):
        yield f"{where} is {_shown(got)}, expected {_shown(expected)}"


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    return type(left) is type(right) and bool(left == right)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.tolist()) if value.size <= 8 else f"{value.size} values from {value[:4].tolist()} on"
    return repr(value)[:200]


def _fields(table: Any, *without: str) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(table).items() if key not in without}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return _fields(value) if hasattr(value, "__dict__") else value


def _operator(operator: Any, codes: list[Any], names: list[str]) -> dict[str, Any]:
    sides = {side: named(getattr(operator, side), names, side != "outputs") for side in _SIDES}
    if not 0 <= operator.opcodeIndex < len(codes):
        raise IndexError(f"operator code {operator.opcodeIndex} of {len(codes)}")
    return _fields(operator, "opcodeIndex", *_SIDES) | sides | {"code": _fields(codes[operator.opcodeIndex])}


def _signature(signature: Any, names: list[str]) -> dict[str, Any]:
    ends = {
        side: [
            _fields(end, "tensorIndex") | {"tensor": named([end.tensorIndex], names)}
            for end in getattr(signature, side)
        ]
        for side in ("inputs", "outputs")
    }
    return _fields(signature, "inputs", "outputs") | ends
