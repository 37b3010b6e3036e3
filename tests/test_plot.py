"""Pictures show what they must: every bar, label and level, with all of it inside the axes, and without a warning."""

import io
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy import GraphBuilder, Range
from keras_lowbit.deploy.graph.diagram import COLOURS, LEGEND
from keras_lowbit.deploy.verification.layers import LayerParity
from keras_lowbit.figures.parity import draw_parity
from keras_lowbit.figures.weights import draw_weights
from tests.support.browser import ask
from tests.support.lowering_zoo import ZOO, trained

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A quantized network of two grids, its images, and its file verified."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2), name="image")
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.Conv2D(4, 1, name="pointwise")(x)
    x = keras.layers.Dense(3, name="classes")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 2)).astype(np.float32)
    overrides = {"conv": "ternary"}
    model = klb.quantize_model(keras.Model(inputs, x, name="small"), "int8", overrides=overrides)[0]
    klb.calibrate(model, images[:4], verbose=0)
    path = tmp_path_factory.mktemp("plot") / "m.tflite"
    klb.export_litert(model, path)
    return SimpleNamespace(model=model, images=images, parity=klb.verify(model, path, images))


def drawn(figure):
    """The figure, after it was drawn to a file, so that limits and positions are final."""
    figure.savefig(io.BytesIO())
    return figure


def bars(axes):
    """(left, width) of the horizontal bars, from top to bottom."""
    return [(patch.get_x(), patch.get_width()) for patch in axes.patches]


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_weights_have_a_panel_for_each_layer_with_bars_and_codes(made):
    figure = drawn(klb.plot.weights(made.model))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["conv, 2 bits", "pointwise, 8 bits", "classes, 8 bits"]
    found = klb.weight_histograms(made.model)["conv"]
    panel, stems = figure.axes[0], next(axes for axes in figure.axes if axes.collections)
    assert tuple(panel.patches[0].get_data().values) == found.counts
    segments = stems.collections[0].get_segments()
    assert [(x, y) for (x, _), (_, y) in segments] == list(zip(found.codes, found.code_counts, strict=True))
    low, high = panel.get_xlim()
    assert low < min(found.edges[0], -1)
    assert high > max(found.edges[-1], 1)


def test_some_layers_and_single_histograms_are_drawn_by_name(made):
    found = klb.weight_histograms(made.model)
    chosen = [axes.get_title() for axes in klb.plot.weights(made.model, ["classes", "conv"]).axes]
    assert [title for title in chosen if title] == ["classes, 8 bits", "conv, 2 bits"]
    for figure in (klb.plot.weights(found, "conv"), klb.plot.weights(found["conv"]), found["conv"].plot()):
        assert figure.axes[0].get_title() == "conv, 2 bits"
    with pytest.raises(KeyError, match="no quantized layer 'cnov'"):
        klb.plot.weights(made.model, "cnov")
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="plain")
    with pytest.raises(ValueError, match="plain has no quantized layer to draw"):
        klb.plot.weights(plain)


def test_panels_without_a_layer_are_empty(made):
    four = [klb.weight_histograms(made.model)["conv"]] * 4
    figure = draw_weights(four)
    assert [axes.axison for axes in figure.axes[:6]] == [True] * 4 + [False] * 2


def test_ranges_show_ends_data_and_what_is_clipped(made):
    found = klb.activation_ranges(made.model, made.images)
    figure = drawn(klb.plot.ranges(made.model, made.images))
    left, right = figure.axes
    assert labels(left) == [row.path.removesuffix("/output_quantizer") for row in found.ranges]
    units = [max(-row.minimum, row.maximum) for row in found.ranges]
    wanted = [
        (row.minimum / unit, (row.maximum - row.minimum) / unit) for row, unit in zip(found.ranges, units, strict=True)
    ]
    assert np.allclose(bars(left), wanted)
    seen = [collection.get_segments()[0][:, 0] for collection in left.collections]
    wanted = [(row.seen_minimum / unit, row.seen_maximum / unit) for row, unit in zip(found.ranges, units, strict=True)]
    assert np.allclose(seen, wanted)
    assert np.allclose([width for _, width in bars(right)], [100 * row.clipped for row in found.ranges])
    assert max(row.clipped for row in found.ranges) > 0
    assert right.get_xlim()[1] > 100 * max(row.clipped for row in found.ranges)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"range", "seen in the data"}
    assert len(klb.plot.ranges(made.model).axes) == 1  # without data


def test_parity_has_a_bar_for_each_tensor_the_noisiest_on_top(made):
    figure = drawn(klb.plot.parity(made.parity))
    (axes,) = figure.axes
    rows = sorted(made.parity.layers, key=lambda row: row.snr_db)
    assert labels(axes) == [row.name for row in rows]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert np.allclose([width for _, width in bars(axes)], [min(row.snr_db, 80.0) for row in rows])
    said = [text.get_text() for text in axes.texts]
    assert all(f"{row.snr_db:.1f} dB" in text for row, text in zip(rows, said, strict=True))
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    right = max(text.get_window_extent().x1 for text in axes.texts)
    assert right <= figure.bbox.x1


def test_parity_says_what_is_equal_what_is_noise_and_what_is_left_out():
    ratios = {"a": np.inf, "b": -np.inf, "c": 15.0, "d": 45.0}
    layers = [LayerParity(name, 1, 2 if name == "c" else 0, 1.0, None, snr_db=ratio) for name, ratio in ratios.items()]
    axes = draw_parity(layers, most=3).axes[0]
    assert [text.get_text() for text in axes.texts] == ["noise alone", "15.0 dB, 2 steps", "45.0 dB"]
    assert "1 better ones left out" in axes.get_title()
    assert len({patch.get_facecolor() for patch in axes.patches}) == 3  # red, orange, green
    assert draw_parity(layers).axes[0].texts[-1].get_text() == "equal"


LOGS = {
    "accuracy": [0.2, 0.9, 0.4, 0.8],
    "val_accuracy": [0.1, 0.8, 0.3, 0.9],
    "loss": [2.0, 1.0, 1.5, 0.5],
    "flip_rate": [0.2, 0.1, 0.05, 0.0],
}


@pytest.mark.parametrize("name", ["ratio", "portion"])
def test_history_has_curves_stages_and_flips(name):
    history = keras.callbacks.History()
    history.history = LOGS | {name: [0.5, 0.5, 0.75, 1.0]}
    above, below, flips = drawn(klb.plot.history(history)).axes
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["accuracy", "val_accuracy"]
    curves = {line.get_label(): line.get_ydata() for line in above.lines}
    assert np.allclose(curves["accuracy"], [0.5, 0.575, 0.575, 0.7])  # means of up to five
    raw = [list(line.get_ydata()) for line in above.lines if len(line.get_ydata()) == 4 and line.get_alpha()]
    assert raw == [LOGS["accuracy"], LOGS["val_accuracy"]]
    assert above.get_ylim()[0] < 0.1
    assert above.get_ylim()[1] > 0.9
    for axes in (above, below):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [2.5, 3.5]
    assert list(below.lines[0].get_ydata()) == [0.5, 0.5, 0.75, 1.0]
    assert np.allclose(flips.lines[0].get_ydata(), [20.0, 10.0, 5.0, 0.0])


def test_a_history_without_stages_is_refused():
    with pytest.raises(
        ValueError, match=r"no 'ratio' or 'portion', only \['accuracy', 'flip_rate', 'loss', 'val_accuracy'\]"
    ):
        klb.plot.history(LOGS)


def test_without_matplotlib_the_remedy_is_said(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_lowbit\[report\]'"):
        made.parity.plot()
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_lowbit\[report\]'"):
        klb.deploy.lower(made.model).plot("graph.svg")


def groups(path, kind):
    """The groups of Graphviz's SVG of a kind: "node" or "edge"."""
    return [group for group in ElementTree.parse(path).getroot().iter(f"{SVG}g") if group.get("class") == kind]


@pytest.mark.parametrize("name", ["add", "unknown layer", "several outputs", "nested"])
def test_every_node_and_input_is_drawn(name, tmp_path):
    graph = klb.deploy.lower(trained(ZOO[name])[0])
    klb.plot.graph(graph, tmp_path / "graph.svg")
    boxes = groups(tmp_path / "graph.svg", "node")
    assert len(boxes) == len(graph.nodes) + len(graph.inputs)
    texts = [[text.text for text in box.iter(f"{SVG}text")] for box in boxes]
    for node in graph.nodes:
        assert any(lines[0].split()[0] == node.op and node.name in lines for lines in texts), (node.op, texts)
    edges = groups(tmp_path / "graph.svg", "edge")
    assert len(edges) == sum(not graph.tensors[t].is_constant for node in graph.nodes for t in node.inputs)
    fills = [path.get("fill") for box in boxes for path in box.iter(f"{SVG}path")]
    subgraphs = [node for node in graph.nodes if node.op in ("float_subgraph", "dequantize")]
    assert fills.count(COLOURS["float"]) == len(subgraphs)
    thick = [box for box in boxes if any(path.get("stroke-width") == "3" for path in box.iter(f"{SVG}path"))]
    assert len(thick) == len(graph.outputs)
    said = {text.text for text in ElementTree.parse(tmp_path / "graph.svg").getroot().iter(f"{SVG}text")}
    assert {*LEGEND, "output", str(graph.metadata["name"])} <= said


INSIDE = """[...page.document.querySelectorAll("g.node")].flatMap(node => {
  const box = node.querySelector("path").getBoundingClientRect();
  return [...node.querySelectorAll("text")].map(text => text.getBoundingClientRect())
    .map(one => one.left >= box.left && one.right <= box.right && one.top >= box.top - 1 && one.bottom <= box.bottom + 1); })"""


@pytest.mark.slow
def test_titles_are_inside_their_boxes(tmp_path):
    builder = GraphBuilder({"name": "a<b&c"})
    builder.input("x<1>", (4,), range=Range(0.1, 0))
    graph = builder.build([builder.fully_connected("x<1>", np.ones((4, 2)), [0.1, 0.1], None, Range(1.0), "y&z" * 30)])
    graph.plot(tmp_path / "graph.svg")
    text = (tmp_path / "graph.svg").read_text()
    assert "a&lt;b&amp;c" in text
    found, said = ask(text[text.index("<svg") :], INSIDE, tmp_path)
    assert (said, len(found) >= 6, all(found)) == ([], True, True)


def test_a_graph_is_drawn_as_png_and_pdf_too_and_as_nothing_else(made, tmp_path):
    graph = klb.deploy.lower(made.model)
    for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        graph.plot(tmp_path / f"graph.{ending}")
        assert (tmp_path / f"graph.{ending}").read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"drawn as \.svg, \.png, \.pdf, got path .*graph\.jpg"):
        klb.plot.graph(graph, tmp_path / "graph.jpg")
    with pytest.raises(OSError, match="cannot write"):
        klb.plot.graph(graph, tmp_path / "none" / "graph.svg")


def test_sensitivity_and_bits_by_layer_are_drawn_by_what_was_measured():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(24, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="classes")(x))
    data = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    quantized, _ = klb.quantize_model(model, "int8", overrides={"hidden": "ternary"})
    klb.calibrate(quantized, data, verbose=0)
    found = klb.sensitivity(quantized, model, data, verbose=0)
    [axes] = drawn(klb.plot.sensitivity(found)).axes
    rows = found.worst_first()
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.path for row in rows]
    assert [width for _, width in bars(axes)[: len(rows)]] == pytest.approx([row.only.snr_db for row in rows])
    assert axes.yaxis_inverted()
    choices = klb.bit_choices(model, data, choices=(8, 4), verbose=0)
    [axes] = drawn(klb.plot.bit_choices(choices, choices.path[-1])).axes
    front, reference, chosen = axes.lines
    assert front.get_xdata()[-1] == chosen.get_xdata()[0] == choices.size_of(choices.path[-1]) / 1000
    assert (reference.get_xdata()[0], reference.get_ydata()[0]) == (choices.float_size / 1000, 100)
