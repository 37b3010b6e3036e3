"""Float parts: neighbours in float are one subgraph, whatever types run inside and between."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_lowbit as klb
from keras_lowbit.deploy.litert.file_runner import FileRunner
from keras_lowbit.deploy.lowering.lower import lower_model
from keras_lowbit.keras_graph.variables import to_numpy

L = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(6, 6, 6, 3)).astype("float32")


def conv(filters=4):
    return L.Conv2D(filters, 3, padding="same")


def crossing(x):
    """The mask is needed before a convolution in integers and after it."""
    mask = x > 0.0
    return ops.where(mask, conv()(x * ops.cast(mask, "float32")), x * 0.0)


def picked(x):
    values, places = ops.top_k(x, 2)
    return L.Concatenate()([values, ops.cast(places, "float32")])


REASONS = {
    "a table": (lambda x: L.Activation("sparsemax")(L.Activation("gelu")(x)), "is a table between two ranges only"),
    "a sum of many": (
        lambda x: klb.layers.QuantActivation()(L.Add()([x, x, x])),
        "joins 3 tensors, and no range stands",
    ),
}


@pytest.mark.parametrize(("body", "reason"), REASONS.values(), ids=REASONS)
def test_what_lacks_a_range_in_a_model_made_by_hand_says_so(body, reason):
    entry = keras.Input((4, 4, 3))
    model = keras.Model(entry, body(klb.layers.QuantActivation()(entry)))
    klb.calibrate(model, np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype("float32"), verbose=0)
    assert reason in lower_model(model).float_fallbacks[0].reason


# name -> (what it does to an image behind a convolution, how many float subgraphs that takes)
BODIES = {
    "where": (lambda x: ops.where(x > 0, x, 0.1 * x), 1),
    "times a mask": (lambda x: x * ops.cast(x > 0.5, "float32"), 1),
    "peaks": (lambda x: x * ops.cast(ops.equal(L.MaxPooling2D(3, 1, "same")(x), x), "float32"), 1),
    "one hot gate": (lambda x: x * ops.one_hot(ops.argmax(x, -1), 4), 1),
    "argmin": (lambda x: ops.cast(ops.argmin(x, 1, keepdims=True), "float32") * x, 1),
    "values and places": (picked, 1),
    "sorted and clipped": (lambda x: ops.clip(ops.sort(x, axis=1), -1, 1), 1),
    "finite": (lambda x: ops.where(ops.isfinite(x), x, 0.0), 1),
    "logic": (lambda x: x * ops.cast(ops.logical_and(x > 0, ops.logical_not(x > 1)), "float32"), 2),
    "argsort": (lambda x: ops.cast(ops.argsort(x, axis=-1), "float32"), 1),
    "a mask across integers": (crossing, 1),
    "moved between": (lambda x: L.ELU()(L.Reshape((12, 3, 4))(L.Activation("sparsemax")(x))), 1),
    "a branch in float": (lambda x: ops.where(x > 0, conv()(x), x), 1),
    "two branches": (lambda x: L.Add()([L.Activation("sparsemax")(x), L.Activation("sparsemax")(x * 2.0)]), 2),
}


@pytest.mark.parametrize(("body", "parts"), BODIES.values(), ids=BODIES)
def test_neighbours_in_float_are_one_subgraph_and_the_file_computes_them(body, parts, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3), name="image")
    model, _ = klb.quantize_model(keras.Model(image, L.Conv2D(2, 1)(body(conv()(image)))))
    klb.calibrate(model, IMAGES, verbose=0)
    klb.export_litert(model, tmp_path / "m.tflite")
    graph = klb.deploy.lower(model)
    assert sum(node.op == "float_subgraph" for node in graph.nodes) == parts
    assert klb.verify(model, tmp_path / "m.tflite", IMAGES).ok
    graph.save(tmp_path / "m.klb")
    again = klb.deploy.IntegerGraph.load(tmp_path / "m.klb")
    want = klb.deploy.run_reference(graph, IMAGES)
    np.testing.assert_array_equal(klb.deploy.run_reference(again, IMAGES), want)
    np.testing.assert_array_equal(to_numpy(klb.deploy.Runtime(again)(IMAGES)), want)


def test_what_crosses_integers_keeps_its_type():
    image = keras.Input((6, 6, 3), name="image")
    model, _ = klb.quantize_model(keras.Model(image, conv(2)(crossing(conv()(image)))))
    klb.calibrate(model, IMAGES, verbose=0)
    assert "bool" in {tensor.dtype for tensor in klb.deploy.lower(model).tensors.values()}


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_inputs_of_whole_numbers_are_so_in_the_file(dtype, tmp_path):
    keras.utils.set_random_seed(0)
    entry = keras.Input((5,), name="ids", dtype=dtype)
    x = L.Embedding(100, 4, embeddings_initializer="random_normal")(ops.cast(entry, "int32"))
    model, _ = klb.quantize_model(keras.Model(entry, L.Dense(3)(L.Flatten()(x))))
    ids = np.random.default_rng(0).integers(0, 100, (8, 5)).astype(dtype)
    klb.calibrate(model, ids, verbose=0)
    for io in ("int8", "float32"):
        klb.export_litert(model, tmp_path / "m.tflite", io=io)
        runner = FileRunner(tmp_path / "m.tflite")
        assert runner.inputs[0]["dtype"] == np.dtype(dtype)
        assert klb.verify(model, tmp_path / "m.tflite", ids).ok
    graph = klb.deploy.lower(model)
    np.testing.assert_array_equal(to_numpy(klb.deploy.Runtime(graph)(ids)), klb.deploy.run_reference(graph, ids))
    with pytest.raises(TypeError, match=f"'ids' is float64; expected {dtype}"):
        klb.deploy.run_reference(graph, ids.astype("float64"))


def test_a_mask_is_an_input_of_the_file(tmp_path):
    keras.utils.set_random_seed(0)
    entry, mask = keras.Input((5,), name="x"), keras.Input((5,), name="mask", dtype="bool")
    value = L.Dense(5)(entry)
    outputs = L.Dense(3)(value * ops.cast(mask, "float32")), L.Dense(3)(ops.where(mask, value, 0.5))
    model, _ = klb.quantize_model(keras.Model([entry, mask], outputs))
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(8, 5)).astype("float32"), rng.random((8, 5)) > 0.5]
    klb.calibrate(model, data, verbose=0)
    klb.export_litert(model, tmp_path / "m.tflite")
    assert FileRunner(tmp_path / "m.tflite").inputs[1]["dtype"] == np.bool_
    assert klb.verify(model, tmp_path / "m.tflite", data).ok


def test_an_input_of_another_type_is_refused_by_name():
    entry = keras.Input((5,), name="ids", dtype="int16")
    x = L.Embedding(100, 4)(ops.cast(entry, "int32"))
    model, _ = klb.quantize_model(keras.Model(entry, L.Dense(3)(L.Flatten()(x))))
    klb.calibrate(model, np.ones((8, 5), "int16"), verbose=0)
    with pytest.raises(ValueError, match=r"Input 'ids' is int16; .*int32, float32, int64, uint8, bool"):
        klb.deploy.lower(model)


def test_operations_of_one_name_in_models_inside_one_another_are_one_part(tmp_path):
    """Keras takes each name once in a model; the outer model and the inner ones have an "act" each."""
    entry = keras.Input((6,), name="x")

    def inner(name):
        return keras.Sequential([keras.Input((6,)), L.ELU(name="act"), L.GroupNormalization(2, name="norm")], name=name)

    value = L.ELU(name="act")(inner("second")(inner("first")(L.Dense(6)(entry))))
    model, _ = klb.quantize_model(keras.Model(entry, L.Dense(2)(value)))
    data = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    klb.calibrate(model, data, verbose=0)
    report = klb.export_litert(model, tmp_path / "m.tflite")
    assert [found.path for found in report.float_fallbacks] == [
        "first/act",
        "first/norm",
        "second/act",
        "second/norm",
        "act",
    ]
    assert [node.op for node in klb.deploy.lower(model).nodes].count("float_subgraph") == 1
    before = (tmp_path / "m.tflite").read_bytes()
    klb.export_litert(model, tmp_path / "m.tflite")
    assert (tmp_path / "m.tflite").read_bytes() == before


def test_what_mixes_the_samples_of_a_batch_is_refused_inside_a_part_too():
    entry = keras.Input((6,), name="x")
    value = L.Dense(6)(entry)
    centred = ops.exp(value) - ops.mean(ops.exp(value), axis=0, keepdims=True)
    model, _ = klb.quantize_model(keras.Model(entry, L.Dense(2)(ops.sin(centred))))
    klb.calibrate(model, np.ones((4, 6), "float32"), verbose=0)
    with pytest.raises(ValueError, match=r"\(Mean\) mixes the samples of a batch"):
        klb.deploy.lower(model)


def test_an_error_names_the_one_of_several_that_cannot_be_in_a_file():
    entry = keras.Input((65, 3), name="x")
    value = L.GroupNormalization(3, name="norm")(L.LSTM(3, name="lstm")(L.Masking(-1.0, name="mask")(entry)))
    model, _ = klb.quantize_model(keras.Model(entry, L.Dense(2)(value)))
    klb.calibrate(model, np.ones((4, 65, 3), "float32"), verbose=0)
    with pytest.raises(ValueError, match=r"'lstm' \(LSTM\) runs 65 steps in a loop"):
        klb.deploy.lower(model)


def test_a_layer_that_hands_its_state_to_the_next_call_is_refused_with_the_way_out():
    entry = keras.Input(batch_shape=(1, 1, 4), name="x")
    model, _ = klb.quantize_model(
        keras.Model(entry, L.Dense(3)(L.GRU(8, stateful=True, unroll=True, name="gru")(entry)))
    )
    klb.calibrate(model, np.ones((2, 1, 4), "float32"), batch_size=1, verbose=0)
    with pytest.raises(ValueError, match=r"'gru' \(GRU\) keeps its state.*return_state=True.*initial_state=state"):
        klb.deploy.lower(model)


def test_the_way_out_streams_as_the_stateful_layer_does(tmp_path):
    keras.utils.set_random_seed(0)
    step, state = keras.Input((1, 4), name="step"), keras.Input((8,), name="state")
    out, carried = L.GRU(8, unroll=True, return_state=True, name="gru")(step, initial_state=state)
    model, _ = klb.quantize_model(keras.Model([step, state], [L.Dense(3, name="head")(out), carried]), skip=["gru"])
    steps = np.random.default_rng(0).normal(size=(6, 1, 4)).astype("float32")
    klb.calibrate(model, [steps, np.zeros((6, 8), "float32")], verbose=0)
    klb.export_litert(model, tmp_path / "m.tflite", io="float32")
    runner, kept, want = FileRunner(tmp_path / "m.tflite"), np.zeros((1, 8), "float32"), np.zeros((1, 8), "float32")
    for x in steps:
        _, kept = runner.run([x[None], kept])
        _, want = (to_numpy(value) for value in model([x[None], want]))
        np.testing.assert_allclose(kept, want, atol=1e-6)


def test_a_forgotten_range_in_front_of_a_quantized_layer_is_an_error_still():
    entry = keras.Input((6,), name="x")
    value = klb.layers.QuantDense(4, kernel_quantizer="uniform", name="dense")(L.ELU(name="act")(entry))
    model = keras.Model(entry, klb.layers.QuantActivation()(value))
    klb.calibrate(model, np.ones((4, 6), "float32"), verbose=0)
    with pytest.raises(ValueError, match=r"'dense' reads the output of 'act', which has no activation range"):
        klb.deploy.lower(model)
