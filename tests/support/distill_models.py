"""Small teachers, their calibrated students, and what the tests of distill ask of their variables."""

import keras
import numpy as np

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.layers.find import hosts

L = keras.layers
VECTORS = np.random.default_rng(61).normal(size=(48, 6)).astype("float32")
ROWS = np.random.default_rng(71).normal(size=(24, 4)).astype("float32")


def teacher_model(classes=5):
    """Small, since every training traces a graph: batch norm, dropout, a softmax at the end."""
    vector = keras.Input((6,), name="vector")
    hidden = L.ReLU()(L.BatchNormalization()(L.Dense(8, use_bias=False, name="body")(vector)))
    hidden = L.Dropout(0.5)(hidden)
    model = keras.Model(vector, L.Dense(classes, activation="softmax", bias_initializer="normal", name="head")(hidden))
    model.get_layer("head").kernel.assign(2 * to_numpy(model.get_layer("head").kernel))  # logits that differ
    return model


def teacher_and_student():
    """A teacher and a calibrated student whose ranges are much too wide, so that thresholds have something to do."""
    keras.utils.set_random_seed(7)
    teacher = teacher_model()
    return teacher, inflated(teacher)


def inflated(teacher, recipe="fat"):
    student, _ = klb.quantize_model(klb.fold_batch_norms(teacher), recipe)
    klb.calibrate(student, VECTORS, verbose=0)
    for _, host in hosts(student):
        if "maximum" in host.state:
            for end in ("minimum", "maximum"):
                host.state[end].assign(6 * to_numpy(host.state[end]))
    return student


def row_network(activation="softmax", classes=3):
    keras.utils.set_random_seed(11)
    row = keras.Input((4,), name="row")
    hidden = L.Dense(6, activation="relu", name="body")(row)
    return keras.Model(row, L.Dense(classes, activation=activation, bias_initializer="normal", name="head")(hidden))


def row_student(model, recipe="fat"):
    found, _ = klb.quantize_model(model, recipe)
    klb.calibrate(found, ROWS, verbose=0)
    return found


def values(variables):
    return [np.array(to_numpy(variable)) for variable in variables]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def start_again(student):
    """Factors as `calibrate` leaves them."""
    for _, host in hosts(student):
        for name, value in {"factor": 1.0, "left": 0.0, "width": 1.0}.items():
            if name in host.state:
                host.state[name].assign(np.full(host.state[name].shape, value))
