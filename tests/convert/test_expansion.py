"""Layers without an integer form of their own become compositions that compute the same, and that train."""

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_lowbit as klb
from keras_lowbit.convert.analysis.supported import EXPANDABLE
from keras_lowbit.convert.expansion.expand import expand
from keras_lowbit.convert.expansion.registry import EXPANSIONS as EXPANSIONS_OF
from keras_lowbit.keras_graph.calls import calls_of
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.constants import unrounded
from tests.support.expansion_zoo import EXPANSIONS, block
from tests.support.lowering_zoo import samples
from tests.support.model_zoo import run

NATIVE = ("einsum of each position by itself",)


def randomized(model, seed=0):
    """The model with weights that are all different, scales, offsets and slopes too."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    return model


def data_for(model, count=8):
    return samples(model, count)[0]


@pytest.mark.parametrize("name", EXPANSIONS)
def test_a_composition_computes_what_the_layer_does(name):
    model = randomized(EXPANSIONS[name].make())
    made = expand(model)
    inputs = samples(model, 8)
    data = inputs if len(inputs) > 1 else inputs[0]
    with unrounded(made.model._flatten_layers()):  # 8-bit constants aside
        both = [keras.tree.flatten(one(data)) for one in (model, made.model)]
    for want, got in zip(*both, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    if name in NATIVE:
        assert made.model is model


def test_an_operation_that_has_the_name_of_a_layer_is_another():
    """`keras.ops.average` of an axis is no sum of tensors."""
    entry = keras.Input((5, 6))
    model = randomized(keras.Model(entry, L.Dense(3)(keras.ops.average(L.Dense(4)(entry), axis=1))))
    quantized, data = klb.quantize_model(model)[0], data_for(model)
    klb.calibrate(quantized, data, verbose=0)
    want = np.asarray(model(data))
    np.testing.assert_allclose(quantized(data), want, atol=0.03 * np.abs(want).max())


def test_a_model_without_such_layers_is_itself():
    entry = keras.Input((4, 4, 2))
    model = keras.Model(entry, L.Conv2D(2, 3)(entry))
    assert expand(model).model is model


def transformer():
    entry = keras.Input((6, 8), name="x")
    return randomized(keras.Model(entry, L.Dense(3, name="head")(L.Flatten()(block(L.Dense(8)(entry)))), name="t"))


def test_a_transformer_runs_in_integers_alone_close_to_the_float_model(tmp_path):
    model = transformer()
    data = data_for(model, 64)
    quantized, report = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    assert klb.export_litert(quantized, tmp_path / "m.tflite").float_fallbacks == ()
    verdict = klb.verify(quantized, tmp_path / "m.tflite", data, reference=model)
    assert verdict.ok
    assert report["heads"].layer == "MultiHeadAttention"
    assert report["heads_query"].outcome == "quantized"
    want, got = run(model, data)[0], run(quantized, data)[0]
    assert 10 * np.log10(np.mean(want**2) / np.mean((want - got) ** 2)) > 25


def test_the_quantized_model_saves_loads_and_dequantizes(tmp_path):
    model = transformer()
    data = data_for(model)
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    quantized.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(np.asarray(again(data)), np.asarray(quantized(data)))
    stock = klb.dequantize(quantized)
    assert not [layer for layer in stock._flatten_layers() if type(layer).__module__.startswith("keras_lowbit")]
    again, _ = klb.quantize_model(stock)
    codes = [klb.quantized_weights(one) for one in (quantized, again)]
    assert codes[0].keys() == codes[1].keys()
    for path, found in codes[0].items():
        np.testing.assert_array_equal(found.codes, codes[1][path].codes)


def test_scales_and_offsets_train_and_constants_stay():
    model = transformer()
    data = data_for(model, 16)
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    [positions] = klb.layers.find_layers(quantized, klb.layers.AddConstant)
    fixed = to_numpy(positions.constant)
    affines = klb.layers.find_layers(quantized, klb.layers.ChannelAffine)
    trained = {variable.path: to_numpy(variable) for layer in affines for variable in layer.weights}
    assert len(trained) == 4
    quantized.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    quantized.fit(data, np.ones((16, 3), np.float32), verbose=0)
    after = {v.path: to_numpy(v) for v in quantized.trainable_variables}
    assert all(not np.array_equal(value, after[path]) for path, value in trained.items())
    np.testing.assert_array_equal(to_numpy(positions.constant), fixed)  # the model adds a constant: it stays one


def test_what_is_skipped_or_has_float_activations_stays_itself():
    model = transformer()
    quantized, report = klb.quantize_model(model, skip=["heads", "layer_normalization.*"])
    assert {report[name].outcome for name in ("heads",)} == {"skipped"}
    kinds = {call.kind for call in calls_of(quantized).calls}
    assert {"MultiHeadAttention", "LayerNormalization"} <= kinds
    weights_alone = klb.recipes.get("int8").replace(activations=None)
    copy, _ = klb.quantize_model(model, weights_alone)
    assert {"MultiHeadAttention", "LayerNormalization"} <= {call.kind for call in calls_of(copy).calls}


def test_parts_can_be_skipped_and_overridden_by_name():
    model = transformer()
    quantized, report = klb.quantize_model(model, overrides={"heads_query": "ternary"}, skip=["heads_value"])
    assert quantized.get_layer("heads_query").kernel_quantizer == klb.quantizers.Ternary()
    assert report["heads_value"].outcome == "skipped"
    with pytest.raises(ValueError, match="'heads_nothing' matches no layer"):
        klb.quantize_model(model, skip=["heads_nothing"])


def test_a_layer_called_twice_is_expanded_with_the_same_weights():
    entry = keras.Input((6, 8))
    norm = L.LayerNormalization(name="norm")
    model = randomized(keras.Model(entry, L.Add()([norm(entry), norm(L.Dense(8)(entry))])))
    made = expand(model).model
    assert len(klb.layers.find_layers(made, klb.layers.ChannelAffine)) == 1
    data = data_for(model)
    np.testing.assert_allclose(np.asarray(made(data)), np.asarray(model(data)), rtol=1e-4, atol=1e-4)


def test_layers_in_nested_models_are_expanded():
    inner_in = keras.Input((6, 8))
    inner = keras.Model(inner_in, L.LayerNormalization(name="norm")(inner_in), name="inner")
    entry = keras.Input((6, 8))
    model = randomized(keras.Model(entry, L.Dense(2)(inner(L.Dense(8)(entry)))))
    made = expand(model)
    assert set(made.operations) == {"inner/norm"}
    assert "inner/norm_mean" in made.whole
    data = data_for(model)
    np.testing.assert_allclose(np.asarray(made.model(data)), np.asarray(model(data)), rtol=1e-4, atol=1e-4)


def test_the_sum_of_squares_is_exact_where_a_few_channels_are_large():
    """Squares of codes rounded to 8 bits each would lose all but the large channel."""
    entry = keras.Input((6, 64))
    model = keras.Model(entry, L.LayerNormalization()(entry))
    data = data_for(model, 32)
    data[..., 5] *= 20
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    want, got = run(model, data)[0], run(quantized, data)[0]
    assert 10 * np.log10(np.mean(want**2) / np.mean((want - got) ** 2)) > 12


@pytest.mark.parametrize("layer", [klb.layers.AddConstant((3, 2)), klb.layers.MultiplyConstant((1, 2))])
def test_a_constant_is_held_to_eight_bits(layer):
    x = np.ones((1, 3, 2), np.float32)
    layer(x)
    layer.constant.assign(np.linspace(-1, 0.7, layer.constant.shape[0] * 2).reshape(layer.constant.shape))
    steps = np.asarray(layer.rounded())[0] * 127  # the largest is 1
    np.testing.assert_allclose(steps, np.round(np.asarray(layer.constant) * 127), atol=1e-4)


def test_corrections_find_the_parts_in_the_float_model():
    model = transformer()
    data = data_for(model, 32)
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    report = klb.correct_biases(quantized, model, data, check=False, verbose=0)
    assert {"heads_query", "heads", "head"} <= set(report.shifts)


def test_the_reasons_know_what_can_be_expanded():
    known = {
        "Activation",
        "Add",
        "Divide",
        "Lambda",
        "Matmul",
        "Multiply",
        "Softmax",
        "Subtract",
        "TrueDivide",
    }  # integer operations in other forms
    assert set(EXPANSIONS_OF) - known == set(EXPANDABLE)


def test_a_mean_of_nothing_but_rounding_errors_gets_a_range_that_litert_can_form(tmp_path):
    entry = keras.Input((6, 8))
    centred = L.LayerNormalization(center=False, scale=False, name="first")(L.Dense(8)(entry))
    model = keras.Model(entry, L.Dense(2)(L.LayerNormalization(name="second")(centred)))
    quantized, _ = klb.quantize_model(model)
    found = klb.calibrate(quantized, data_for(model), verbose=0)
    low, high = found["second_mean_range/output_quantizer"]
    whole = np.ptp(found["first_range/output_quantizer"])
    assert low == -high
    assert high - low == pytest.approx(whole * 2**-15)
    klb.export_litert(quantized, tmp_path / "m.tflite")
    assert klb.verify(quantized, tmp_path / "m.tflite", data_for(model)).ok


def test_slopes_of_a_prelu_train():
    entry = keras.Input((4, 4, 3))
    model = randomized(keras.Model(entry, L.Flatten()(L.PReLU()(L.Conv2D(3, 1)(entry)))))
    quantized, _ = klb.quantize_model(model)
    [slopes] = klb.layers.find_layers(quantized, klb.layers.MultiplyConstant)
    assert slopes.constant.trainable
    assert (
        not klb.quantize_model(keras.Model(model.inputs, keras.ops.add(model.output, np.arange(48.0, dtype="f"))))[0]
        .layers[-2]
        .trainable_variables
    )


def test_dropout_inside_attention_stays_in_training():
    entry = keras.Input((6, 8))
    model = keras.Model(entry, L.MultiHeadAttention(2, 4, dropout=0.5, name="heads")(entry, entry))
    quantized, _ = klb.quantize_model(model)
    assert quantized.get_layer("heads_dropout").rate == 0.5
    data = data_for(model)
    klb.calibrate(quantized, data, verbose=0)
    first, second = (np.asarray(quantized(data, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.asarray(quantized(data)), np.asarray(quantized(data)))


def test_a_lambda_around_a_layer_of_the_users_is_not_taken_apart():
    entry = keras.Input((6, 8))
    inner = L.Dense(8)
    inner.build((None, 6, 8))
    table = keras.Variable(np.ones((6, 8), "float32"))
    for function in (lambda x: keras.ops.max(inner(x), axis=1), lambda x: keras.ops.max(x + table, axis=1)):
        model = keras.Model(entry, L.Dense(2)(L.Lambda(function, name="own")(L.Dense(8)(entry))))
        assert expand(model).model is model


def test_squares_that_float16_cannot_hold_are_left_to_the_layer():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        entry = keras.Input((6, 8))
        model = keras.Model(entry, L.Dense(2)(L.LayerNormalization()(L.Dense(8)(entry))))
    finally:
        keras.config.set_dtype_policy("float32")
    assert expand(model).model is model


@pytest.mark.parametrize("shape", [(7,), (3, 3), (2, 1, 2)])
def test_a_constant_of_another_shape_is_refused_with_both(shape):
    with pytest.raises(ValueError, match=r"input \(3, 2\) without the batch: give as many axes"):
        klb.layers.AddConstant(shape)(np.ones((1, 3, 2), np.float32))


def causal():
    entry = keras.Input((6, 8), name="x")
    hidden = L.MultiHeadAttention(2, 4, name="heads")(entry, entry, use_causal_mask=True)
    return randomized(keras.Model(entry, L.Dense(3)(hidden)))


def test_no_query_of_the_file_sees_what_comes_behind_it():
    quantized, _ = klb.quantize_model(causal())
    data = data_for(quantized, 32)
    klb.calibrate(quantized, data, verbose=0)
    graph = klb.deploy.lower(quantized)
    assert {"minimum", "softmax"} <= {node.op for node in graph.nodes}
    other = data.copy()
    other[:, 4:] = -3 * other[:, 4:]
    first, second = (klb.deploy.run_reference(graph, each) for each in (data, other))
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert (first[:, 4:] != second[:, 4:]).any()


def test_a_mask_survives_saving_dequantizing_and_a_recipe_without_activations(tmp_path):
    model = causal()
    data = data_for(model)
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    quantized.save(tmp_path / "q.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "q.keras")(data), quantized(data))
    want = np.asarray(model(data))
    for made in (
        klb.dequantize(quantized),
        klb.quantize_model(model, klb.recipes.get("int8").replace(activations=None))[0],
    ):
        np.testing.assert_allclose(made(data), want, atol=0.02 * np.abs(want).max())


def test_a_mask_of_reals_is_made_in_float_and_says_so():
    _, report = klb.quantize_model(EXPANSIONS["attention with a mask of an input"].make())
    assert report["a"].outcome == "quantized"
    [compared] = [row for row in report.layers if row.layer == "Greater"]
    assert "masks in integers are made of whole numbers and a constant" in compared.detail


def test_a_mask_that_keras_hands_on_beside_values_is_not_lost(tmp_path):
    """Half of each text is padding: attention that saw it would give something else."""
    keras.utils.set_random_seed(1)
    ids = keras.Input((6,), dtype="int32")
    x = L.Dropout(0.1)(L.Dense(8, name="wide")(L.Embedding(9, 8, mask_zero=True, name="ids")(ids)))
    heads = L.MultiHeadAttention(2, 4, name="heads")
    model = randomized(keras.Model(ids, heads(x, L.Add()([x, x]))))
    data = np.random.default_rng(0).integers(1, 9, (32, 6)).astype("int32")
    data[:, 3:] = 0
    quantized, _ = klb.quantize_model(model)
    klb.calibrate(quantized, data, verbose=0)
    assert klb.export_litert(quantized, tmp_path / "m.tflite").float_fallbacks == ()
    [output] = klb.verify(quantized, tmp_path / "m.tflite", data, reference=model).outputs
    assert output.reference_snr_db > 20
    values = to_numpy(model.get_layer("wide")(model.get_layer("ids").embeddings.numpy()[data]))
    seen = to_numpy(heads(values, 2 * values))
    assert np.abs(seen - to_numpy(model(data))).max() > 0.1 * np.abs(seen).max()


def chained(unroll):
    keras.utils.set_random_seed(3)
    entry = keras.Input((6, 8), name="x")
    hidden = L.GRU(5, unroll=unroll, return_sequences=True, name="gru")(entry)
    hidden, *states = L.LSTM(4, unroll=unroll, return_state=True, name="lstm")(hidden)
    last = L.SimpleRNN(3, unroll=unroll, name="rnn")(L.Reshape((1, 4))(hidden))
    return randomized(keras.Model(entry, [L.Dense(3)(last), *states]))


def test_loops_are_unrolled_on_request_into_the_same_integers(tmp_path):
    data, outputs = data_for(chained(True), 16), []
    for layers_own in (True, False):
        quantized, report = klb.quantize_model(chained(layers_own), unroll=not layers_own)
        klb.calibrate(quantized, data, verbose=0)
        assert {report[name].outcome for name in ("gru", "lstm", "rnn")} == {"rewritten"}
        assert klb.export_litert(quantized, tmp_path / "m.tflite").float_fallbacks == ()
        outputs.append(klb.deploy.run_reference(klb.deploy.lower(quantized), data))
    for first, second in zip(*outputs, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_stateful_layer_streams_with_its_state_as_input_and_output():
    keras.utils.set_random_seed(0)
    layer = L.GRU(8, unroll=True, return_state=True, name="gru")
    step, state = keras.Input((1, 4), name="step"), keras.Input((8,), name="state")
    model = keras.Model([step, state], list(layer(step, initial_state=state)))
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(32, 12, 1, 4)).astype("float32")
    seen, states = [], np.zeros((32, 8), "float32")
    for at in range(12):  # what the states are on the way is part of the data
        seen.append((steps[:, at], states))
        states = to_numpy(model([steps[:, at], states])[1])
    quantized, _ = klb.quantize_model(keras.Model(model.inputs, [model.outputs[0]]))
    klb.calibrate(quantized, [np.concatenate(parts) for parts in zip(*seen, strict=True)], verbose=0)
    graph = klb.deploy.lower(quantized)
    assert "float_subgraph" not in {node.op for node in graph.nodes}
    kept, want = np.zeros((32, 8), "float32"), np.zeros((32, 8), "float32")
    grid = graph.tensors[graph.outputs[0]].range
    for at in range(12):
        codes = klb.deploy.run_reference(graph, [steps[:, at], kept])
        kept = np.float32(grid.scale * (codes.astype(np.float64) - grid.zero_point))
        want = to_numpy(model([steps[:, at], want])[1])
    assert 10 * np.log10(np.mean(want**2) / np.mean((want - kept) ** 2)) > 25
