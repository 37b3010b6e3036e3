"""The runtime equals the NumPy reference in every bit, for every operation; it serves from a SavedModel elsewhere."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import keras_lowbit as klb
from keras_lowbit.deploy.graph import GraphBuilder, Range
from keras_lowbit.deploy.reference.interpreter import run_reference
from keras_lowbit.deploy.runtime.fusion import fuse
from tests.support.lowering_zoo import ZOO, trained
from tests.support.process import run_python
from tests.support.random_graphs import random_graph

# One model for each way of lowering; all operations meet in the random graphs.
NAMES = (
    *("conv2d groups", "conv2d binary", "conv1d causal", "depthwise multiplier", "transpose same", "dense softmax"),
    *("operators", "squeeze and excite", "concat unequal", "average pool same", "max pool same", "mean channels"),
    *("pad then conv", "slice", "upsample bilinear", "gelu", "norm after conv", "several outputs", "drop-in hard_silu"),
)
ROWS = ["tf_fallback"] if klb.ops.why_not() else ["best", "tf_fallback"]


def kernel(row):
    """The best kernel this machine has, or the fallback."""
    return klb.ops.using_kernel(klb.ops.available_kernels()[0] if row == "best" else row)


def assert_equal(graph, inputs):
    expected = run_reference(graph, inputs)
    got = klb.deploy.Runtime(graph)(inputs)
    if not isinstance(expected, list):
        expected, got = [expected], [got]
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=str(graph))


@pytest.mark.parametrize("row", ROWS)
@settings(
    max_examples=25,
    phases=[Phase.generate],  # a graph takes a second to trace: shrinking would take minutes
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_random_graphs(row, data):
    graph, inputs, _ = random_graph(data.draw)
    with kernel(row):
        assert_equal(graph, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_lowered_models(name):
    entry = ZOO[name]
    model, data = trained(entry)
    graph = klb.deploy.lower(model, entry.input_shapes)
    subgraphs = any(node.op == "float_subgraph" for node in graph.nodes)
    parts = [part[:1] if subgraphs else part for part in (data if isinstance(data, list) else [data])]
    assert_equal(graph, parts if len(parts) > 1 else parts[0])


def small():
    """Two convolutions with a residual addition, a pool and a dense layer."""
    rng, builder = np.random.default_rng(3), GraphBuilder()
    x = builder.input("x", (8, 8, 16), range=Range(0.05, -3))

    def weights(*shape):
        return (
            rng.integers(-1, 2, shape),
            rng.uniform(0.01, 0.1, shape[-1]).astype(np.float32),
            rng.integers(-99, 99, shape[-1]),
        )

    y = builder.conv2d(x, *weights(3, 3, 16, 16), Range(0.2, 5), "first", padding="same", activation="relu")
    y = builder.conv2d(y, *weights(3, 3, 16, 16), Range(0.3, -7), "second", padding="same")
    y = builder.add(y, x, Range(0.25, 3), "sum", "relu")
    y = builder.mean(y, Range(0.1, 2), "mean", [1, 2], False)
    graph = builder.build([builder.fully_connected(y, *weights(16, 10), Range(0.3, 0), "dense")])
    return graph, rng.integers(-128, 128, (5, 8, 8, 16)).astype(np.int8)


@pytest.mark.parametrize("row", ROWS)
def test_an_addition_is_done_by_the_layer_before_it(row):
    graph, images = small()
    with kernel(row):
        run = klb.deploy.Runtime(graph)
        assert [node.name for node in fuse(graph).nodes] == ["first", "second", "mean", "dense"]
        np.testing.assert_array_equal(run(images), run_reference(graph, images))


@pytest.mark.parametrize("name", klb.ops.available_kernels())
def test_a_fused_addition_whose_operand_lends_its_memory(name):
    """The operand's last reader is the layer that adds it, and factors above one half take the epilogue number by number."""
    rng, builder = np.random.default_rng(4), GraphBuilder()
    values = [builder.input("x", (8, 8, 3), range=Range(0.05, -3))]
    for layer, channels in (("first", 3), ("second", 4), ("third", 4)):
        weights = (
            rng.integers(-1, 2, (3, 3, channels, 4)),
            rng.uniform(1, 4, 4).astype(np.float32),
            np.zeros(4, np.int32),
        )
        values.append(builder.conv2d(values[-1], *weights, Range(0.5, 5), layer, padding="same"))
    graph = builder.build([builder.add(values[3], values[1], Range(0.6, 3), "sum")])
    images = rng.integers(-128, 128, (5, 8, 8, 3)).astype(np.int8)
    with klb.ops.using_kernel(name):
        assert [node.name for node in fuse(graph).nodes] == ["first", "second", "third"]
        np.testing.assert_array_equal(klb.deploy.Runtime(graph)(images), run_reference(graph, images))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_batch_runs_without_tracing_again(count):
    graph, images = small()
    run = klb.deploy.Runtime(graph)
    traces = run.__call__.experimental_get_tracing_count()
    assert run(images[:count]).shape == (count, 10)
    np.testing.assert_array_equal(run(images[:count]), run_reference(graph, images[:count]))
    assert run.__call__.experimental_get_tracing_count() == traces


FORMS = {
    "float64": lambda x, name: x.astype(np.float64),
    "int8 in a list": lambda x, name: [x],
    "int8 by name": lambda x, name: {name: x},
    "float32 in a list": lambda x, name: [x.astype(np.float32)],
    "float64 by name": lambda x, name: {name: x.astype(np.float64)},
    "float16": lambda x, name: x.astype(np.float16),
}


def test_no_form_of_the_inputs_is_traced_for_every_batch_size():
    """float64 and inputs in lists and dicts took a trace, 0.4 s, for each."""
    graph, images = small()
    run = klb.deploy.Runtime(graph)
    inner = run._run.experimental_get_tracing_count()
    for form, make in FORMS.items():
        before = run.__call__.experimental_get_tracing_count()
        for count in range(1, 4):
            given = make(images[:count], graph.inputs[0])
            (array,) = tf.nest.flatten(given)
            np.testing.assert_array_equal(run(given), run_reference(graph, array))
        assert run.__call__.experimental_get_tracing_count() == before, form
    # A form that is not foreseen is traced, but not the steps.
    run(images[:2].astype(tf.bfloat16.as_numpy_dtype))
    assert run.__call__.experimental_get_tracing_count() == before + 1
    assert run._run.experimental_get_tracing_count() == inner == 1


def test_real_numbers_are_quantized_as_the_reference_does():
    graph, _ = small()
    ties = np.arange(-200, 201).astype(np.float32) * np.float32(0.025)
    reals = np.resize(np.concatenate([ties, [np.inf, -np.inf, 1e30]]), (2, 8, 8, 16)).astype(np.float32)
    run = klb.deploy.Runtime(graph)
    np.testing.assert_array_equal(run(reals), run_reference(graph, reals))
    np.testing.assert_array_equal(run(reals.astype(np.float64)), run_reference(graph, reals.astype(np.float64)))
    reals[0, 0, 0, 0] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
        run(reals)


def test_wrong_inputs_are_refused_in_words():
    graph, images = small()
    run = klb.deploy.Runtime(graph)
    with pytest.raises(ValueError, match=r"shape .*expected \(batch, 8, 8, 16\)"):
        run(images[:, :4])
    with pytest.raises(TypeError, match="is uint8; expected int8"):
        run(images.astype(np.uint8))
    with pytest.raises(ValueError, match="got 2 inputs"):
        run([images, images])


def test_weights_stand_packed():
    graph, _ = small()
    bits = 2 * (2 * 9 * 16 + 16) * 64  # channels are padded to 64
    assert klb.deploy.Runtime(graph).weight_bytes == bits // 8 + 3 * 64 * 4


SERVE = """
import sys
import keras_lowbit
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print("keras_lowbit_ops" in maps, "keras_lowbit.deploy.runtime.runtime" in sys.modules)

import numpy as np
import tensorflow as tf
import keras_lowbit as klb
if not klb.ops.why_not():
    klb.ops.load()
run = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
np.save(sys.argv[3], run(given["codes"]))
np.save(sys.argv[4], run(given["reals"]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(graph, codes, reals, what another process served for them, what it printed after importing the library)."""
    folder = tmp_path_factory.mktemp("served")
    graph, images = small()
    run = klb.deploy.Runtime(graph)
    tf.saved_model.save(run, str(folder / "served"))
    reals = np.random.default_rng(0).normal(0, 2, images.shape).astype(np.float32)
    np.savez(folder / "in.npz", codes=images, reals=reals)
    paths = folder / "codes.npy", folder / "reals.npy"
    printed = run_python(SERVE, folder / "served", folder / "in.npz", *paths)
    return graph, images, reals, [np.load(path) for path in paths], printed


def test_another_process_serves_it(served):
    graph, images, reals, (codes, of_reals), _ = served
    np.testing.assert_array_equal(codes, run_reference(graph, images))
    np.testing.assert_array_equal(of_reals, run_reference(graph, reals))


def test_a_graph_with_a_float_subgraph_says_that_it_cannot_be_saved(tmp_path):
    model, _ = trained(ZOO["unknown layer"])
    run = klb.deploy.Runtime(klb.deploy.lower(model))
    with pytest.raises(ValueError, match="float subgraph"):
        tf.saved_model.save(run, str(tmp_path / "served"))


def test_import_loads_no_library(served):
    assert served[-1].split()[:2] == ["False", "False"]
