"""LiteRT's integer LSTM: the NumPy reference and the runtime equal it on every element, run after run."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from hypothesis import given
from hypothesis import strategies as st

from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Range
from keras_lowbit.deploy.litert.writer import to_bytes
from keras_lowbit.deploy.reference import fixed_point_16
from keras_lowbit.deploy.reference.interpreter import run_reference
from keras_lowbit.deploy.runtime.runtime import Runtime
from tests.deploy.reference.test_random_graphs import many
from tests.support.litert_oracle import differing_elements

RESOLVERS = (
    OpResolverType.BUILTIN_REF,
    OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    OpResolverType.AUTO,
)


def layer(seed, bias=True, cell_bits=None):
    """A layer of any sizes, grids and scales: (graph, codes)."""
    random = np.random.default_rng(seed)
    batch, steps, features, units = (int(size) for size in random.integers(1, (4, 24, 20, 20)))
    builder = GraphBuilder()
    scale = float(np.float32(10 ** random.uniform(-3, -1)))
    x = builder.input("x", (steps, features), range=Range(scale, int(random.integers(-128, 128))))
    kernel, recurrent = (random.integers(-127, 128, (4, units, size), np.int8) for size in (features, units))
    scales = (10 ** random.uniform(-3.5, -1, (2, 4))).astype(np.float32)
    added = np.round(random.normal(size=(4, units)) / (scales[0][:, None] * scale)) if bias else None
    out = Range(float(np.float32(10 ** random.uniform(-2.6, -2))), int(random.integers(-128, 128)))
    bits = int(random.integers(0, 7)) if cell_bits is None else cell_bits
    y = builder.lstm(x, kernel, scales[0], recurrent, scales[1], added, out, "y", bits)
    return builder.build([y]), random.integers(-128, 128, (batch, steps, features), np.int8)


def litert(content, codes, resolver, runs=2):
    """The results of each run of one interpreter, for the codes' own batch size."""
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
    [entry] = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], codes.shape)
    interpreter.allocate_tensors()
    found = []
    for _ in range(runs):
        interpreter.set_tensor(entry["index"], codes)
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return found


@many(150)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_element_differs_from_litert_on_any_of_its_kernels_and_runs(seed, bias):
    graph, codes = layer(seed, bias)
    content, _ = to_bytes(graph, batch_size=len(codes))
    wanted = run_reference(graph, codes)
    for resolver in RESOLVERS:
        for run, got in enumerate(litert(content, codes, resolver)):
            assert np.count_nonzero(got != wanted) == 0, f"{resolver.name}, run {run}"


@pytest.mark.parametrize("cell_bits", range(7))
def test_every_range_of_the_cell(cell_bits):
    for seed in range(5):
        graph, codes = layer(seed, cell_bits=cell_bits)
        assert not any(differing_elements(graph, {"x": codes}).values())


@pytest.mark.parametrize("resolver", RESOLVERS, ids=lambda resolver: resolver.name)
def test_an_open_batch_takes_any_number_of_samples(resolver):
    graph, codes = layer(3)
    content, _ = to_bytes(graph, batch_size=None)
    for count in (1, 5):
        given_codes = np.resize(codes, (count, *codes.shape[1:]))
        for got in litert(content, given_codes, resolver):
            np.testing.assert_array_equal(got, run_reference(graph, given_codes))


def test_another_table_is_noticed(monkeypatch):
    graph, codes = layer(2)
    table = fixed_point_16.logistic_table()
    monkeypatch.setattr("keras_lowbit.deploy.reference.recurrent.gate_table", lambda gate: table + 40)
    assert differing_elements(graph, {"x": codes})["y"] > 0


def test_the_tables_are_the_functions_in_16_bits():
    x = np.arange(-(2**15), 2**15)
    assert np.abs(fixed_point_16.logistic_table() / 2**15 - 1 / (1 + np.exp(-x / 2**12))).max() < 7 / 2**15
    for bits in range(7):
        assert np.abs(fixed_point_16.tanh_table(bits) / 2**15 - np.tanh(x * 2.0 ** (bits - 15))).max() < 13 / 2**15


@pytest.mark.parametrize("seed", range(8))
def test_the_runtime_equals_the_reference(seed):
    graph, codes = layer(seed)
    np.testing.assert_array_equal(Runtime(graph)(codes), run_reference(graph, codes))


def test_a_saved_graph_is_the_same_graph(tmp_path):
    graph, _ = layer(1)
    graph.save(tmp_path / "graph.klb")
    assert IntegerGraph.load(tmp_path / "graph.klb").equals(graph)


KERNEL, RECURRENT, SCALES = np.ones((4, 3, 2), np.int8), np.ones((4, 3, 3), np.int8), np.full(4, 0.01, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": np.ones((4, 3, 5))}, "do not fit 2 features: expected"),
        ({"recurrent": np.ones((4, 3, 2))}, "do not fit 2 features: expected"),
        ({"kernel_scales": np.full(3, 0.01)}, "expected a constant of 4 scales, one for each gate"),
        ({"cell_bits": 7}, r"has a cell of \+-2\*\*7: LiteRT takes up to 2\*\*6"),
        ({"cell_bits": -1}, "has cell_bits -1: expected a whole number of at least 0"),
        ({"bias": np.full((4, 3), 2**31 - 1)}, "for its in gate could reach"),
        ({"kernel": np.full((4, 3, 2), -128)}, "has the code -128"),
    ],
)
def test_what_does_not_fit_is_refused_with_words(changes, message):
    builder = GraphBuilder()
    builder.input("x", (5, 2), range=Range(0.1, 3))
    usual = {"kernel": KERNEL, "kernel_scales": SCALES, "recurrent": RECURRENT, "recurrent_scales": SCALES}
    with pytest.raises(ValueError, match=message):
        builder.lstm("x", **{**usual, "bias": None, "cell_bits": 2, **changes}, out=Range(1 / 128, 0), name="y")


def test_weights_that_are_computed_and_sequences_without_steps_are_refused():
    builder = GraphBuilder()
    builder.input("row", (2,), range=Range(0.1, 0))
    with pytest.raises(ValueError, match=r"lstm input \[batch, steps, features\] needs 3 axes"):
        builder.lstm("row", KERNEL, SCALES, RECURRENT, SCALES, None, Range(1 / 128, 0), "y", 2)
