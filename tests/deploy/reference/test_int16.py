"""16-bit activations: the NumPy reference equals LiteRT's reference kernels on every element."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import OpResolverType
from hypothesis import given
from hypothesis import strategies as st

from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Range
from keras_lowbit.deploy.graph.operations import OPERATIONS, operation_of
from keras_lowbit.deploy.litert.writer import to_bytes
from keras_lowbit.deploy.reference.interpreter import trace
from keras_lowbit.numerics import requantization as fp
from tests.deploy.reference.test_random_graphs import many
from tests.support.litert_oracle import differing_elements, run_litert
from tests.support.random_graphs import random_graph

EVERY_CODE = np.arange(-(2**15), 2**15).astype(np.int16)[None]
BUILT_IN = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
SEEN: set[str] = set()


@many(400)
@given(st.data())
def test_no_tensor_of_a_random_graph_differs(data):
    graph, inputs, weights = random_graph(data.draw, codes="int16")
    SEEN.update(node.op for node in graph.nodes)
    different = differing_elements(graph, inputs, weights)
    assert not any(different.values()), f"{ {n: d for n, d in different.items() if d} }\n{graph}"


@many(60)
@given(st.data())
def test_the_kernels_of_a_phone_differ_in_int32_sums_alone_and_by_one_step(data):
    """Node by node, on the inputs that the reference makes. XNNPACK takes no int16: a phone runs the built-in kernels."""
    graph, inputs, _ = random_graph(data.draw, codes="int16")
    values, batch = trace(graph, inputs), len(next(iter(inputs.values())))
    for node in graph.nodes:
        reads = tuple(dict.fromkeys(name for name in node.inputs if not graph.tensors[name].is_constant))
        if node.op == "float_subgraph":
            continue
        tensors = {name: graph.tensors[name] for name in (*node.inputs, *node.outputs)}
        content, _ = to_bytes(IntegerGraph(tensors, (node,), reads, node.outputs), batch_size=batch)
        found = run_litert(content, {name: values[name] for name in reads}, BUILT_IN)
        sums_in_int32 = operation_of(node).weighted and graph.tensors[node.inputs[2]].dtype == "int32"
        for made in node.outputs:
            assert np.abs(found[made].astype(float) - values[made]).max() <= sums_in_int32, node


def test_the_graphs_above_held_every_operation_with_a_kernel():
    if not SEEN:
        pytest.skip("runs after the random graphs")
    without = {name for name, record in OPERATIONS.items() if record.int16 is None}
    narrow, of_masks = (
        {"hard_swish", "argmax", "argmin", "lstm"},
        {"compare", "logical_and", "logical_or", "logical_not"},
    )
    assert without == {*narrow, *of_masks, "float_subgraph"}
    assert set(OPERATIONS) - SEEN == narrow


@many(25)
@given(data=st.data())
def test_a_saved_random_graph_is_the_same_graph(data, tmp_path_factory):
    graph, _, _ = random_graph(data.draw, codes="int16")
    path = tmp_path_factory.mktemp("graphs") / "graph.klb"
    graph.save(path)
    assert IntegerGraph.load(path).equals(graph)


# 2**-12 and 2**-11: LiteRT shifts; 1.0005 * 2**-12 it takes for that power; beyond 2.67 it does not shift at all.
@pytest.mark.parametrize("scale", [1e-6, 3e-4, 2.0**-12, 1.0005 * 2.0**-12, 2.0**-11, 2.0**-10, 0.02, 1.0, 2.7, 4.9])
@pytest.mark.parametrize("function", ["logistic", "tanh"])
def test_a_function_of_every_code(function, scale):
    builder = GraphBuilder()
    x = builder.input("x", (2**16,), range=Range(scale, 0, "int16"))
    graph = builder.build([getattr(builder, function)(x, "y")])
    assert differing_elements(graph, {"x": EVERY_CODE}) == {"x": 0, "y": 0}


@pytest.mark.parametrize("scale", [1e-5, 3e-4, 2.0**-10, 0.3, 4.9])
def test_softmax_of_rows_of_all_kinds(scale):
    rows = np.random.default_rng(3).integers(-(2**15), 2**15, (64, 37)).astype(np.int16)
    rows[:16] //= 256  # close to one another
    rows[16] = 5  # all equal
    rows[17, 1:] = -(2**15)  # one far above the others
    builder = GraphBuilder()
    x = builder.input("x", (37,), range=Range(scale, 0, "int16"))
    graph = builder.build([builder.softmax(x, "y")])
    assert differing_elements(graph, {"x": rows}) == {"x": 0, "y": 0}


@pytest.mark.parametrize("bias", [0, 2**40])
def test_sums_of_int64_are_rounded_once_with_fifteen_bits(bias):
    """Against Python's whole numbers, with sums that float64 does not hold apart from their neighbours at the end."""
    totals = np.random.default_rng(0).integers(-(2**46), 2**46, 200) // 2 + bias
    for real in (1.3e-9, 0.000317, 0.7, 127.9):
        factor = fp.quantize_multiplier(real)
        multiplier, shift = int(factor.multiplier), 15 - int(factor.shift)
        short = min((multiplier + 2**15) >> 16, 2**15 - 1)
        exact = [(int(total) * short + 2 ** (shift - 1)) // 2**shift for total in totals]
        wrapped = [(value + 2**31) % 2**32 - 2**31 for value in exact]
        np.testing.assert_array_equal(fp.multiply_wide(totals, factor), wrapped)
