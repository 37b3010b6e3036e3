"""TFLite metadata: what an app must know to feed the file and to read its answer.

Two places in the file, both as TFLite's own tools have them: the model metadata entry TFLITE_METADATA, a flatbuffer
of its own (identifier M001), and the labels as `labels.txt` in a zip file appended behind the model, which LiteRT
does not look at.

Taken from the graph's metadata:

    name, description, version     strings
    normalization                  {"mean": [...], "std": [...]} of the first input: real = (pixel - mean) / std
    labels                         one string for each entry of the first output's last axis

The classes are flatc's, from TensorFlow Lite Support's schema (`metadata_schema.fbs`, `make metadata-schema`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.graph.unpacking import checked, unpack
from keras_lowbit.deploy.litert import metadata_schema_py_generated as schema
from keras_lowbit.files import zip_member

LABELS_FILE = "labels.txt"
_MOST_LABELS = 64 << 20  # bytes of all of them
MIN_PARSER_VERSION = "1.1.0"  # of the schema; no field that is set came later


def describe(graph: IntegerGraph) -> bytes:
    """The TFLITE_METADATA flatbuffer of a graph. ValueError if normalization or labels do not fit its ends."""
    check(graph)
    inputs, outputs = (
        [_tensor(name, graph.tensors[name].shape) for name in names] for names in (graph.inputs, graph.outputs)
    )
    if graph.metadata.get("normalization"):
        inputs[0].processUnits = [_normalization(graph.metadata["normalization"])]
    if graph.metadata.get("labels"):
        outputs[0].associatedFiles = [_labels_file()]
    words = {key: graph.metadata.get(key) for key in ("name", "description", "version")}
    model = schema.ModelMetadataT(
        **{key: word for key, word in words.items() if isinstance(word, str)},
        subgraphMetadata=[schema.SubGraphMetadataT(inputTensorMetadata=inputs, outputTensorMetadata=outputs)],
        minParserVersion=MIN_PARSER_VERSION,
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"M001")
    return bytes(builder.Output())


def append_labels(content: bytes, labels: Sequence[str]) -> bytes:
    """The model followed by a zip file with `labels.txt`, one label a line; unchanged without labels."""
    return content + _zip_of(labels, len(content)) if labels else content


def _zip_of(labels: Sequence[str], start: int) -> bytes:
    """The zip file with labels that stands behind `start` bytes."""
    stream = _Behind(start)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # MediaPipe reads no compressed ones
        entry = zipfile.ZipInfo(LABELS_FILE)  # its fixed date keeps equal models equal files
        archive.writestr(entry, "\n".join(labels) + "\n")
    return stream.getvalue()


class _Behind(io.BytesIO):
    """A stream that starts behind so many bytes, which it does not hold: a zip file says where its parts stand."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self._start = start

    def tell(self) -> int:
        """The place, from the start of all."""
        return self._start + super().tell()

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """To a place from the start of all, or as usual from elsewhere."""
        return self._start + super().seek(place - self._start if whence == io.SEEK_SET else place, whence)


def read_labels(content: bytes) -> list[str] | None:
    """The labels that `append_labels` left behind a model; None if there are none.

    ValueError if the model says that it has labels and there are none, or if a byte of them, or of the zip file around
    them, is not as it was written.
    """
    declared = _declares_labels(content)
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except zipfile.BadZipFile as error:
        if declared:
            raise ValueError(f"the {LABELS_FILE} that it declares is missing or damaged ({error})") from error
        return None
    with archive:
        if LABELS_FILE not in archive.namelist():
            if declared:
                raise ValueError(f"it declares {LABELS_FILE} and has only {archive.namelist()[:3]}")
            return None
        labels = zip_member(archive, LABELS_FILE, _MOST_LABELS).decode().splitlines()
        entries = archive.infolist()
    if [(e.compress_type, e.date_time) for e in entries] == [(zipfile.ZIP_STORED, zipfile.ZipInfo().date_time)]:
        # As we write it. What readers of zip files need and Python's does not look at: the entry's second head.
        start = entries[0].header_offset
        if _zip_of(labels, start) != content[start:]:
            raise ValueError(f"the zip file around {LABELS_FILE} is damaged")
    return labels


def difference(expected: bytes, got: bytes) -> str | None:
    """Where the TFLite metadata of one file lack, or have otherwise, what those of another say; None if nowhere.

    Fields that other tools add (authors, licenses, further files) may be there.
    """
    (wanted, found) = (_model_metadata(content) for content in (expected, got))
    return None if wanted is None else _lacking(wanted, found, "TFLite metadata")


def _model_metadata(content: bytes) -> Any:
    """The entry TFLITE_METADATA, unpacked; None without one."""
    from ai_edge_litert import schema_py_generated as litert_schema

    model = checked(litert_schema, "Model", content)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == b"TFLITE_METADATA":
            return unpack(schema, "ModelMetadata", model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    return None


def _declares_labels(content: bytes) -> bool:
    described = _model_metadata(content)
    subgraphs = (described and described.subgraphMetadata) or []
    tensors = [tensor for subgraph in subgraphs for tensor in subgraph.outputTensorMetadata or []]
    return any(file.name == LABELS_FILE for tensor in tensors for file in tensor.associatedFiles or [])


def _lacking(expected: Any, got: Any, where: str) -> str | None:
    """As `file_tree.first_difference`, of what is set in `expected` alone."""
    if expected is None:
        return None
    if isinstance(expected, list) and isinstance(got, list) and len(got) >= len(expected):
        parts = ((left, right, f"{where} {i}") for i, (left, right) in enumerate(zip(expected, got, strict=False)))
    elif hasattr(expected, "__dict__") and type(got) is type(expected):
        parts = ((value, getattr(got, name), f"{where}, {name}") for name, value in vars(expected).items())
    elif np.array_equal(expected, got):
        return None
    else:
        return f"{where} is {got!r}, expected {expected!r}"
    return next(filter(None, (_lacking(*part) for part in parts)), None)


def check(graph: IntegerGraph) -> None:
    """ValueError if labels or normalization do not fit the outputs and inputs they describe."""
    labels, norm = graph.metadata.get("labels"), graph.metadata.get("normalization")
    classes = graph.tensors[graph.outputs[0]].shape[-1]
    if labels:
        if not isinstance(labels, list | tuple):
            raise ValueError(f"metadata has labels {labels!r}: expected a list of {classes} strings")
        bad = [v for v in labels if not isinstance(v, str) or len(v.splitlines()) > 1]
        if bad or len(labels) != classes:
            raise ValueError(
                f"metadata has {len(labels)} labels{f', one of them {bad[0]!r}' if bad else ''}: expected {classes} "
                f"strings of one line, one for each entry of output {graph.outputs[0]!r}"
            )
    if norm:
        channels = graph.tensors[graph.inputs[0]].shape[-1]
        values = {k: _numbers(norm.get(k)) for k in ("mean", "std")} if isinstance(norm, Mapping) else {}
        fits = bool(values) and all(v.size in (1, channels) and np.isfinite(v).all() for v in values.values())
        if not fits or np.any(values["std"] <= 0):
            raise ValueError(
                f"metadata has normalization {norm!r}: expected {{'mean': [...], 'std': [...]}} with 1 or {channels} "
                "finite numbers each, std above 0"
            )


def _numbers(given: Any) -> np.ndarray:
    """Some numbers as float32; NaN for what is none, none for what is no list of them."""
    try:
        with np.errstate(over="ignore"):
            values = np.atleast_1d(np.asarray(given, np.float32))
    except (TypeError, ValueError, OverflowError):
        return np.array([np.nan], np.float32)
    return values if values.ndim == 1 else values.reshape(-1)[:0]


def _tensor(name: str, shape: Sequence[int | None]) -> schema.TensorMetadataT:
    return schema.TensorMetadataT(name=name, content=_content(shape))


def _content(shape: Sequence[int | None]) -> schema.ContentT:
    """An image for [batch, height, width, 1 or 3], else features."""
    if len(shape) != 4 or shape[3] not in (1, 3):
        return schema.ContentT(schema.ContentProperties.FeatureProperties, schema.FeaturePropertiesT())
    colors = schema.ColorSpaceType.RGB if shape[3] == 3 else schema.ColorSpaceType.GRAYSCALE
    return schema.ContentT(schema.ContentProperties.ImageProperties, schema.ImagePropertiesT(colors))


def _normalization(given: Mapping[str, Any]) -> schema.ProcessUnitT:
    mean, std = (np.atleast_1d(np.asarray(given[key], np.float32)) for key in ("mean", "std"))
    return schema.ProcessUnitT(
        schema.ProcessUnitOptions.NormalizationOptions, schema.NormalizationOptionsT(mean=mean, std=std)
    )


def _labels_file() -> schema.AssociatedFileT:
    return schema.AssociatedFileT(
        name=LABELS_FILE,
        description="Name of each entry of the last axis.",
        type=schema.AssociatedFileType.TENSOR_AXIS_LABELS,
    )
