"""IntegerGraph -> .tflite: every code and scale of the graph, in LiteRT's layouts, with nothing left to a
converter.

The file is written through the schema module that `ai_edge_litert` ships rather than by patching a converted
file: the converter chooses weight types by itself (4 bits or fewer become the slow INT4 CONV_2D), refuses a
dense layer with one scale per channel, and would have to be undone tensor by tensor.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from keras_lowbit.arguments import check_whole
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.litert.format_choice import Weights, plan_formats
from keras_lowbit.deploy.litert.weight_formats import with_dense_pointwise
from keras_lowbit.files import FilePath, atomic_write
from keras_lowbit.sealed import strict_json

if TYPE_CHECKING:
    from keras_lowbit.deploy.litert.operators import Emitter, Row


METADATA = ("keras_lowbit", "TFLITE_METADATA")  # the entries of a file: our notes, and TFLite's own


def write(
    graph: IntegerGraph,
    path: FilePath,
    *,
    weights: Weights = "int8",
    io: str = "int8",
    batch_size: int = 1,
) -> list[Row]:
    """Write `graph` as a LiteRT file, atomically. Returns one Row for each layer with weights.

    weights: format asked for: "int8", or "int4" / "int2" for dense layers and 1x1 convolutions (stride 1,
    one group) whose codes fit; a layer that does not fit takes the next larger one and its row says why; "auto" or a
    `LatencyTable`: the smallest that is no slower; or a `WeightFormat` for each node by name.
    io: "int8", or "float32" to add QUANTIZE after the inputs and DEQUANTIZE before the outputs.
    batch_size: every shape in the file is static.

    Tensors have the names they have in the graph; with io="float32" the float ends are `<name>/float32`. The
    signature is "serving_default", with the names of the graph's inputs and outputs.

    Packed weights, measured on LiteRT 2.3: INT4 and INT2 files load on the default delegate, on the built-in kernels
    and on BUILTIN_REF. On the first two the output has the bits of the int8 file. BUILTIN_REF rounds FULLY_CONNECTED
    once and CONV_2D twice, so there a packed 1x1 convolution may differ from its int8 form by one step; it equals the
    NumPy reference of `weight_formats.with_dense_pointwise(graph, formats)`.

    The file holds the graph's metadata (entry "keras_lowbit", JSON) and TFLite's own: input and output names, image or
    features, and from the graph's metadata its name, normalization and labels (see `metadata`).

    ValueError for an unsound graph or a wrong argument, OSError if the file cannot be written; nothing is
    half-written.
    """
    content, rows = to_bytes(graph, weights=weights, io=io, batch_size=batch_size)
    atomic_write(path, content)
    return rows


def to_bytes(
    graph: IntegerGraph, *, weights: Weights = "int8", io: str = "int8", batch_size: int = 1
) -> tuple[bytes, list[Row]]:
    """The bytes that `write` writes, and its rows."""
    from keras_lowbit.deploy.litert.flatbuffer import FileBuilder
    from keras_lowbit.deploy.litert.metadata import append_labels, describe
    from keras_lowbit.deploy.litert.operators import Emitter

    _check_arguments(io, batch_size)
    graph.validate()
    formats = plan_formats(graph, weights)
    file = FileBuilder("keras_lowbit")
    emitter = Emitter(with_dense_pointwise(graph, formats), file, formats, batch_size)
    inputs = {name: _input(emitter, name, io) for name in graph.inputs}
    for node in emitter.graph.nodes:
        emitter.emit(node)
    outputs = {name: _output(emitter, name, io) for name in graph.outputs}
    file.signature(inputs, outputs)
    labels = graph.metadata.get("labels") or []
    notes = {k: v for k, v in graph.metadata.items() if k != "labels"}  # they are behind the model already
    for name, content in zip(METADATA, (json.dumps(notes, sort_keys=True).encode(), describe(graph)), strict=True):
        file.metadata(name, content)
    return append_labels(file.pack(), labels), emitter.rows


def read_metadata(path: FilePath) -> dict[str, object] | None:
    """The graph metadata that `write` left in a .tflite file; None if the file has none (another tool wrote it).

    Raises FileNotFoundError for a missing file, ValueError for one that is foreign, cut short or damaged.
    """
    from keras_lowbit.deploy.litert.reader import parsing, read_bytes

    content = read_bytes(path)
    with parsing(path, len(content)):
        return metadata_of(content)


def metadata_of(content: bytes) -> dict[str, object] | None:
    """The same of the bytes of a file. Whatever is wrong with them raises something."""
    from ai_edge_litert import schema_py_generated as schema

    from keras_lowbit.deploy.litert.metadata import read_labels

    model = schema.Model.GetRootAs(content)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == METADATA[0].encode():
            labels = read_labels(content)
            notes = strict_json(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            if not isinstance(notes, dict):
                raise ValueError(f"its notes are {str(notes)[:80]}: expected an object")
            return notes | ({"labels": labels} if labels else {})
    return None


def _check_arguments(io: str, batch_size: int) -> None:
    if io not in ("int8", "float32"):
        raise ValueError(f"io={io!r}: expected 'int8' or 'float32'")
    check_whole("export_litert", "batch_size", batch_size)


def _input(emitter: Emitter, name: str, io: str) -> int:
    if io == "int8" or emitter.graph.tensors[name].scale is None:
        return emitter.place(name)
    outer = _float_end(emitter, name)
    emitter.file.operator("QUANTIZE", 1, [outer], [emitter.place(name)], "QuantizeOptions")
    return outer


def _output(emitter: Emitter, name: str, io: str) -> int:
    if io == "int8" or emitter.graph.tensors[name].scale is None:
        return emitter.place(name)
    outer = _float_end(emitter, name)
    emitter.file.operator("DEQUANTIZE", 2, [emitter.place(name)], [outer], "DequantizeOptions")
    return outer


def _float_end(emitter: Emitter, name: str) -> int:
    shape = emitter.graph.tensors[name].static_shape(emitter.batch_size)
    return emitter.file.tensor(f"{name}/float32", shape, "FLOAT32")
