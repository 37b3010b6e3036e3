"""Integers and written files of fixed graphs are those of the first recording, bit for bit, on every machine."""

import json
from pathlib import Path

import pytest

from tests.support import fingerprint

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "fingerprint.json").read_text())


def test_graphs_files_and_outputs_are_those_recorded():
    assert fingerprint.differences({"portable": RECORDED}, {"portable": fingerprint.portable()}) == []


@pytest.mark.parametrize(
    "after",
    [
        {"portable": {"a": "1", "b": "3"}},  # another value
        {"portable": {"a": "1"}},  # one is missing
        {"portable": {"a": "1", "b": "2", "c": "3"}},  # one too many
    ],
)
def test_a_difference_is_named(after):
    found = fingerprint.differences({"portable": {"a": "1", "b": "2"}}, after)
    assert found in (["portable: b"], ["portable: c"])


def test_a_changed_scale_changes_the_fingerprint():
    from dataclasses import replace

    import numpy as np

    graph = fingerprint.built_graph(0)
    name = next(n for n, t in graph.tensors.items() if t.scale is not None and not t.is_constant)
    other = replace(graph.tensors[name], scale=np.nextafter(graph.tensors[name].scale, np.float32(1)))
    changed = replace(graph, tensors={**graph.tensors, name: other})
    assert fingerprint.of_graph(graph) != fingerprint.of_graph(changed)
