"""Small flatbuffers whose tables are shared: unpacked, they would fill any memory."""

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from keras_lowbit.deploy.litert import metadata_schema_py_generated as metadata_schema


def vector(builder, start, entry, count):
    """A vector of `count` times the same entry."""
    start(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(entry)
    return builder.EndVector()


def finished(builder, root, identifier):
    """The bytes."""
    builder.Finish(root, file_identifier=identifier)
    return bytes(builder.Output())


def table(builder, module, kind, **fields):
    """A table of a kind with fields that are offsets."""
    getattr(module, f"{kind}Start")(builder)
    for name, offset in fields.items():
        getattr(module, f"{kind}Add{name}")(builder, offset)
    return getattr(module, f"{kind}End")(builder)


def same_tensors(count):
    """A model of `count` times the same subgraph of `count` times the same tensor, in `count * 8` bytes."""
    b = flatbuffers.Builder(64)
    tensors = vector(b, schema.SubGraphStartTensorsVector, table(b, schema, "Tensor"), count)
    graphs = vector(b, schema.ModelStartSubgraphsVector, table(b, schema, "SubGraph", Tensors=tensors), count)
    return finished(b, table(b, schema, "Model", Subgraphs=graphs), b"TFL3")


def same_name(count):
    """A model whose `count` tensors have one name of `count * 4` bytes."""
    b = flatbuffers.Builder(64)
    tensor = table(b, schema, "Tensor", Name=b.CreateString("x" * 4 * count))
    tensors = vector(b, schema.SubGraphStartTensorsVector, tensor, count)
    graphs = vector(b, schema.ModelStartSubgraphsVector, table(b, schema, "SubGraph", Tensors=tensors), 1)
    return finished(b, table(b, schema, "Model", Subgraphs=graphs), b"TFL3")


def same_dimensions(count):
    """A model whose `count` tensors share what says how they are sparse, `count` dimensions."""
    b = flatbuffers.Builder(64)
    dimension = table(b, schema, "DimensionMetadata")
    dimensions = vector(b, schema.SparsityParametersStartDimMetadataVector, dimension, count)
    sparsity = table(b, schema, "SparsityParameters", DimMetadata=dimensions)
    tensors = vector(b, schema.SubGraphStartTensorsVector, table(b, schema, "Tensor", Sparsity=sparsity), count)
    graphs = vector(b, schema.ModelStartSubgraphsVector, table(b, schema, "SubGraph", Tensors=tensors), 1)
    return finished(b, table(b, schema, "Model", Subgraphs=graphs), b"TFL3")


def same_metadata(count):
    """TFLite metadata of `count` subgraphs with `count` outputs with `count` files each, one name of `count` bytes for all."""
    b, module = flatbuffers.Builder(64), metadata_schema
    file = table(b, module, "AssociatedFile", Name=b.CreateString("x" * count))
    files = vector(b, module.TensorMetadataStartAssociatedFilesVector, file, count)
    tensor = table(b, module, "TensorMetadata", AssociatedFiles=files)
    tensors = vector(b, module.SubGraphMetadataStartOutputTensorMetadataVector, tensor, count)
    graph = table(b, module, "SubGraphMetadata", OutputTensorMetadata=tensors)
    graphs = vector(b, module.ModelMetadataStartSubgraphMetadataVector, graph, count)
    return finished(b, table(b, module, "ModelMetadata", SubgraphMetadata=graphs), b"M001")


def same_vocabulary(count):
    """TFLite metadata of `count` units that share a member of a union, `count` vocabulary files of one name."""
    b, module = flatbuffers.Builder(64), metadata_schema
    file = table(b, module, "AssociatedFile", Name=b.CreateString("x" * count))
    files = vector(b, module.BertTokenizerOptionsStartVocabFileVector, file, count)
    options = table(b, module, "BertTokenizerOptions", VocabFile=files)
    module.ProcessUnitStart(b)
    module.ProcessUnitAddOptionsType(b, module.ProcessUnitOptions.BertTokenizerOptions)
    module.ProcessUnitAddOptions(b, options)
    units = vector(b, module.SubGraphMetadataStartInputProcessUnitsVector, module.ProcessUnitEnd(b), count)
    graph = table(b, module, "SubGraphMetadata", InputProcessUnits=units)
    graphs = vector(b, module.ModelMetadataStartSubgraphMetadataVector, graph, count)
    return finished(b, table(b, module, "ModelMetadata", SubgraphMetadata=graphs), b"M001")


METADATA = (same_metadata, same_vocabulary)
MODELS = (same_tensors, same_name, same_dimensions)


def with_metadata(content, replaced):
    """The bytes of a .tflite file with another entry TFLITE_METADATA: `replaced(its bytes)`."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    [entry] = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    buffer = model.buffers[entry.buffer]
    buffer.data = list(replaced(bytes(buffer.data)))
    builder = flatbuffers.Builder(1024)
    return finished(builder, model.Pack(builder), b"TFL3")
