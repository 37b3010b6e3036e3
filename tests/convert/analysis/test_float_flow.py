"""Values that must stay exact: ids, masks and classes meet no range on their way, whatever stands there."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers import QuantActivation

L = keras.layers
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 300, (16, 4)).astype("float32")


def embedding():
    return L.Embedding(1000, 3, embeddings_initializer="random_normal", name="table")


def wrapped(*layers):
    return keras.Sequential([keras.Input((4,)), *layers], name="inner")


READERS = {
    "embedding": lambda x: embedding()(x),
    "embedding in a model": lambda x: wrapped(embedding())(x),
    "shifted ids": lambda x: embedding()(x + 1.0),
    "shifted, moved, joined": lambda x: embedding()(L.Concatenate()([L.Reshape((4,))(x * 2.0), ops.maximum(x, 5.0)])),
    "moved in one model, looked up in another": lambda x: embedding()(wrapped(L.Reshape((2, 2)), L.Flatten())(x)),
    "one hot of a cast": lambda x: ops.one_hot(ops.cast(x, "int32"), 300),
    "category encoding": lambda x: L.CategoryEncoding(300, output_mode="multi_hot")(x),
    "discretization": lambda x: L.Discretization(bin_boundaries=[0.5, 1.5, 2.5, 100.0], output_mode="one_hot")(
        x[:, :1]
    ),
    "equal": lambda x: ops.cast(ops.equal(x, IDS[0, 1]), "float32"),
    "mask": lambda x: L.GlobalAveragePooling1D()(L.Masking(3.0)(ops.expand_dims(x, -1))),
    "modulo": lambda x: ops.mod(x, 7.0),
    "a user's layer": lambda x: L.Lambda(lambda v: ops.sin(v))(L.Dropout(0.2)(x)),
}


def whole_model(read):
    keras.utils.set_random_seed(0)
    entry = keras.Input((4,), name="ids")
    return keras.Model(entry, L.Dense(3, name="head")(L.Flatten()(read(entry))))


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_the_file_computes_what_keras_does_and_no_rounding_stands_before_the_head(read, tmp_path):
    model = whole_model(read)
    copy, _ = klb.quantize_model(model)
    klb.calibrate(copy, IDS, verbose=0)
    klb.export_litert(copy, tmp_path / "m.tflite")
    assert klb.verify(copy, tmp_path / "m.tflite", IDS).ok
    graph = klb.deploy.lower(copy)
    *first, last = [node.op for node in graph.nodes if node.op in ("float_subgraph", "quantize", "where")]
    assert first == ["float_subgraph"]
    assert last in ("quantize", "where")  # of a mask that is made in float, ones and zeros are chosen
    want, got = to_numpy(model(IDS)), to_numpy(copy(IDS))
    assert np.abs(got - want).max() <= 0.05 * np.abs(want).max()


def test_a_float_reader_and_an_int8_reader_of_one_input_each_get_their_own(tmp_path):
    entry = keras.Input((4,), name="ids")
    looked_up = L.Dense(3, name="a")(L.Flatten()(embedding()(entry)))
    model = keras.Model(entry, L.Add(name="sum")([looked_up, L.Dense(3, name="b")(entry)]))
    copy, _ = klb.quantize_model(model)
    assert copy.get_layer("table").input is copy.input
    assert copy.get_layer("b").input is not copy.input
    klb.calibrate(copy, IDS, verbose=0)
    klb.export_litert(copy, tmp_path / "m.tflite")
    assert klb.verify(copy, tmp_path / "m.tflite", IDS).ok


READS_WHOLE = {
    "cast": lambda x: L.Embedding(9, 3)(ops.cast(ops.clip(ops.round(x), 0, 8), "int32")),
    "moved": lambda x: ops.one_hot(ops.cast(L.Reshape((8,))(ops.floor(ops.abs(x))), "int32"), 9),
    "compared": lambda x: ops.cast(ops.equal(ops.round(x), 1.0), "float32"),
}


@pytest.mark.parametrize("read", READS_WHOLE.values(), ids=READS_WHOLE)
def test_whole_numbers_that_float_reads_are_no_codes(read, tmp_path):
    """Of codes 2.0 could come out as 1.98, and be 1 behind the cast."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((8,), name="x")
    model = keras.Model(entry, L.Dense(2)(L.Flatten()(read(L.Dense(8, name="first")(entry)))))
    copy, _ = klb.quantize_model(model)
    data = 3 * RNG.normal(size=(64, 8)).astype("float32")
    klb.calibrate(copy, data, verbose=0)
    klb.export_litert(copy, tmp_path / "m.tflite")
    assert klb.verify(copy, tmp_path / "m.tflite", data[:8]).ok
    whole = [node for node in klb.deploy.lower(copy).nodes if node.op == "table" and node.name in ("round", "floor")]
    assert not whole


def test_whole_numbers_that_int8_operations_read_are_a_table():
    entry = keras.Input((8,), name="x")
    copy, _ = klb.quantize_model(keras.Model(entry, L.Dense(2)(ops.round(L.Dense(8, name="first")(entry)))))
    klb.calibrate(copy, 3 * RNG.normal(size=(64, 8)).astype("float32"), verbose=0)
    assert [node.op for node in klb.deploy.lower(copy).nodes] == ["fully_connected", "table", "fully_connected"]


FINALS = {
    "argmax": lambda x: ops.argmax(x, axis=-1),
    "argmax as reals": lambda x: ops.cast(ops.argmax(x, axis=-1), "float32"),
    "argmax as reals, moved": lambda x: L.Reshape((8, 1))(ops.cast(ops.argmax(x, axis=-1), "float32")),
    "one hot": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 5),
    "mask": lambda x: x > 0.0,
    "rounded": lambda x: ops.round(x),
    "indices of the largest": lambda x: ops.top_k(x, 2)[1],
}


@pytest.mark.parametrize("make", FINALS.values(), ids=FINALS)
def test_classes_masks_and_indices_leave_the_model_as_they_are(make, tmp_path):
    keras.utils.set_random_seed(0)
    entry = keras.Input((8, 6), name="x")
    copy, _ = klb.quantize_model(keras.Model(entry, make(L.Dense(5, name="head")(entry))))
    data = RNG.normal(size=(8, 8, 6)).astype("float32")
    klb.calibrate(copy, data, verbose=0)
    assert [layer.name for layer in copy.layers if isinstance(layer, QuantActivation)] == ["x_range", "head_range"]
    report = klb.export_litert(copy, tmp_path / "m.tflite")
    assert bool(report.float_fallbacks) == (make not in (FINALS["argmax"], FINALS["indices of the largest"]))
    parity = klb.verify(copy, tmp_path / "m.tflite", data)
    assert parity.ok
    got = klb.deploy.run_reference(klb.deploy.lower(copy), data)
    np.testing.assert_allclose(got, to_numpy(copy(data)), atol=1e-6)


def test_a_shared_model_is_settled_once_for_all_its_calls():
    entry = keras.Input((4,), name="ids")
    body = wrapped(L.Reshape((2, 2)), L.Flatten())
    model = keras.Model(entry, L.Dense(2, name="head")(L.Flatten()(embedding()(body(body(entry))))))
    copy, report = klb.quantize_model(model)
    assert sum(isinstance(layer, QuantActivation) for layer in copy._flatten_layers()) == 2
    [row] = [row for row in report.layers if row.layer == "Reshape"]
    assert row.detail == "stands between operations in float; runs in float"


def test_columns_of_one_matrix_that_are_ids_and_numbers_each_go_their_way(tmp_path):
    """The numbers' range holds the numbers alone, not the ids beside them."""
    keras.utils.set_random_seed(0)
    entry = keras.Input((6,), name="row")
    ids, numbers = entry[:, :2], L.Reshape((4, 1), name="shape")(entry[:, 2:])
    looked_up = L.Dense(3, name="a")(L.Flatten()(embedding()(ids)))
    model = keras.Model(entry, L.Add()([looked_up, L.Dense(3, name="b")(L.Flatten()(numbers))]))
    rows = np.concatenate([RNG.integers(0, 1000, (32, 2)), RNG.uniform(-1, 1, (32, 4))], axis=1).astype("float32")
    copy, _ = klb.quantize_model(model)
    assert max(abs(low) for low, _ in klb.calibrate(copy, rows, verbose=0).values()) < 10
    klb.export_litert(copy, tmp_path / "m.tflite")
    assert klb.verify(copy, tmp_path / "m.tflite", rows).ok
    want = to_numpy(model(rows))
    assert np.abs(to_numpy(copy(rows)) - want).max() < 0.03 * np.abs(want).max()


def test_a_mask_that_the_calibration_data_never_set_has_its_range_all_the_same():
    entry = keras.Input((4,), name="x")
    x = L.Dense(4, name="first")(entry)
    model = keras.Model(entry, L.Dense(2)(x * ops.cast(x > 1e6, "float32")))
    copy, _ = klb.quantize_model(model)
    [mask] = [layer for layer in copy.layers if isinstance(layer, QuantActivation) and layer.name.startswith("cast")]
    assert (mask.quantizer.minimum, mask.quantizer.maximum) == (0.0, 1.0)
    np.testing.assert_allclose(to_numpy(mask(np.float32([[0, 1]]))), [[0, 1]], rtol=1e-6)


def test_scores_masked_by_a_huge_number_reach_a_final_softmax_unrounded(tmp_path):
    keras.utils.set_random_seed(0)
    entry, allowed = keras.Input((4,), name="x"), keras.Input((5,), name="allowed")
    scores = ops.where(allowed > 0.5, L.Dense(5, name="scores")(entry), -1e9)
    model = keras.Model([entry, allowed], L.Softmax(name="policy")(scores))
    data = [RNG.normal(size=(16, 4)).astype("float32"), (RNG.random((16, 5)) > 0.4).astype("float32")]
    copy, _ = klb.quantize_model(model)
    klb.calibrate(copy, data, verbose=0)
    klb.export_litert(copy, tmp_path / "m.tflite", io="float32")
    assert klb.verify(copy, tmp_path / "m.tflite", data).ok
    np.testing.assert_allclose(to_numpy(copy(data)), to_numpy(model(data)), atol=0.05)


def test_whole_numbers_that_only_int8_layers_read_are_stored_as_before():
    entry = keras.Input((8, 6), name="x")
    hot = ops.one_hot(ops.argmax(L.Dense(5, name="first")(entry), axis=-1), 5)
    copy, _ = klb.quantize_model(keras.Model(entry, L.Dense(2, name="head")(hot)))
    assert sum(isinstance(layer, QuantActivation) for layer in copy.layers) == 4
