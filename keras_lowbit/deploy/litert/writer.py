"""IntegerGraph -> .tflite: every code and scale of the graph, in LiteRT's layouts, with nothing left to a
converter.

The file is written through the schema module that `ai_edge_litert` ships rather than by patching a converted
file: the converter chooses weight types by itself (4 bits or fewer become INT4, whatever that costs), refuses a
dense layer with one scale per channel, and would have to be undone tensor by tensor.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from keras_lowbit.arguments import check_whole
from keras_lowbit.deploy.graph import IntegerGraph
from keras_lowbit.deploy.graph.unpacking import checked
from keras_lowbit.deploy.litert import ends
from keras_lowbit.deploy.litert.ends import Io, ends_of, output_names
from keras_lowbit.deploy.litert.format_choice import Weights, plan_formats
from keras_lowbit.deploy.litert.target import Target
from keras_lowbit.deploy.litert.weight_formats import as_written
from keras_lowbit.files import FilePath, atomic_write
from keras_lowbit.sealed import strict_json

if TYPE_CHECKING:
    from keras_lowbit.deploy.litert.operators import Row


METADATA = ("keras_lowbit", "TFLITE_METADATA")  # the entries of a file: our notes, and TFLite's own


def write(
    graph: IntegerGraph,
    path: FilePath,
    *,
    weights: Weights = "int8",
    io: Io = None,
    batch_size: int | None = 1,
) -> list[Row]:
    """Write `graph` as a LiteRT file, atomically. Returns one Row for each layer with weights.

    weights: format asked for: "int8"; "int4", which dense layers, convolutions and depthwise ones take, or "int2", which dense
    layers and 1x1 convolutions (stride 1, one group) take, where codes fit; a layer that does not fit takes the next larger one
    and its row says why; "auto" or a `LatencyTable`: the smallest that is no slower; or a `WeightFormat` for each node by name.
    io: type of the ends: "int8", "uint8", "int16" or "float32", with QUANTIZE after the inputs and QUANTIZE or DEQUANTIZE
    before the outputs; a pair for inputs and outputs, or a dict by name (see `ends`). None: that of the graph's codes.
    batch_size: every shape in the file is static; None leaves the batch open (shape signature -1, until it is resized 1).

    Tensors have the names they have in the graph; ends of another type than that are `<name>/<type>`. The signature is
    "serving_default", with the names of the graph's inputs and outputs; outputs of a dict have its keys.

    Packed weights, measured on LiteRT 2.3: INT4 and INT2 files load on the default delegate, on the built-in kernels
    and on BUILTIN_REF. On the built-in kernels the output has the bits of the int8 file; on the delegate too, but for
    convolutions with INT4 weights: they run on the built-in kernel there, which may differ from XNNPACK's by one step.
    BUILTIN_REF rounds FULLY_CONNECTED once and CONV_2D twice, so there a 1x1 convolution packed as a dense layer may differ
    from its int8 form by one step; it equals the NumPy reference of `weight_formats.as_written(graph, formats)`.

    The file holds the graph's metadata (entry "keras_lowbit", JSON) and TFLite's own: input and output names, image or
    features, and from the graph's metadata its name, normalization and labels (see `metadata`).

    ValueError for an unsound graph or a wrong argument, OSError if the file cannot be written; nothing is
    half-written.
    """
    content, rows = to_bytes(graph, weights=weights, io=io, batch_size=batch_size)
    atomic_write(path, content)
    return rows


def to_bytes(
    graph: IntegerGraph,
    *,
    weights: Weights = "int8",
    io: Io = None,
    batch_size: int | None = 1,
    target: Target | None = None,
) -> tuple[bytes, list[Row]]:
    """The bytes that `write` writes, and its rows. target: decides the forms of layers with weights; LiteRT by default."""
    from keras_lowbit.deploy.litert.flatbuffer import FileBuilder
    from keras_lowbit.deploy.litert.metadata import append_labels, describe
    from keras_lowbit.deploy.litert.operators import Emitter

    if batch_size is not None:
        check_whole("export_litert", "batch_size", batch_size)
    graph.validate()
    types = ends_of(graph, io)
    formats = plan_formats(graph, weights, target)
    file = FileBuilder("keras_lowbit")
    emitter = Emitter(as_written(graph, formats), file, formats, batch_size)
    inputs = {name: ends.read(emitter, name, kind) for name, kind in types.inputs.items()}
    for node in emitter.graph.nodes:
        emitter.emit(node)
    outputs = [ends.write(emitter, name, kind) for name, kind in types.outputs.items()]
    file.signature(inputs, dict(zip(output_names(graph), outputs, strict=True)))
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

    model = checked(schema, "Model", content)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == METADATA[0].encode():
            labels = read_labels(content)
            notes = strict_json(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            if not isinstance(notes, dict):
                raise ValueError(f"its notes are {str(notes)[:80]}: expected an object")
            return notes | ({"labels": labels} if labels else {})
    return None
