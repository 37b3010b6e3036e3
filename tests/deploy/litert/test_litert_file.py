"""What is inside a written file, float subgraphs, and what happens when it cannot be written."""

import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers.table import Table

from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Range
from keras_lowbit.deploy.litert.flatbuffer import FileBuilder
from keras_lowbit.deploy.litert.writer import read_metadata, to_bytes, write
from keras_lowbit.deploy.reference.interpreter import run_reference
from tests.support.litert_cases import (
    GRID,
    OPERATIONS,
    OUT,
    RESOLVERS,
    SHAPE,
    biases,
    codes,
    graph_of,
    run,
    scales,
    tensors_of,
)


def test_codes_scales_and_axes_in_the_file_are_the_graphs():
    kernel = codes(3, 2, 8, 5)
    found = tensors_of(to_bytes(graph_of(lambda b: b.conv2d("x", kernel, scales(5), biases(5), OUT, "y")))[0])
    grid = found["y/kernel"].quantization
    assert (list(found["y/kernel"].shape), grid.quantizedDimension) == ([5, 3, 2, 8], 0)
    np.testing.assert_array_equal(grid.scale, scales(5))
    np.testing.assert_array_equal(found["y/bias"].quantization.scale, np.float32(0.05) * scales(5))
    assert (found["y"].quantization.scale[0], found["y"].quantization.zeroPoint[0]) == (np.float32(0.11), -7)
    found = tensors_of(to_bytes(graph_of(OPERATIONS["depthwise multiplier"]))[0])
    assert (list(found["y/kernel"].shape), found["y/kernel"].quantization.quantizedDimension) == ([1, 3, 3, 16], 3)
    found = tensors_of(to_bytes(graph_of(OPERATIONS["transpose_conv size"]))[0])
    assert (list(found["y/kernel"].shape), found["y/kernel"].quantization.quantizedDimension) == ([5, 3, 3, 8], 0)


def test_every_tensor_of_the_graph_is_in_the_file_by_name():
    graph = graph_of(OPERATIONS["conv2d explicit"])
    assert set(graph.tensors) <= set(tensors_of(to_bytes(graph)[0]))
    assert set(graph.tensors) <= set(tensors_of(to_bytes(graph, io="float32", weights="int2")[0]))


def test_signature_names_inputs_and_outputs():
    graph = graph_of(OPERATIONS["add tensors"])
    for io, dtype in (("int8", np.int8), ("float32", np.float32)):
        interpreter = Interpreter(model_content=to_bytes(graph, io=io)[0])
        assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["x", "z"], "outputs": ["y"]}}
        runner = interpreter.get_signature_runner()
        got = runner(x=np.zeros((1, *SHAPE), dtype), z=np.zeros((1, *SHAPE), dtype))
        assert got["y"].dtype == dtype


def test_float_ends_quantize_and_dequantize():
    graph = graph_of(OPERATIONS["conv2d None"])
    real = np.random.default_rng(5).normal(0, 3, (1, *SHAPE)).astype(np.float32)
    [got], _ = run(to_bytes(graph, io="float32")[0], [real])
    np.testing.assert_array_equal(got, (run_reference(graph, real).astype(np.float32) + 7) * np.float32(0.11))


def dense_stack(layers):
    b = GraphBuilder()
    name = b.input("x", (64,), range=GRID)
    for i in range(layers):
        name = b.fully_connected(name, codes(64, 64, seed=i), scales(64) * (i + 1), None, GRID, f"d{i}")
    return b.build([name])


def test_zero_points_cost_nothing_more_per_channel():
    """Dense 64 to 64: 64 * 64 codes, 64 scales and 64 bias scales of 4 bytes; zero points and biases are shared."""
    sizes = [len(to_bytes(dense_stack(n))[0]) for n in (2, 3, 4)]
    growth = np.diff(sizes)
    assert growth.max() < 64 * 64 + 64 * 8 + 320  # two tensors, an operator, names
    assert growth.min() >= 64 * 64 + 64 * 8


def test_buffers_start_at_multiples_of_16_and_equal_ones_are_one():
    content, _ = to_bytes(dense_stack(3))
    model = schema.Model.GetRootAs(content)
    tables = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
    starts = [t.Vector(t.Offset(4)) for t in tables if t.Offset(4)]  # 4: the place of `data` in the table
    assert len(starts) == 3 + 1 + 2  # kernels, one zero bias for all, two metadata entries
    assert {s % 16 for s in starts} == {0}


def test_same_graph_same_bytes_also_after_saving(tmp_path):
    graph = dense_stack(2)
    graph.save(tmp_path / "q.klb")
    again = IntegerGraph.load(tmp_path / "q.klb")
    assert to_bytes(again, weights="int4")[0] == to_bytes(graph, weights="int4")[0]


def subgraph(batch_size=1):
    """exp(x) @ w without bias (an input left out), and its negation as a second output."""
    file = FileBuilder("subgraph")
    shapes = {"x": (batch_size, 4), "e": (batch_size, 4), "y": (batch_size, 3), "n": (batch_size, 3)}
    index = {n: file.tensor(n, s, "FLOAT32") for n, s in shapes.items()}
    kernel = np.arange(12, dtype="<f4").reshape(3, 4) / 16
    w = file.tensor("w", (3, 4), "FLOAT32", content=kernel.tobytes())
    file.operator("EXP", 1, [index["x"]], [index["e"]], "ExpOptions")
    file.operator("FULLY_CONNECTED", 6, [index["e"], w, -1], [index["y"]], "FullyConnectedOptions")
    file.operator("NEG", 1, [index["y"]], [index["n"]], "NegOptions")
    file.signature({"x": index["x"]}, {"y": index["y"], "n": index["n"]})
    return file.pack(), kernel


def subgraph_graph(batch_size=1):
    b = GraphBuilder()
    real = b.dequantize(b.input("x", (4,), range=Range(0.01, 0)), "real")
    first, second_ = b.float_subgraph([real], subgraph(batch_size)[0], "in_float")
    return b.build([b.quantize(first, Range(0.05, 0), "y"), second_])


def test_float_subgraph_is_spliced_and_runs():
    graph, kernel = subgraph_graph(), subgraph()[1]
    x = codes(1, 4)
    content, _ = to_bytes(graph)
    for resolver in RESOLVERS.values():
        [y, negated], _ = run(content, [x], resolver)
        expected = np.exp(x * np.float32(0.01)) @ kernel.T
        np.testing.assert_allclose(negated, -expected, rtol=1e-6)
        np.testing.assert_allclose(y, expected / 0.05, atol=0.51)
    names = set(tensors_of(content))
    assert {"real", "in_float/output_0", "in_float/output_1", "in_float/e", "in_float/w", "y"} <= names
    np.testing.assert_array_equal(run(content, [x])[0][0], run_reference(graph, x)[0])


def test_float_subgraph_keeps_its_batch_size():
    with pytest.raises(ValueError, match="'in_float' was converted for batch size 2, the file is written for 1"):
        to_bytes(subgraph_graph(2))
    content, _ = to_bytes(subgraph_graph(2), batch_size=2)
    assert run(content, [codes(2, 4)])[0][0].shape == (2, 3)


def test_float_subgraph_shapes_must_fit():
    b = GraphBuilder()
    b.input("f", (5,), dtype="float32")
    with pytest.raises(ValueError, match=r"takes inputs of shapes \[\(1, 4\)\].*got \[\(5,\)\]"):
        b.float_subgraph(["f"], subgraph()[0], "in_float")


def test_metadata_comes_back_and_nothing_else_has_it(tmp_path):
    metadata = {"recipe": {"name": "sq-twn", "ratio": 0.5}, "version": "0.1"}
    path = tmp_path / "q.tflite"
    write(graph_of(OPERATIONS["relu"], metadata=metadata), path)
    assert read_metadata(path) == metadata
    path.write_bytes(subgraph()[0])
    assert read_metadata(path) is None
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"not a \.tflite file: expected the identifier b'TFL3'"):
        read_metadata(path)


def field(table, number):
    """Position of a field in the file, or None. number: its place in the schema."""
    offset = table.Offset(4 + 2 * number)
    return table.Pos + offset if offset else None


def child(table, *numbers):
    """Follow fields: a table, or with a vector of tables its first one."""
    for number in numbers:
        place = table.Indirect(field(table, number))
        vector = number in (2, 3, 4, 6)
        table = Table(table.Bytes, table.Indirect(place + 4) if vector else place)
    return table


def tflite_metadata(content):
    model = schema.Model.GetRootAs(content)
    entries = {model.Metadata(i).Name(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
    found = model.Buffers(entries[b"TFLITE_METADATA"]).DataAsNumpy().tobytes()
    assert found[4:8] == b"M001"
    return Table(found, int.from_bytes(found[:4], "little"))


def classifier(**metadata):
    b = GraphBuilder(metadata)
    x = b.mean(b.input("images", (6, 6, 3), range=GRID), GRID, "pool")
    return b.build([b.fully_connected(x, codes(3, 4), scales(4), None, OUT, "scores")])


def test_tflite_metadata_has_names_normalization_and_labels(tmp_path):
    labels, norm = ["tench", "goldfish", "white shark", "Größe"], {"mean": [127.5, 120, 110], "std": [127.5]}
    graph = classifier(name="net", labels=labels, normalization=norm)
    write(graph, tmp_path / "q.tflite")
    content = (tmp_path / "q.tflite").read_bytes()
    root = tflite_metadata(content)
    assert root.String(field(root, 0)) == b"net"
    subgraph = child(root, 3)
    image, scores = child(subgraph, 2), child(subgraph, 3)
    assert (image.String(field(image, 0)), scores.String(field(scores, 0))) == (b"images", b"scores")
    unit = child(image, 4)
    options = Table(unit.Bytes, unit.Indirect(field(unit, 1)))
    assert unit.Bytes[field(unit, 0)] == 1  # NormalizationOptions
    for number, key in ((0, "mean"), (1, "std")):
        count = len(norm[key])
        start = options.Vector(options.Offset(4 + 2 * number))
        np.testing.assert_array_equal(np.frombuffer(options.Bytes, "<f4", count, start), np.float32(norm[key]))
    file = child(scores, 6)
    assert (file.String(field(file, 0)), file.Bytes[field(file, 2)]) == (b"labels.txt", 2)  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(tmp_path / "q.tflite") as archive:
        assert archive.read("labels.txt").decode().split("\n")[:4] == labels
    assert read_metadata(tmp_path / "q.tflite") == graph.metadata
    x = codes(1, 6, 6, 3)
    for resolver in RESOLVERS.values():  # the zip file behind the model does not disturb LiteRT
        np.testing.assert_allclose(run(content, [x], resolver)[0][0], run_reference(graph, x), atol=1)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"labels": ["a", "b"]}, "2 labels: expected 4 strings .* output 'scores'"),
        ({"labels": ["a", "b", "c", "d\ne"]}, "one of them 'd.*ne'"),
        ({"labels": ["a", "b", "c", 4]}, "one of them 4"),
        ({"normalization": {"mean": [1, 2]}}, "normalization .* 1 or 3 finite numbers each"),
        ({"normalization": {"mean": [0], "std": [0]}}, "std above 0"),
        ({"normalization": 127.5}, "expected {'mean'"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        to_bytes(classifier(**metadata))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "int3"}, "weights='int3': expected 'auto', one of 'int8', 'int4', 'int2'"),
        ({"io": "int4"}, "io='int4': expected 'int8', 'uint8', 'int16' or 'float32'"),
        ({"batch_size": 0}, "batch_size=0; give a whole number"),
        ({"batch_size": 1.5}, "batch_size=1.5; give a whole number"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(dense_stack(1), tmp_path / "q.tflite", **arguments)
    assert os.listdir(tmp_path) == []


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "q.tflite"
    path.write_bytes(b"old")

    def broken(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(PermissionError, match=r"cannot write .*q\.tflite.*Permission denied.*choose another path"):
        write(dense_stack(1), path)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["q.tflite"])


def test_unsound_graph_is_not_written(tmp_path):
    graph = replace(dense_stack(1), outputs=("nobody",))
    with pytest.raises(ValueError, match="graph outputs"):
        write(graph, tmp_path / "q.tflite")
    assert os.listdir(tmp_path) == []
