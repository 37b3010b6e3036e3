"""All that a file says as a tree, the first difference of two, and files that say more than they hold."""

import re
import tracemalloc

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_lowbit.deploy.litert.file_tree import first_difference
from keras_lowbit.deploy.litert.reader import LiteRTFile
from keras_lowbit.deploy.litert.writer import to_bytes
from tests.support.litert_cases import OPERATIONS, graph_of


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        ({"a": [1, 2]}, {"a": [1, 2]}, None),
        ({"a": [1, {"b": b"x"}]}, {"a": [1, {"b": b"y"}]}, "file, a 1, b is b'y', expected b'x'"),
        ({"a": 1}, {}, "file has no 'a'"),
        ({}, {"a": 1}, "file has an unexpected 'a'"),
        ([1], [1, 2], "file has 2 entries, expected 1"),
        (1, True, "file is True, expected 1"),
        (np.int32([1, 2]), np.int32([1, 3]), r"file is \[1, 3\], expected \[1, 2\]"),
        (np.int32([1, 2]), np.int64([1, 2]), "file is"),
        (np.float32([np.nan]), np.float32([np.nan]), None),
        (np.zeros(99), np.ones(99), "99 values from"),
        (None, np.zeros(0), "file is"),
    ],
    ids=str,
)
def test_the_first_difference_has_its_place_and_both_values(expected, got, words):
    found = first_difference(expected, got, "file")
    assert (found is None) if words is None else re.search(words, found), found


def test_a_file_equals_itself_and_names_stand_for_indices():
    content, _ = to_bytes(graph_of(OPERATIONS["conv2d None"]))
    tree = LiteRTFile.of_bytes(content).tree()
    assert first_difference(tree, LiteRTFile.of_bytes(content).tree(), "") is None
    assert tree["operators"][0]["inputs"] == ["x", "y/kernel", "y/bias"]
    assert tree["signatures"][0]["outputs"][0]["tensor"] == ["y"]
    assert tree["tensors"]["y/kernel"]["quantization"]["quantizedDimension"] == 0


def vector(builder, start, entry, count):
    start(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(entry)
    return builder.EndVector()


def nested(count):
    """A model of `count` times the same subgraph of `count` times the same tensor, in `count * 8` bytes."""
    b = flatbuffers.Builder(64)
    schema.TensorStart(b)
    tensor = schema.TensorEnd(b)
    tensors = vector(b, schema.SubGraphStartTensorsVector, tensor, count)
    schema.SubGraphStart(b)
    schema.SubGraphAddTensors(b, tensors)
    graph = schema.SubGraphEnd(b)
    graphs = vector(b, schema.ModelStartSubgraphsVector, graph, count)
    schema.ModelStart(b)
    schema.ModelAddSubgraphs(b, graphs)
    b.Finish(schema.ModelEnd(b), file_identifier=b"TFL3")
    return bytes(b.Output())


def test_a_small_file_that_says_it_has_millions_of_tables_is_refused_at_once(tmp_path):
    path = tmp_path / "bomb.tflite"
    path.write_bytes(nested(3000))
    assert path.stat().st_size < 30_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.tflite' is damaged.*cannot hold the tables"):
        LiteRTFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
