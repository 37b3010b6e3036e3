"""Hostile files of integer graphs: what is refused, with which words, and how much memory that takes.

Flipped bits are seen by the digest (`test_graph`); here the digest is right and the content is wrong.
"""

import contextlib
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_lowbit.deploy.graph import GraphBuilder, GraphFileError, IntegerGraph, Range
from keras_lowbit.deploy.graph.operations import OPERATIONS
from keras_lowbit.deploy.litert.writer import to_bytes
from keras_lowbit.deploy.reference.interpreter import trace
from keras_lowbit.sealed import seal, unseal
from tests.support.litert_cases import OPERATIONS as CASES
from tests.support.litert_cases import graph_of
from tests.support.litert_oracle import float_model

FORMER = Path(__file__).parents[2] / "fixtures" / "v1" / "graph.klb"


def network():
    rng = np.random.default_rng(3)
    b = GraphBuilder(metadata={"name": "net"})
    x = b.input("image", (4, 4, 3), range=Range(0.1, -3))
    y = b.conv2d(x, rng.integers(-9, 9, (3, 3, 3, 4)), np.full(4, 0.01), None, Range(0.3, 5), "conv", padding="same")
    [y] = b.float_subgraph([b.dequantize(y, "real")], float_model("ABS", [(1, 4, 4, 4)], (1, 4, 4, 4)), "abs")
    return b.build([b.mean(b.quantize(y, Range(0.2, 0), "codes"), Range(0.2, 0), "pool")])


def entry(header, kind, name):
    return next(e for e in header[kind] if e["name"] == name)


def renamed(header, old, new):
    """The description with a tensor's name changed wherever it stands."""
    entry(header, "tensors", old)["name"] = new
    for place in (header, *header["nodes"]):
        for side in ("inputs", "outputs"):
            place[side] = [new if name == old else name for name in place[side]]


WRONG = {
    "shape infinite": lambda h: entry(h, "tensors", "image").update(shape=[None, 1e999, 4, 3]),
    "shape a fraction": lambda h: entry(h, "tensors", "image").update(shape=[None, 4.0, 4, 3]),
    "shape true": lambda h: entry(h, "tensors", "conv").update(shape=[None, True, 4, 4]),
    "shape a string": lambda h: entry(h, "tensors", "image").update(shape="443"),
    "shape beyond int32": lambda h: entry(h, "tensors", "image").update(shape=[None, 2**31, 4, 3]),
    "shape of a huge number": lambda h: entry(h, "tensors", "image").update(shape=[None, 10**400, 4, 3]),
    "shape without end": lambda h: entry(h, "tensors", "image").update(shape=[None] + [1] * 2000 + [4, 4, 3]),
    "zero point infinite": lambda h: entry(h, "tensors", "image").update(zero_point=1e999),
    "zero point a fraction": lambda h: entry(h, "tensors", "image").update(zero_point=0.5),
    "zero point true": lambda h: entry(h, "tensors", "image").update(zero_point=True),
    "scale a list": lambda h: entry(h, "tensors", "image").update(scale=[0.1]),
    "scale a string": lambda h: entry(h, "tensors", "image").update(scale="0.1"),
    "scale true": lambda h: entry(h, "tensors", "image").update(scale=True),
    "scale huge": lambda h: entry(h, "tensors", "image").update(scale=10**400),
    "scale another array": lambda h: entry(h, "tensors", "image").update(scale={"array": "conv/bias:scale"}),
    "dtype a list": lambda h: entry(h, "tensors", "image").update(dtype=["int8"]),
    "dtype of objects": lambda h: entry(h, "tensors", "image").update(dtype="O"),
    "data a number": lambda h: entry(h, "tensors", "image").update(data=5),
    "data of no array": lambda h: entry(h, "tensors", "conv/kernel").update(data={"array": "none"}),
    "data by two keys": lambda h: entry(h, "tensors", "conv/kernel")["data"].update(more=1),
    "attributes a list": lambda h: entry(h, "nodes", "conv").update(attributes=[1]),
    "attributes a string": lambda h: entry(h, "nodes", "conv").update(attributes="x"),
    "an attribute more": lambda h: entry(h, "nodes", "conv")["attributes"].update(more=1),
    "tensor name a number": lambda h: renamed(h, "image", 5),
    "tensor name empty": lambda h: renamed(h, "image", ""),
    "tensor name half a character": lambda h: renamed(h, "image", "\ud800"),
    "node name a number": lambda h: entry(h, "nodes", "conv").update(name=7),
    "node name half a character": lambda h: entry(h, "nodes", "conv").update(name="\udfff"),
    "node name a list": lambda h: entry(h, "nodes", "conv").update(name=["conv"]),
    "inputs of a node a string": lambda h: entry(h, "nodes", "pool").update(inputs="codes"),
    "inputs of a node numbers": lambda h: entry(h, "nodes", "pool").update(inputs=[1]),
    "inputs of the graph objects": lambda h: h.update(inputs=[{}]),
    "outputs of the graph a string": lambda h: h.update(outputs="pool"),
    "op a number": lambda h: entry(h, "nodes", "conv").update(op=3),
    "nodes an object": lambda h: h.update(nodes={}),
    "a node a string": lambda h: h["nodes"].append("conv"),
    "an entry more": lambda h: h.update(more=[]),
    "metadata a list": lambda h: h.update(metadata=[]),
    "metadata infinite": lambda h: h["metadata"].update(a=1e999),
    "version -5": lambda h: h.update(version=-5),
    "version 0": lambda h: h.update(version=0),
    "version true": lambda h: h.update(version=True),
    "version a fraction": lambda h: h.update(version=2.0),
    "version a list": lambda h: h.update(version=[2]),
    "a tensor twice": lambda h: h["tensors"].append(dict(h["tensors"][0])),
    "float subgraph of other sizes": lambda h: [
        entry(h, "tensors", n).update(shape=[None, 4, 4, 5]) for n in ("abs/output_0", "codes")
    ],
    "float subgraph of another batch": lambda h: entry(h, "nodes", "abs")["attributes"].update(batch_size=2),
    "float subgraph without its model": lambda h: entry(h, "nodes", "abs")["attributes"].update(model="none"),
    "float subgraph of other bytes": lambda h: entry(h, "nodes", "abs")["attributes"].update(
        model=entry(h, "tensors", "conv/kernel")["data"]
    ),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Description and arrays of a file."""
    path = tmp_path_factory.mktemp("graph") / "q.klb"
    network().save(path)
    return unseal("graph", path.read_bytes())


def dumped(header):
    """JSON with infinity as a number that overflows: what a file can hold."""
    return json.dumps(header).replace("Infinity", "1e999")


def sealed(text, arrays, monkeypatch):
    monkeypatch.setattr("keras_lowbit.sealed.json.dumps", lambda about, **_: text)
    content = seal("graph", {}, arrays)
    monkeypatch.undo()
    return content


@pytest.mark.parametrize("name", WRONG)
def test_what_is_sealed_and_wrong_is_refused(parts, name, tmp_path, monkeypatch):
    header = json.loads(json.dumps(parts[0]))
    WRONG[name](header)
    (tmp_path / "q.klb").write_bytes(sealed(dumped(header), parts[1], monkeypatch))
    with pytest.raises(GraphFileError, match=r"q\.klb"):
        IntegerGraph.load(tmp_path / "q.klb")


@pytest.mark.parametrize(
    "text", ["[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, "NaN", "", "null", "\x00"]
)
def test_text_that_is_no_description_is_refused(parts, text, tmp_path, monkeypatch):
    (tmp_path / "q.klb").write_bytes(sealed(text, {}, monkeypatch))
    with pytest.raises(GraphFileError, match=r"q\.klb"):
        IntegerGraph.load(tmp_path / "q.klb")


def test_an_array_that_nothing_names_or_two_tensors_share_is_refused(parts, tmp_path):
    header, arrays = parts
    (tmp_path / "q.klb").write_bytes(seal("graph", header, {**arrays, "more": np.zeros(9)}))
    with pytest.raises(GraphFileError, match=r"arrays that nothing names: \['more'\]"):
        IntegerGraph.load(tmp_path / "q.klb")
    header = json.loads(json.dumps(header))
    entry(header, "tensors", "conv/bias")["scale"] = entry(header, "tensors", "conv/kernel")["scale"]
    (tmp_path / "q.klb").write_bytes(seal("graph", header, arrays))
    with pytest.raises(GraphFileError, match="damaged"):
        IntegerGraph.load(tmp_path / "q.klb")


# ------------------------------------------------------------------------------------------------ attributes

VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2,
    2**31,
    10**30,
    0.5,
    "same",
    "x",
    [],
    [1],
    [0, 0],
    [1, 1],
    [-1, 1],
    [2**31, 1],
    [1.0, 1.0],
)
MORE = ([True, True], ["1", "1"], [[1, 1], [0, 0], [0, 0]], [[0, 0]], {}, [None, None], [1] * 40)


def use(graph, path):
    """All that an accepted graph must be able to do; large ones are not run."""
    assert str(graph)
    graph.save(path)
    assert IntegerGraph.load(path).equals(graph)
    to_bytes(graph)
    if all(np.prod([d or 1 for d in t.shape]) < 1e6 for t in graph.tensors.values()):
        trace(graph, {n: np.zeros([d or 1 for d in graph.tensors[n].shape], np.int8) for n in graph.inputs})


@pytest.mark.parametrize("case", ["conv2d groups", "depthwise", "transpose_conv size", "dense 4-d", "add tensors",
                                  "max_pool2d", "average_pool2d", "concatenation", "mean", "pad", "reshape", "transpose",
                                  "strided_slice", "resize_nearest True False", "resize_bilinear True False",
                                  "leaky_relu", "softmax"])  # fmt: skip
def test_every_attribute_is_refused_or_works(case, tmp_path):
    """With the shape that follows from it, so that the shape does not give it away."""
    path = tmp_path / "q.klb"
    graph = graph_of(CASES[case])
    graph.save(path)
    header, arrays = unseal("graph", path.read_bytes())
    node = header["nodes"][-1]
    known, refused = dict(node["attributes"]), 0
    assert known.keys() == OPERATIONS[node["op"]].attributes.keys()
    inputs = [graph.tensors[name].shape for name in node["inputs"]]
    for key, value in [(key, value) for key in known for value in (*VALUES, *MORE)] + [("more", 1)]:
        node["attributes"] = {**known, key: value}
        changed = json.loads(json.dumps(header))
        try:
            shape = OPERATIONS[node["op"]].infer_shape(node["attributes"], inputs)
            changed["tensors"][-1]["shape"] = list(shape)
        except Exception:  # the values are nonsense: whatever they lead to, the shape stays
            pass
        path.write_bytes(seal("graph", changed, arrays))
        try:
            use(IntegerGraph.load(path), path)
        except GraphFileError:
            refused += 1
    assert refused >= max(1, len(known)) * (15 if known else 1)


# ------------------------------------------------------------------------------------------------ version 1: a zip file


def former(text=None, arrays=None, method=zipfile.ZIP_DEFLATED, change=None):
    """The bytes of a version 1 file with other parts."""
    with zipfile.ZipFile(FORMER) as archive:
        header = json.loads(archive.read("graph.json"))
        arrays = archive.read("arrays.bin") if arrays is None else arrays
    if change is not None:
        change(header)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("graph.json", dumped(header) if text is None else text)
        archive.writestr("arrays.bin", arrays)
    return bytearray(stream.getvalue())


def last_data(header):
    return next(t for t in reversed(header["tensors"]) if t["data"])["data"]


FORMER_WRONG = {
    "nested": lambda: former("[" * 2000 + "]" * 2000),
    "no JSON": lambda: former(b"\xff\xfe"),
    "a number": lambda: former("1"),
    "lzma": lambda: former(method=zipfile.ZIP_LZMA),
    "bzip2": lambda: former(method=zipfile.ZIP_BZIP2),
    "version -5": lambda: former(change=lambda h: h.update(version=-5)),
    "version true": lambda: former(change=lambda h: h.update(version=True)),
    "shape infinite": lambda: former(change=lambda h: h["tensors"][0].update(shape=[None, float("inf"), 8, 4])),
    "attributes a list": lambda: former(change=lambda h: h["nodes"][0].update(attributes=[1])),
    "node name a number": lambda: former(change=lambda h: h["nodes"][0].update(name=7)),
    "place beyond": lambda: former(change=lambda h: last_data(h).update(offset=10**9)),
    "place before": lambda: former(change=lambda h: last_data(h).update(offset=-4)),
    "place a fraction": lambda: former(change=lambda h: last_data(h).update(offset=1.5)),
    "size of all memory": lambda: former(change=lambda h: last_data(h).update(bytes=10**15)),
    "arrays shared": lambda: former(change=lambda h: h["tensors"][1].update(data=dict(last_data(h)))),
    "arrays longer": lambda: former(arrays=b"\0" * 2000),
    "dtype of objects": lambda: former(change=lambda h: h["tensors"][0].update(dtype="O")),
    "a gigabyte of spaces": lambda: spaces(),
}


def spaces():
    """As a bomb: the text behind its first bytes is one block of spaces, repeated."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("graph.json", "w") as text:
            for _ in range(100):
                text.write(b" " * (1 << 20))
        archive.writestr("arrays.bin", b"")
    return stream.getvalue()


@pytest.mark.parametrize("name", FORMER_WRONG)
def test_a_wrong_former_file_is_refused(name, tmp_path):
    (tmp_path / "q.klb").write_bytes(FORMER_WRONG[name]())
    with pytest.raises(GraphFileError, match=r"q\.klb"):
        IntegerGraph.load(tmp_path / "q.klb")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_no_flipped_byte_of_a_former_file_gives_another_graph(method, tmp_path):
    path, whole = tmp_path / "q.klb", former(method=method)
    wanted = IntegerGraph.load(FORMER)
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 0xFF
        path.write_bytes(content)
        with contextlib.suppress(GraphFileError):
            assert IntegerGraph.load(path).equals(wanted)


def test_a_lie_about_the_size_is_not_unpacked(tmp_path):
    """The entry says 100 bytes, its stream goes on for 100 MB."""
    content = bytearray(spaces())
    at = content.rindex(b"PK\x01\x02")
    first = content.index(b"PK\x01\x02")
    for place in (first + 24, 22):
        content[place : place + 4] = (100).to_bytes(4, "little")
    assert at != first
    (tmp_path / "q.klb").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(GraphFileError, match=r"q\.klb"):
        IntegerGraph.load(tmp_path / "q.klb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
