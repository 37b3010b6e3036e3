"""Random graphs: the NumPy reference equals LiteRT's reference kernels in every tensor, to the last bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Range
from keras_lowbit.deploy.reference.call import KERNELS
from keras_lowbit.numerics import requantization as fp
from tests.support.litert_oracle import differing_elements
from tests.support.random_graphs import random_graph

SEEN: set[str] = set()


def many(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@many(600)
@given(st.data())
def test_no_tensor_of_a_random_graph_differs(data):
    graph, inputs, weights = random_graph(data.draw)
    SEEN.update(node.op for node in graph.nodes)
    different = differing_elements(graph, inputs, weights)
    assert not any(different.values()), f"{ {n: d for n, d in different.items() if d} }\n{graph}"


def test_the_graphs_above_held_every_operation():
    if not SEEN:
        pytest.skip("runs after the random graphs")
    assert set(KERNELS) == SEEN


@many(25)
@given(data=st.data())
def test_a_saved_random_graph_is_the_same_graph(data, tmp_path_factory):
    graph, _, _ = random_graph(data.draw)
    path = tmp_path_factory.mktemp("graphs") / "graph.klb"
    graph.save(path)
    assert IntegerGraph.load(path).equals(graph)


def _layer(kind):
    """A layer of 16 inputs and 8 outputs on random codes: 2,048 sums that are brought back to int8."""
    random = np.random.default_rng(7)
    builder = GraphBuilder()
    x = builder.input("x", (16, 16, 16), range=Range(0.05, -3))
    shape = (1, 1, 16, 8) if kind == "conv2d" else (16, 8)
    codes = random.integers(-127, 128, shape, np.int8)
    y = getattr(builder, kind)(x, codes, np.full(8, 0.011), None, Range(0.31, 4), "y")
    return builder.build([y]), {"x": random.integers(-128, 128, (1, 16, 16, 16), np.int8)}


def test_one_rounding_instead_of_two_is_noticed(monkeypatch):
    graph, inputs = _layer("conv2d")
    assert differing_elements(graph, inputs) == {"x": 0, "y": 0}

    def once(total, f, zero_point, limits=(fp.QMIN, fp.QMAX), dtype=np.int8):
        scaled = (total.astype(np.int64) * f.multiplier + (np.int64(1) << (30 - f.shift))) >> (31 - f.shift)
        return np.clip(scaled + zero_point, *limits).astype(dtype)

    monkeypatch.setattr(fp, "requantize", once)
    assert differing_elements(graph, inputs)["y"] > 0


def test_two_roundings_instead_of_one_in_a_dense_layer_are_noticed(monkeypatch):
    graph, inputs = _layer("fully_connected")
    assert differing_elements(graph, inputs) == {"x": 0, "y": 0}
    monkeypatch.setitem(KERNELS, "fully_connected", _as_convolution)
    assert differing_elements(graph, inputs)["y"] > 0


def _as_convolution(call):
    attributes = {**call.attributes, "strides": [1, 1], "padding": "valid", "dilation": [1, 1], "groups": 1}
    kernel = call.arrays[1][None, None]
    return KERNELS["conv2d"](call._replace(attributes=attributes, arrays=(call.arrays[0], kernel, *call.arrays[2:])))
