"""Integer graphs of format version 1, written before the operations had records: they still load."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_lowbit.deploy import IntegerGraph, run_reference
from keras_lowbit.deploy.graph import GraphFileError

STORED = Path(__file__).parents[2] / "fixtures" / "v1"


def test_a_stored_graph_loads_and_computes_what_it_did():
    graph = IntegerGraph.load(STORED / "graph.klb")
    stored = np.load(STORED / "graph.npz")
    assert "float_subgraph" in {node.op for node in graph.nodes}
    np.testing.assert_array_equal(run_reference(graph, stored["codes"]), stored["outputs"])


def test_saved_again_it_is_a_file_of_today(tmp_path):
    graph = IntegerGraph.load(STORED / "graph.klb")
    graph.save(tmp_path / "new.klb")
    assert (tmp_path / "new.klb").read_bytes()[:2] != b"PK"
    assert IntegerGraph.load(tmp_path / "new.klb").equals(graph)


@pytest.mark.parametrize("place", [3, 40, 200, 700, -30])
def test_a_damaged_file_is_refused(tmp_path, place):
    content = bytearray((STORED / "graph.klb").read_bytes())
    content[place] ^= 0x55
    (tmp_path / "bad.klb").write_bytes(bytes(content))
    with pytest.raises(GraphFileError, match=r"bad\.klb.*(damaged|not an integer graph)"):
        IntegerGraph.load(tmp_path / "bad.klb")


def test_another_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.klb", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(GraphFileError, match=r"other\.klb.*damaged"):
        IntegerGraph.load(tmp_path / "other.klb")
