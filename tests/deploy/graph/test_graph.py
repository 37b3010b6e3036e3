"""The integer graph as a value and as a file: bit-equal round trip, and words for every kind of bad file or graph."""

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from keras_lowbit.deploy.graph import GraphBuilder, GraphFileError, IntegerGraph, Node, Range, Tensor, integer_graph
from keras_lowbit.sealed import seal
from tests.support.litert_oracle import float_model


@pytest.fixture
def graph():
    """Convolution, constant operand and softmax: per-channel and per-tensor scales, attributes of every kind."""
    rng = np.random.default_rng(7)
    b = GraphBuilder(metadata={"recipe": {"name": "ternary", "ratio": 0.1}, "version": "1"})
    x = b.input("images", (6, 6, 3), range=Range(0.1, -3))
    y = b.conv2d(
        x,
        rng.integers(-127, 128, (3, 3, 3, 4)),
        rng.uniform(1e-3, 1e-2, 4),
        np.arange(4),
        Range(0.3, 5),
        "conv",
        padding="same",
        activation="relu",
    )
    y = b.leaky_relu(y, Range(0.2, 0), "leaky", alpha=0.1)
    y = b.mul(y, b.constant("gain", np.array([1, -128, 3, 4]), 1 / 3, 9), Range(0.3, 5), "mul")
    y = b.mean(y, Range(0.3, 5), "pool")
    return b.build([b.softmax(y, "probabilities")])


def changed(graph, **tensors):
    """The graph with some tensors replaced, unchecked."""
    return IntegerGraph({**graph.tensors, **tensors}, graph.nodes, graph.inputs, graph.outputs, graph.metadata)


def test_saved_graph_comes_back_bit_equal(graph, tmp_path):
    graph.save(tmp_path / "q.klb")
    again = IntegerGraph.load(tmp_path / "q.klb")
    assert again.equals(graph)
    assert str(again) == str(graph)
    again.save(tmp_path / "again.klb")
    assert (tmp_path / "again.klb").read_bytes() == (tmp_path / "q.klb").read_bytes()


def test_float_subgraph_bytes_come_back(tmp_path):
    model = float_model("ABS", [(1, 4)], (1, 4))
    tensors = {n: Tensor(n, (None, 4), "float32") for n in ("x", "i/output_0")}
    node = Node("float_subgraph", "i", ("x",), ("i/output_0",), {"model": model, "batch_size": 1})
    IntegerGraph(tensors, (node,), ("x",), ("i/output_0",)).save(tmp_path / "q.klb")
    assert IntegerGraph.load(tmp_path / "q.klb").nodes[0].attributes == {"model": model, "batch_size": 1}


def test_equality_sees_one_bit(graph):
    scale = graph.tensors["conv/kernel"].scale.copy()
    scale[2] = np.nextafter(scale[2], np.float32(1))
    assert not changed(graph, **{"conv/kernel": replace(graph.tensors["conv/kernel"], scale=scale)}).equals(graph)


def test_text_shows_every_node_and_grid(graph):
    text = str(graph)
    for piece in ("images", "conv2d", "3x3x3x4", "leaky_relu", "alpha=0.1", "0.00390625", "-128", "5 nodes"):
        assert piece in text


@pytest.mark.parametrize("keep", [0, 1, 2, 30, 0.3, 0.6, 0.99])
def test_truncated_file_is_refused(graph, tmp_path, keep):
    path = tmp_path / "q.klb"
    graph.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(GraphFileError, match=r"q\.klb.*(damaged|not an integer graph)"):
        IntegerGraph.load(path)


def test_no_flipped_byte_goes_unseen(graph, tmp_path):
    """Every byte in turn: the file is refused, or the byte meant nothing and the graph is equal."""
    path = tmp_path / "q.klb"
    graph.save(path)
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            assert IntegerGraph.load(path).equals(graph)
        except GraphFileError:
            refused += 1
    assert refused > len(content) / 6


def rewrite(path, **changes):
    """Save the file anew with some entries of its description changed, its digest right."""
    with safetensors.safe_open(path, "np") as file:
        text = file.metadata()["graph"].partition("\n")[2]
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    dropped = changes.pop("drop", None)
    arrays.pop(dropped, None)
    text = json.dumps({**json.loads(text), **changes})
    path.write_bytes(seal("graph", json.loads(text), arrays))


def test_foreign_files_are_refused(graph, tmp_path):
    path = tmp_path / "q.klb"
    for content in (b"", b"\x1c\x00\x00\x00TFL3 and more", b"\x93NUMPY", b"{}"):
        path.write_bytes(content)
        with pytest.raises(
            GraphFileError,
            match=r"not an integer graph.*expected a file written by "
            r"IntegerGraph\.save",
        ):
            IntegerGraph.load(path)
    path.write_bytes(safetensors.numpy.save({"weights": np.ones(3)}))
    with pytest.raises(
        GraphFileError, match=r"not an integer graph, .*no entry 'graph'.*expected a file written by IntegerGraph\.save"
    ):
        IntegerGraph.load(path)
    graph.save(path)
    rewrite(path, format="other")
    with pytest.raises(GraphFileError, match="not an integer graph"):
        IntegerGraph.load(path)


def test_newer_file_says_upgrade(graph, tmp_path):
    path = tmp_path / "q.klb"
    graph.save(path)
    rewrite(path, version=3)
    with pytest.raises(GraphFileError, match="format version 3, this keras_lowbit reads 1 to 2: upgrade"):
        IntegerGraph.load(path)


def test_sound_file_with_an_unsound_graph_is_refused(graph, tmp_path):
    path = tmp_path / "q.klb"
    for key, value in (
        ("nodes", []),
        ("outputs", ["nobody"]),
        ("tensors", 3),
        ("inputs", None),
        ("drop", "conv/kernel:data"),
    ):
        graph.save(path)
        rewrite(path, **{key: value})
        with pytest.raises(GraphFileError, match="damaged"):
            IntegerGraph.load(path)


def test_missing_file_is_a_plain_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        IntegerGraph.load(tmp_path / "none.klb")


def test_failed_save_leaves_the_old_file_and_nothing_else(graph, tmp_path, monkeypatch):
    path = tmp_path / "q.klb"
    graph.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*q\.klb.*No space left.*nothing was written"):
        graph.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["q.klb"]


def test_unwritable_places_say_what_to_do(graph, tmp_path):
    with pytest.raises(FileNotFoundError, match="choose another path"):
        graph.save(tmp_path / "no" / "such" / "q.klb")
    with pytest.raises(IsADirectoryError, match="Give the name of a file"):
        graph.save(tmp_path)
    assert os.listdir(tmp_path) == []


def test_saved_file_has_ordinary_permissions(graph, tmp_path):
    graph.save(tmp_path / "q.klb")
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("q.klb", "plain")}
    assert len(modes) == 1


def test_unsound_graph_is_not_saved(graph, tmp_path):
    unsound = graph.with_metadata(accuracy=float("nan"))
    with pytest.raises(ValueError, match="metadata is not plain JSON"):
        unsound.save(tmp_path / "q.klb")
    assert os.listdir(tmp_path) == []


def test_other_metadata_leave_a_checked_graph_checked(graph, monkeypatch):
    """Large graphs take seconds to check; one that was never checked is, whatever its metadata."""
    graph.validate()
    unchecked = type(graph)(graph.tensors, graph.nodes, ("missing",), graph.outputs).with_metadata(name="other")
    monkeypatch.setattr(integer_graph, "check_node", None)
    graph.with_metadata(name="other").validate()
    with pytest.raises(ValueError, match="missing"):
        unchecked.validate()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("leaky", {"scale": np.float32(np.nan)}, "'leaky' has scale nan.*finite step size"),
        ("leaky", {"scale": np.float32(0)}, "'leaky' has scale 0.0.*Calibrate again"),
        ("leaky", {"scale": np.float32(-1)}, "'leaky' has scale -1.0"),
        ("leaky", {"scale": np.float32(np.inf)}, "'leaky' has scale inf"),
        ("leaky", {"scale": None}, "int8 with scale None: integers need a scale"),
        ("leaky", {"scale": np.ones(4)}, "activation with 4 scales"),
        ("leaky", {"zero_point": 128}, "zero point 128: expected -128 to 127"),
        ("leaky", {"dtype": "uint16"}, "dtype 'uint16': expected one of int8, int16, int32, float32"),
        ("leaky", {"shape": (None, 6, 6, 5)}, r"shape \(None, 6, 6, 5\): expected \(None, 6, 6, 4\)"),
        ("leaky", {"shape": (1, 6, 6, 4)}, "batch axis written None"),
        ("leaky", {"shape": (None, 6, 0, 4)}, "sizes of at least 1"),
        ("probabilities", {"zero_point": 0}, "expected scale 0.00390625 zero point -128"),
        ("conv/kernel", {"zero_point": 1}, "zero point 1: expected -127 to 127 with zero point 0"),
        ("conv/kernel", {"data": np.full((3, 3, 3, 4), -128, np.int8)}, "codes from -128 to -128"),
        ("conv/kernel", {"data": np.zeros((3, 3, 3, 4), np.int16)}, "int16 codes.*expected int8"),
        ("conv/kernel", {"scale": np.ones(3)}, r"4 output channels, weight scales of shape \(3,\)"),
        ("conv/kernel", {"scale": np.array([1, 1, np.nan, 1])}, "scale nan in channel 2"),
        ("conv/bias", {"scale": np.ones(4)}, "bias scale .* in channel 0: expected float32"),
        ("conv/bias", {"data": np.full(4, 2**31 - 1, np.int32)}, "int32 sum of channel .* could reach"),
        ("conv/bias", {"dtype": "int8", "data": np.zeros(4, np.int8)}, "dtype int8: expected int32"),
    ],
)
def test_validate_names_the_tensor_and_the_value(graph, name, change, message):
    with pytest.raises(ValueError, match=message):
        changed(graph, **{name: replace(graph.tensors[name], **change)}).validate()


def with_nodes(graph, *nodes, **more):
    parts = {"inputs": graph.inputs, "outputs": graph.outputs} | more
    return IntegerGraph(graph.tensors, nodes, parts["inputs"], parts["outputs"])


def test_validate_checks_the_order_of_nodes(graph):
    with pytest.raises(ValueError, match=r"reads \['conv'\] before any node computes it"):
        with_nodes(graph, *graph.nodes[1:]).validate()
    with pytest.raises(ValueError, match="two nodes are named 'conv'"):
        with_nodes(graph, graph.nodes[0], graph.nodes[0]).validate()
    with pytest.raises(ValueError, match="already has a value"):
        with_nodes(graph, graph.nodes[0], replace(graph.nodes[0], name="twin")).validate()
    with pytest.raises(ValueError, match=r"no node computes the tensors \['probabilities'\]"):
        with_nodes(graph, *graph.nodes[:-1], outputs=("pool",)).validate()
    with pytest.raises(ValueError, match="graph outputs are"):
        with_nodes(graph, *graph.nodes, outputs=()).validate()
    with pytest.raises(ValueError, match="are constants"):
        with_nodes(graph, *graph.nodes, inputs=("images", "gain")).validate()


def test_validate_checks_operations_and_attributes(graph):
    first, rest = graph.nodes[0], graph.nodes[1:]
    for change, message in (
        ({"op": "conv9d"}, "unknown operation; expected one of conv2d"),
        ({"inputs": ("images",)}, "1 inputs and 1 outputs: expected 3 and 1"),
        ({"inputs": ("images", "conv/kernel", "lost")}, r"tensors that the graph lacks|reads \['lost'\]"),
        ({"attributes": {}}, "incomplete attributes"),
        (
            {"attributes": {**first.attributes, "activation": "gelu"}},
            "activation 'gelu'.*add any other as its own node",
        ),
        ({"attributes": {**first.attributes, "strides": [0, 1]}}, "at least 1"),
        ({"attributes": {**first.attributes, "padding": "full"}}, "padding 'full': expected 'same' or 'valid'"),
    ):
        with pytest.raises(ValueError, match=message):
            with_nodes(graph, replace(first, **change), *rest).validate()


def test_a_graph_cannot_be_changed(graph):
    with pytest.raises(TypeError, match="item assignment"):
        graph.tensors["conv/kernel"] = graph.tensors["conv/bias"]
    with pytest.raises(TypeError, match="item assignment"):
        graph.metadata["name"] = "other"


def test_tensor_data_cannot_be_changed_in_place(graph):
    with pytest.raises(ValueError, match="read-only"):
        graph.tensors["conv/kernel"].data[0] = 1
