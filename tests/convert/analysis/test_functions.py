"""What is a function of each value by itself, found by trying; and where such a function stays in float."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_lowbit as klb
from keras_lowbit.convert.analysis import functions
from keras_lowbit.keras_graph.calls import calls_of

L = keras.layers
RNG = np.random.default_rng(3)
COLUMNS = RNG.normal(size=(1, 1, 8, 1)).astype("float32")
DRAWS = keras.random.SeedGenerator(1)


def mixing(x):
    return x - ops.mean(x)


POINTWISE = {
    "polynomial": lambda x: x * x * 0.5 - x,
    "steps": lambda x: ops.where(x > 0.3, x, 0.1 * x),
    "constant": lambda x: 0.0 * x + 1.0,
    "not a number": lambda x: ops.sqrt(x),
}
NOT = {
    "mean of the batch": mixing,
    "largest of the sample": lambda x: x / (5 + ops.max(x, axis=(1, 2, 3), keepdims=True)),
    "softmax": lambda x: ops.softmax(x),
    "sorted": lambda x: ops.sort(x, axis=1),
    "neighbours": lambda x: x + ops.roll(x, 1, 2),
    "by place": lambda x: x * COLUMNS,
    "at random": lambda x: x + 0.1 * keras.random.normal(ops.shape(x), seed=DRAWS),
    "another shape": lambda x: ops.sum(x, axis=-1),
    "raises": lambda x: x + np.ones((5, 5)),
}


@pytest.mark.parametrize("shape", [(None, 9, 8, 4), (None, 40, 8, 4), (None, None, 8, 1)])
@pytest.mark.parametrize("name", POINTWISE)
def test_functions_of_one_value(name, shape):
    assert functions.is_pointwise(POINTWISE[name], shape)


@pytest.mark.parametrize("shape", [(None, 9, 8, 4), (None, 40, 8, 4)])
@pytest.mark.parametrize("name", NOT)
def test_what_mixes_values_or_looks_at_their_place_is_none(name, shape):
    assert not functions.is_pointwise(NOT[name], shape)


def test_a_table_holds_the_function_of_each_code():
    values = RNG.normal(size=256).astype("float32")
    for shape in ((None, 3), (None, 9, 8, 4), (None, 256), (None, 1)):
        assert np.allclose(functions.table(ops.exp, shape, values), np.exp(values), rtol=1e-5)
    with pytest.raises(ValueError, match=r"makes the shape \(86,\) of \(86, 3\)"):
        functions.table(lambda x: ops.sum(x, axis=-1), (None, 3), values)
    with pytest.raises(ValueError, match="different results in different places"):
        functions.table(lambda x: x * np.linspace(1, 2, 40, dtype="float32")[:, None], (None, 40, 8), values)


def network(function, *front):
    entry = value = keras.Input((8, 8, 3))
    for layer in front:
        value = layer(value)
    return keras.Model(entry, L.Dense(3)(L.Flatten()(function(value))))


def converted(model):
    copy, report = klb.quantize_model(model)
    klb.calibrate(copy, RNG.uniform(0, 255, (32, 8, 8, 3)).astype("float32"), verbose=0)
    return klb.deploy.lower(copy), report


@pytest.mark.parametrize("scale", [lambda x: x / 127.5 - 1.0, lambda x: x * (1 / 255)])
def test_a_lambda_that_scales_the_input_is_integers(scale):
    graph, _ = converted(network(L.Lambda(scale)))
    assert [node.op for node in graph.nodes] == ["table", "reshape", "fully_connected"]


def test_another_function_of_the_raw_input_stays_float_as_its_codes_would_be_too_few():
    graph, report = converted(network(L.Lambda(ops.sin, name="wave")))
    assert "float_subgraph" in [node.op for node in graph.nodes]
    assert "a function of a value that is float" in str(report)


def test_behind_a_stored_value_it_is_a_table():
    graph, _ = converted(network(L.Lambda(ops.sin), L.Conv2D(2, 1)))
    assert "float_subgraph" not in [node.op for node in graph.nodes]


def test_a_function_whose_result_must_be_exact_runs_in_float():
    entry = keras.Input((8, 8, 3))
    ids = L.Lambda(lambda x: ops.abs(x) * 3.0)(L.Conv2D(1, 1)(entry))
    model = keras.Model(entry, L.Dense(2)(L.Flatten()(L.Embedding(999, 2)(ids))))
    graph, _ = converted(model)
    assert "table" not in [node.op for node in graph.nodes]


@pytest.mark.parametrize("bound", [10.0, 100.0])
def test_a_bound_far_from_zero_is_no_line_either(bound):
    """The 8-bit codes of pixels would leave few of them below it."""
    graph, _ = converted(network(L.Lambda(lambda x: ops.clip(x, -bound, bound))))
    assert "float_subgraph" in [node.op for node in graph.nodes]


def test_what_overflows_is_no_line():
    [call] = [call for call in calls_of(network(L.Activation("exponential"))).calls if call.kind == "Activation"]
    assert not functions.is_affine(call)


def test_affine():
    model = network(L.Lambda(lambda x: 0.5 - 3 * x), L.Conv2D(2, 1), L.Activation("gelu"))
    calls = {call.kind: call for call in calls_of(model).calls}
    assert functions.is_affine(calls["Lambda"])
    assert not functions.is_affine(calls["Activation"])
