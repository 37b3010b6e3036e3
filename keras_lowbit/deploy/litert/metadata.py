"""TFLite metadata: what an app must know to feed the file and to read its answer.

Two places in the file, both as TFLite's own tools have them: the model metadata entry TFLITE_METADATA, a flatbuffer
of its own (identifier M001), and the labels as `labels.txt` in a zip file appended behind the model, which LiteRT
does not look at.

Taken from the graph's metadata:

    name, description, version     strings
    normalization                  {"mean": [...], "std": [...]} of the first input: real = (pixel - mean) / std
    labels                         one string for each entry of the first output's last axis

The field numbers are those of TensorFlow Lite Support's `metadata_schema.fbs`, schema version 1.1.0. They are written
with plain flatbuffers, because the package that ships that schema's module is not installed with LiteRT.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph

LABELS_FILE = "labels.txt"
_FEATURES, _IMAGE, _NORMALIZATION, _RGB, _GRAY, _AXIS_LABELS = 1, 2, 1, 1, 2, 2


def describe(graph: IntegerGraph) -> bytes:
    """The TFLITE_METADATA flatbuffer of a graph. ValueError if normalization or labels do not fit its ends."""
    check(graph)
    b = flatbuffers.Builder(1024)
    about = graph.metadata
    inputs = [_tensor(b, graph, n, about.get("normalization") if i == 0 else None) for i, n in enumerate(graph.inputs)]
    outputs = [_tensor(b, graph, n, labels=bool(about.get("labels")) and i == 0) for i, n in enumerate(graph.outputs)]
    subgraph = _table(b, 9, {2: _vector(b, inputs), 3: _vector(b, outputs)})
    words = {
        slot: b.CreateString(str(about[key]))
        for slot, key in enumerate(("name", "description", "version"))
        if isinstance(about.get(key), str)
    }
    root = _table(b, 8, {**words, 3: _vector(b, [subgraph]), 7: b.CreateString("1.1.0")})
    b.Finish(root, file_identifier=b"M001")
    return bytes(b.Output())


def append_labels(content: bytes, labels: Sequence[str]) -> bytes:
    """The model followed by a zip file with `labels.txt`, one label a line; unchanged without labels."""
    if not labels:
        return content
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(LABELS_FILE)  # its fixed date keeps equal models equal files
        entry.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(entry, "\n".join(labels) + "\n")
    return stream.getvalue()


def read_labels(content: bytes) -> list[str] | None:
    """The labels that `append_labels` left behind a model; None if there are none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(LABELS_FILE).decode().splitlines()
    except (zipfile.BadZipFile, KeyError):
        return None


def check(graph: IntegerGraph) -> None:
    """ValueError if labels or normalization do not fit the outputs and inputs they describe."""
    labels, norm = graph.metadata.get("labels"), graph.metadata.get("normalization")
    classes = graph.tensors[graph.outputs[0]].shape[-1]
    if labels:
        bad = [v for v in labels if not isinstance(v, str) or len(v.splitlines()) > 1]
        if bad or len(labels) != classes:
            raise ValueError(
                f"metadata has {len(labels)} labels{f', one of them {bad[0]!r}' if bad else ''}: "
                "expected "
                f"{classes} strings of one line, one for each entry of output {graph.outputs[0]!r}"
            )
    if norm:
        channels = graph.tensors[graph.inputs[0]].shape[-1]
        values = {k: np.atleast_1d(norm.get(k, ())) for k in ("mean", "std")} if isinstance(norm, Mapping) else {}
        fits = bool(values) and all(v.size in (1, channels) and np.isfinite(v).all() for v in values.values())
        if not fits or np.any(values["std"] <= 0):
            raise ValueError(
                f"metadata has normalization {norm!r}: expected {{'mean': [...], 'std': [...]}} with 1 "
                "or "
                f"{channels} finite numbers each, std above 0"
            )


def _tensor(
    b: Any, graph: IntegerGraph, name: str, normalization: Mapping[str, Any] | None = None, labels: bool = False
) -> int:
    fields = {0: b.CreateString(name), 3: _content(b, graph.tensors[name].shape)}
    if normalization:
        numbers = {
            i: b.CreateNumpyVector(np.atleast_1d(np.asarray(normalization[k], np.float32)))
            for i, k in enumerate(("mean", "std"))
        }
        fields[4] = _vector(b, [_table(b, 2, {1: _table(b, 2, numbers)}, {0: _NORMALIZATION})])
    if labels:
        words = {0: b.CreateString(LABELS_FILE), 1: b.CreateString("Name of each entry of the last axis.")}
        fields[6] = _vector(b, [_table(b, 5, words, {2: _AXIS_LABELS})])
    return _table(b, 7, fields)


def _content(b: Any, shape: Sequence[int | None]) -> int:
    """An image for [batch, height, width, 1 or 3], else features."""
    image = len(shape) == 4 and shape[3] in (1, 3)
    kind = _table(b, 2, {}, {0: _RGB if shape[3] == 3 else _GRAY}) if image else _table(b, 0, {})
    return _table(b, 3, {1: kind}, {0: _IMAGE if image else _FEATURES})


def _table(b: Any, size: int, offsets: Mapping[int, int], bytes_: Mapping[int, int] | None = None) -> int:
    """A flatbuffer table of `size` fields: offsets and single bytes by field number."""
    b.StartObject(size)
    for slot, offset in offsets.items():
        b.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, value in (bytes_ or {}).items():
        b.PrependUint8Slot(slot, value, 0)
    return b.EndObject()


def _vector(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()
