"""All that a file says as a tree, the first difference of two, and files that say more than they hold."""

import re

import numpy as np
import pytest

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
