"""The picture of an integer graph: well-formed, complete, subgraphs marked."""

import xml.etree.ElementTree as ElementTree

import pytest

import keras_lowbit as klb
from tests.support.lowering_zoo import ZOO, trained

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", ["add", "unknown layer", "several outputs", "nested"])
def test_every_node_and_input_is_drawn(name, tmp_path):
    graph = klb.deploy.lower(trained(ZOO[name])[0])
    klb.plot.graph(graph, tmp_path / "graph.svg")
    root = ElementTree.parse(tmp_path / "graph.svg").getroot()
    boxes = root.findall(f"{SVG}g")
    assert len(boxes) == len(graph.nodes) + len(graph.inputs)
    titles = [box.find(f"{SVG}title").text for box in boxes]
    for node in graph.nodes:
        assert any(node.op in title and f"| {node.name} |" in title for title in titles)
    arrows = root.findall(f"{SVG}path")
    assert len(arrows) == sum(not graph.tensors[t].is_constant for node in graph.nodes for t in node.inputs)
    fills = [box.find(f"{SVG}rect").get("fill") for box in boxes]
    subgraphs = [node for node in graph.nodes if node.op in ("float_subgraph", "dequantize")]
    assert fills.count(klb.plot.COLOURS["float"]) == len(subgraphs)
    outputs = [box for box in boxes if box.find(f"{SVG}rect").get("stroke-width") == "3"]
    assert len(outputs) == len(graph.outputs)


def test_boxes_do_not_overlap():
    graph = klb.deploy.lower(trained(ZOO["concat unequal"])[0])
    root = ElementTree.fromstring(klb.plot.svg(graph))
    corners = [(box.find(f"{SVG}rect").get("x"), box.find(f"{SVG}rect").get("y")) for box in root.findall(f"{SVG}g")]
    assert len(set(corners)) == len(corners)


def test_names_are_escaped():
    import numpy as np

    from keras_lowbit.deploy import GraphBuilder, Range

    builder = GraphBuilder({"name": "a<b&c"})
    builder.input("x<1>", (4,), range=Range(0.1, 0))
    graph = builder.build([builder.fully_connected("x<1>", np.ones((4, 2)), [0.1, 0.1], None, Range(1.0), "y&z" * 30)])
    root = ElementTree.fromstring(klb.plot.svg(graph))
    assert root.find(f"{SVG}title").text == "a<b&c"


def test_other_endings_are_refused(tmp_path):
    graph = klb.deploy.lower(trained(ZOO["dense 2-d"])[0])
    with pytest.raises(ValueError, match=r"writes SVG, got path .*graph\.png.*\.svg"):
        klb.plot.graph(graph, tmp_path / "graph.png")
    with pytest.raises(OSError, match="cannot write"):
        klb.plot.graph(graph, tmp_path / "none" / "graph.svg")
