"""Every field of a file counts: whatever is changed in it is refused before LiteRT runs it, or reported."""

import copy
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import keras_lowbit as klb
from keras_lowbit.deploy.litert.metadata import append_labels
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.litert.writer import read_metadata
from keras_lowbit.deploy.lowering.lower import lower_model
from keras_lowbit.deploy.verification.structure import check_same_structure
from tests.support.lowering_zoo import case, trained

kl = keras.layers
LABELS = ["tench", "goldfish", "white shark"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, images, bytes of its file): a pool, a dense layer, labels and a normalization, float ends."""
    keras.utils.set_random_seed(5)
    model, images = trained(
        case(lambda: kl.GlobalAveragePooling2D(), lambda: kl.Dense(3, name="head"), shape=(4, 4, 3))
    )
    path = tmp_path_factory.mktemp("structure") / "m.tflite"
    klb.export_litert(model, path, labels=LABELS, normalization=(127.5, 32.0), io="float32")
    return model, images, path.read_bytes()


@pytest.fixture(scope="module")
def graph(exported):
    return lower_model(exported[0]).graph


def packed(model, tail=b""):
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return append_labels(bytes(builder.Output()), LABELS) + tail


def check(graph, content, tmp_path):
    """As `verify` begins."""
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    file = LiteRTFile(path)
    read_metadata(path)
    return check_same_structure(graph, file, path)


def leaves(table, way=()):
    """The way to every value in a tree of tables that is not left out."""
    if isinstance(table, list):
        for place, entry in enumerate(table):
            yield from leaves(entry, (*way, place))
    elif hasattr(table, "__dict__"):
        for name, value in vars(table).items():
            yield from leaves(value, (*way, name))
    elif table is not None and np.size(table):
        yield way


def changed(model, way):
    """A copy with one value changed, a little."""
    made = copy.deepcopy(model)
    holder = made
    for step in way[:-1]:
        holder = holder[step] if isinstance(step, int) else getattr(holder, step)
    old = holder[way[-1]] if isinstance(way[-1], int) else getattr(holder, way[-1])
    if isinstance(old, np.ndarray):
        new = old.copy()
        new.flat[0] = new.flat[0] + 1 if new.dtype != np.uint8 else new.flat[0] ^ 1
    elif isinstance(old, bytes):
        new = bytes([old[0] ^ 1]) + old[1:]
    else:
        new = not old if isinstance(old, bool) else old + 1
    if isinstance(way[-1], int):
        holder[way[-1]] = new
    else:
        setattr(holder, way[-1], new)
    return made


def reported(model, way):
    """Codes and scales of weights and biases: `verify` looks at those element by element."""
    tensors = model.subgraphs[0].tensors
    mine = [t for t in tensors if t.name in (b"head/kernel", b"head/bias")]
    scales = [("subgraphs", 0, "tensors", tensors.index(t), "quantization", "scale") for t in mine]
    return way in scales or way in [("buffers", t.buffer, "data") for t in mine]


def test_the_file_as_it_was_written_passes(exported, graph, tmp_path):
    assert check(graph, exported[2], tmp_path)["head"].weight_type == "int8"
    assert check(graph, packed(schema.ModelT.InitFromPackedBuf(exported[2], 0)), tmp_path)


def test_every_value_of_every_table_counts(exported, graph, tmp_path):
    model = schema.ModelT.InitFromPackedBuf(exported[2], 0)
    notes = next(entry.buffer for entry in model.metadata if entry.name == b"keras_lowbit")
    ways = [way for way in leaves(model) if way[:2] != ("buffers", notes)]
    assert len(ways) > 150, "the case shows nothing"
    accepted = []
    for way in ways:
        try:
            check(graph, packed(changed(model, way)), tmp_path)
            accepted.append(way)
        except ValueError:
            pass
    assert [way for way in accepted if not reported(model, way)] == []
    assert len(accepted) == 4, "codes and scales of kernel and bias"


def edited(edit):
    def change(content):
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        graph = model.subgraphs[0]
        edit(model, graph, {t.name.decode(): t for t in graph.tensors})
        return packed(model)

    return change


def moved(content, old, new):
    assert content.count(old) >= 1
    return content.replace(old, new, 1)


DAMAGE = {
    "label": lambda c: moved(c, b"goldfish\n", b"goldfisk\n"),
    "checksum": lambda c: c[: c.rindex(b"PK\x01\x02") + 16] + b"\xff" + c[c.rindex(b"PK\x01\x02") + 17 :],
    "checksum of the first head": lambda c: (
        c[: c.rindex(b"PK\x03\x04") + 14] + b"\xff" + c[c.rindex(b"PK\x03\x04") + 15 :]
    ),
    "method of the first head": lambda c: c[: c.rindex(b"PK\x03\x04") + 8] + b"\x08" + c[c.rindex(b"PK\x03\x04") + 9 :],
    "end of the zip file": lambda c: c[:-1],
    "no labels": lambda c: c[: c.rindex(b"PK\x03\x04")],
    "another file for labels": lambda c: (
        c[: c.rindex(b"PK\x03\x04")] + c[c.rindex(b"PK\x03\x04") :].replace(b"labels.txt", b"lapels.txt")
    ),
    "a label more": lambda c: append_labels(c[: c.rindex(b"PK\x03\x04")], [*LABELS, "shark"]),
    "signature": edited(lambda m, g, t: setattr(m.signatureDefs[0], "signatureKey", "SERVING_default")),
    "no signature": edited(lambda m, g, t: setattr(m, "signatureDefs", [])),
    "name in the signature": edited(lambda m, g, t: setattr(m.signatureDefs[0].outputs[0], "name", "tail")),
    "tensor of the signature": edited(lambda m, g, t: setattr(m.signatureDefs[0].outputs[0], "tensorIndex", 0)),
    "tensor of the signature that is none": edited(
        lambda m, g, t: setattr(m.signatureDefs[0].outputs[0], "tensorIndex", 99)
    ),
    "variable": edited(lambda m, g, t: setattr(t["head"], "isVariable", True)),
    "channel axis": edited(lambda m, g, t: setattr(t["head/kernel"].quantization, "quantizedDimension", 1)),
    "scale of an activation": edited(lambda m, g, t: setattr(t["head"].quantization, "scale", np.float32([0.5]))),
    "zero point of an activation": edited(lambda m, g, t: setattr(t["head"].quantization, "zeroPoint", np.int64([0]))),
    "no grid": edited(lambda m, g, t: setattr(t["head"], "quantization", None)),
    "kernel cut": edited(
        lambda m, g, t: setattr(
            m.buffers[t["head/kernel"].buffer], "data", m.buffers[t["head/kernel"].buffer].data[:-1]
        )
    ),
    "no kernel": edited(lambda m, g, t: setattr(m.buffers[t["head/kernel"].buffer], "data", None)),
    "a second subgraph": edited(lambda m, g, t: m.subgraphs.append(g)),
    "no subgraph": edited(lambda m, g, t: setattr(m, "subgraphs", [])),
    "output -1": edited(lambda m, g, t: setattr(g.operators[0], "outputs", np.array([-1], np.int32))),
    "output beyond": edited(lambda m, g, t: setattr(g.operators[0], "outputs", np.array([2**30], np.int32))),
    "input -2": edited(lambda m, g, t: setattr(g.operators[0], "inputs", np.array([-2], np.int32))),
    "input left out": edited(lambda m, g, t: setattr(g.operators[0], "inputs", np.array([-1], np.int32))),
    "no outputs": edited(lambda m, g, t: setattr(g, "outputs", np.zeros(0, np.int32))),
    "input of the file -1": edited(lambda m, g, t: setattr(g, "inputs", np.array([-1], np.int32))),
    "no inputs": edited(lambda m, g, t: setattr(g, "inputs", None)),
    "input of rank 0": edited(lambda m, g, t: setattr(g.tensors[g.inputs[0]], "shape", np.zeros(0, np.int32))),
    "negative size": edited(
        lambda m, g, t: setattr(g.tensors[g.inputs[0]], "shape", np.array([-1, 4, 4, 3], np.int32))
    ),
    "batch of a billion": edited(
        lambda m, g, t: setattr(g.tensors[g.inputs[0]], "shape", np.array([10**9, 4, 4, 3], "i4"))
    ),
    "operator code beyond": edited(lambda m, g, t: setattr(g.operators[0], "opcodeIndex", 50)),
    "operator version": edited(lambda m, g, t: setattr(m.operatorCodes[0], "version", 9)),
    "no operators": edited(lambda m, g, t: setattr(g, "operators", None)),
    "tensor without a name": edited(lambda m, g, t: setattr(t["head"], "name", None)),
    "two tensors of a name": edited(lambda m, g, t: setattr(t["head"], "name", "x")),
    "buffer outside": edited(lambda m, g, t: setattr(m.buffers[t["head/kernel"].buffer], "offset", 64)),
    "buffer beyond": edited(lambda m, g, t: setattr(t["head"], "buffer", 77)),
    "notes a list": edited(
        lambda m, g, t: setattr(m.buffers[m.metadata[0].buffer], "data", np.frombuffer(b"[1]", "u1"))
    ),
    "notes nested": edited(
        lambda m, g, t: setattr(m.buffers[m.metadata[0].buffer], "data", np.frombuffer(b"[" * 9999, "u1"))
    ),
    "notes of another normalization": lambda c: moved(c, b'"mean": [127.5]', b'"mean": [117.5]'),
    "normalization": lambda c: moved(c, np.float32(127.5).tobytes(), np.float32(117.5).tobytes()),
    "no TFLite metadata": edited(lambda m, g, t: m.metadata.pop()),
    "empty TFLite metadata": edited(lambda m, g, t: setattr(m.buffers[m.metadata[1].buffer], "data", None)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_the_name_of_the_file(exported, graph, tmp_path, name):
    broken = DAMAGE[name](exported[2])
    assert broken != exported[2]
    with pytest.raises(ValueError, match=r"m\.tflite' (is damaged|was not exported).*[Ee]xport it again"):
        check(graph, broken, tmp_path)


@pytest.mark.parametrize("name", ["label", "signature", "variable", "channel axis", "output -1", "input of rank 0",
                                  "no inputs", "batch of a billion", "scale of an activation"])  # fmt: skip
def test_verify_itself_refuses_it(exported, tmp_path, name):
    model, images, content = exported
    (tmp_path / "m.tflite").write_bytes(DAMAGE[name](content))
    with pytest.raises(ValueError, match=r"m\.tflite'.*[Ee]xport it again"):
        klb.verify(model, tmp_path / "m.tflite", images)


def test_what_other_tools_add_to_the_metadata_may_be_there(exported, graph, tmp_path):
    from keras_lowbit.deploy.litert.metadata_schema_py_generated import ModelMetadataT

    def author(model, graph, tensors):
        entry = model.buffers[model.metadata[1].buffer]
        about = ModelMetadataT.InitFromPackedBuf(np.asarray(entry.data).tobytes())
        about.author, about.license = "somebody", "Apache-2.0"
        builder = flatbuffers.Builder(64)
        builder.Finish(about.Pack(builder), file_identifier=b"M001")
        entry.data = np.frombuffer(bytes(builder.Output()), np.uint8)

    check(graph, edited(author)(exported[2]), tmp_path)


def test_labels_of_a_former_file_are_compressed(exported, graph, tmp_path):
    content = exported[2][: exported[2].rindex(b"PK\x03\x04")]
    path = tmp_path / "old.tflite"
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", "\n".join(LABELS) + "\n")
    check(graph, path.read_bytes(), tmp_path)
    assert read_metadata(path)["labels"] == LABELS


def test_constants_inside_float_subgraphs_count(tmp_path):
    model, _ = trained(case(lambda: kl.Dense(4), lambda: kl.GroupNormalization(2), lambda: kl.Dense(3), shape=(6,)))
    klb.export_litert(model, tmp_path / "m.tflite")
    graph, content = lower_model(model).graph, (tmp_path / "m.tflite").read_bytes()
    check(graph, content, tmp_path)
    unpacked = schema.ModelT.InitFromPackedBuf(content, 0)
    floats = [t for t in unpacked.subgraphs[0].tensors if t.type == 0 and unpacked.buffers[t.buffer].data is not None]
    assert floats, "the case shows nothing"
    buffer = unpacked.buffers[floats[0].buffer]
    for factor, refused in ((1 + 1e-7, False), (1.01, True), (np.nan, True)):
        values = np.frombuffer(np.asarray(buffer.data).tobytes(), "<f4") * np.float32(factor)
        other = copy.deepcopy(unpacked)
        other.buffers[floats[0].buffer].data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
        builder = flatbuffers.Builder(64)
        builder.Finish(other.Pack(builder), file_identifier=b"TFL3")
        if refused:
            with pytest.raises(ValueError, match="was not exported"):
                check(graph, bytes(builder.Output()), tmp_path)
        else:
            check(graph, bytes(builder.Output()), tmp_path)
