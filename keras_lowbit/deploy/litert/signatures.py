"""Several networks in one file, each with a signature of its own; constants that are equal are stored once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lowbit.arguments import check_path, shown
from keras_lowbit.deploy.graph.unpacking import unpack
from keras_lowbit.deploy.litert.metadata import read_labels
from keras_lowbit.deploy.litert.reader import parsing, read_bytes
from keras_lowbit.files import FilePath, atomic_write, name_of

_ALONE = "serving_default"  # the signature of a file of one network


def join_signatures(files: Mapping[str, FilePath], path: FilePath) -> None:
    """Write one file of several that `export_litert` wrote, each with the signature of its key.

    An app asks LiteRT's interpreter for one by its name: `interpreter.get_signature_runner("encode")`. What the networks have
    in common, weights with equal codes above all, is in the file once: take the parts of one quantized model as models,
    ``keras.Model(q.input, q.get_layer("features").output)``. `verify(..., signature="encode")` compares one of them.
    files: name of the signature -> file without labels.   path: of the new file, written whole or not at all.
    Raises TypeError or ValueError for what is no such mapping, FileNotFoundError or ValueError for a file that is missing,
    foreign, damaged, has labels (which stand behind a whole file) or several signatures already.

    >>> written = klb.export_litert(quantized, "reals.tflite", io="float32")
    >>> klb.deploy.join_signatures({"codes": "m.tflite", "reals": "reals.tflite"}, "both.tflite")
    """
    from keras_lowbit.deploy.litert.flatbuffer import FileBuilder

    check_path("join_signatures", path)
    if not isinstance(files, Mapping) or not files or not all(isinstance(name, str) and name for name in files):
        raise TypeError(f"join_signatures got {shown(files)}; give a dict {{name of a signature: path of its file}}.")
    made = FileBuilder("keras_lowbit")
    made.model.subgraphs = []
    for name, source in files.items():
        content = read_bytes(source)
        with parsing(source, len(content)):
            model, labels = _unpacked(content), read_labels(content)
        if len(model.subgraphs) != 1 or len(model.signatureDefs) != 1 or labels:
            raise ValueError(
                f"{name_of(source)!r} has {len(model.subgraphs)} subgraphs, {len(model.signatureDefs)} signatures and "
                f"{len(labels or [])} labels: expected a file of one network that export_litert wrote without labels="
            )
        _append(made, model, 0, name, {_text(entry.name): f"{name}/{_text(entry.name)}" for entry in model.metadata})
    atomic_write(path, made.pack())


def one_signature(path: FilePath, name: str) -> bytes:
    """The file of one network of those in another. ValueError if there is none of that name, and for a damaged file."""
    from keras_lowbit.deploy.litert.flatbuffer import FileBuilder

    content = read_bytes(path)
    with parsing(path, len(content)):
        model = _unpacked(content)
        names = [_text(signature.signatureKey) for signature in model.signatureDefs]
    if name not in names:
        raise ValueError(f"{name_of(path)!r} has no signature {name!r}, but {', '.join(map(repr, names))}.")
    made = FileBuilder("keras_lowbit")
    made.model.subgraphs = []
    with parsing(path, len(content)):
        kept = [_text(entry.name) for entry in model.metadata if _text(entry.name).startswith(f"{name}/")]
        _append(made, model, names.index(name), _ALONE, {entry: entry.removeprefix(f"{name}/") for entry in kept})
        return made.pack()


def _append(made: Any, model: Any, place: int, name: str, metadata: Mapping[str, str]) -> None:
    """Copy a signature of a file into another. metadata: entries to copy, with their names there."""
    signature = model.signatureDefs[place]
    graph = model.subgraphs[signature.subgraphIndex]
    graph.name = "main" if name == _ALONE else name
    for tensor in graph.tensors:
        tensor.buffer = made.buffer(_bytes(model.buffers[tensor.buffer].data))
    for operator in graph.operators or []:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        operator.opcodeIndex = made.code(kind, code.version, code.customCode)
    signature.signatureKey, signature.subgraphIndex = name, len(made.model.subgraphs)
    made.model.subgraphs.append(graph)
    made.model.signatureDefs.append(signature)
    for entry in model.metadata:
        if _text(entry.name) in metadata:
            made.metadata(metadata[_text(entry.name)], _bytes(model.buffers[entry.buffer].data))


def _unpacked(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return unpack(schema, "Model", content)


def _bytes(data: Any) -> bytes:
    return b"" if data is None else np.asarray(data, np.uint8).tobytes()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
