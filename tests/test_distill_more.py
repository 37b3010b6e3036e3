"""distill: what a run does with frozen layers, early stops, heads of one unit, and starts that would lose work."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.layers import to_numpy

L = keras.layers
RNG = np.random.default_rng(71)
ROWS = RNG.normal(size=(24, 4)).astype("float32")


def network(activation="softmax", classes=3):
    keras.utils.set_random_seed(11)
    row = keras.Input((4,), name="row")
    hidden = L.Dense(6, activation="relu", name="body")(row)
    return keras.Model(row, L.Dense(classes, activation=activation, bias_initializer="normal", name="head")(hidden))


def student_of(model, recipe="fat"):
    found, _ = klb.quantize_model(model, recipe)
    klb.calibrate(found, ROWS, verbose=0)
    return found


def distilled(student, teacher, data=ROWS, **options):
    return klb.distill(student, teacher, data, **({"epochs": 1, "batch_size": 8, "verbose": 0} | options))


@pytest.mark.parametrize("before", [True, False])
def test_thresholds_of_frozen_layers_learn_whenever_they_were_frozen(before):
    teacher = network()
    teacher.get_layer("body").trainable = not before
    student = student_of(teacher)
    student.get_layer("body").trainable = student.get_layer("head").trainable = False
    factor = student.get_layer("body").kernel_host.state["factor"]
    start = to_numpy(factor)
    distilled(student, teacher, learning_rate=0.01)
    assert np.abs(to_numpy(factor) - start).max() > 1e-4


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.stop_training = True


def test_a_callback_stops_the_run_with_its_epoch_and_the_checkpoint_goes_on(tmp_path):
    teacher = network()
    stopped, undisturbed = student_of(teacher), student_of(teacher)
    options = {"epochs": 3, "checkpoint": tmp_path / "run.npz"}
    assert distilled(stopped, teacher, callbacks=[StopAfter(0)], **options).epoch == [0]
    assert distilled(stopped, teacher, **options).epoch == [0, 1, 2]
    distilled(undisturbed, teacher, epochs=3)
    for found, wanted in zip(stopped.variables, undisturbed.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(wanted))
