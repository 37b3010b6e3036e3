"""Functions that run a model call by call take the same raw arrays as `fit`: cast, ranks adapted, further names ignored."""

import functools

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy

L = keras.layers
BYTES = np.random.default_rng(31).integers(0, 255, (6, 8, 8)).astype("uint8")
ROWS = np.random.default_rng(32).normal(size=(10, 2)).astype("float32")
READY = BYTES[..., np.newaxis].astype("float32")
FORMS = {
    "bytes": READY.astype("uint8"),
    "float64": READY.astype("float64"),
    "no channel axis": BYTES,
    "further name": {"other": READY, "image": READY},
}
each_form = pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)


def network():
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 1), name="image")
    hidden = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="first")(image)))
    return keras.Model(image, L.GlobalAveragePooling2D()(L.Conv2D(3, 1, name="second")(hidden)))


def weights(model):
    return [to_numpy(variable) for variable in model.variables]


def reestimated(data):
    model = network()
    klb.reestimate_batch_norms(model, data, check=False, verbose=0)
    return weights(model)


def equalized(data):
    return weights(klb.equalize(klb.fold_batch_norms(network()), data, verbose=0))


def corrected(data):
    folded = klb.fold_batch_norms(network())
    student, _ = klb.quantize_model(folded, "fat-w4")
    klb.calibrate(student, data, verbose=0)
    klb.round_weights(student, folded, data, verbose=0)
    klb.correct_biases(student, folded, data, verbose=0)
    return weights(student)


@functools.cache
def from_ready_arrays(change):
    return change(READY)


@each_form
@pytest.mark.parametrize("change", [reestimated, equalized, corrected])
def test_raw_arrays_give_the_weights_that_ready_ones_give(change, data):
    for found, wanted in zip(change(data), from_ready_arrays(change), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_axis_too_many_is_dropped():
    row = keras.Input((4,))
    model = keras.Model(row, L.BatchNormalization(name="norm")(row))
    rows = READY.reshape(-1, 4, 1)
    klb.reestimate_batch_norms(model, rows, check=False, verbose=0)
    np.testing.assert_allclose(to_numpy(model.get_layer("norm").moving_mean), rows[..., 0].mean(0), rtol=1e-6)


def test_a_dict_model_takes_its_own_names_only():
    one, two = keras.Input((2,), name="a"), keras.Input((2,), name="c")
    model = keras.Model({"a": one, "c": two}, L.Add()([L.BatchNormalization(name="norm")(two), one]))
    parts = {name: ROWS + shift for name, shift in {"a": 0, "b": 10, "c": 20}.items()}
    klb.reestimate_batch_norms(model, parts, check=False, verbose=0)
    np.testing.assert_allclose(to_numpy(model.get_layer("norm").moving_mean), parts["c"].mean(0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"hold the inputs \['a'\], but .* needs \['c'\] too"):
        klb.reestimate_batch_norms(model, {"a": parts["a"]}, check=False, verbose=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (READY[:, 0, 0], r"'image' takes arrays of shape \(None, 8, 8, 1\), got \(6, 1\)"),
        ([READY, READY], r"hold 2 inputs, but .* needs 1: \['image'\]"),
    ],
    ids=["rank", "count"],
)
def test_what_cannot_be_adapted_is_refused_with_both_sides(data, words):
    with pytest.raises(ValueError, match=words):
        reestimated(data)
