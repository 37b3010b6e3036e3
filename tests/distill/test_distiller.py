"""Distiller: what it trains and what its loss and agreement are, in `fit` and `evaluate` of Keras."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.distill import logits_model, losses, thresholds
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.distill_models import (
    ROWS,
    VECTORS,
    row_network,
    row_student,
    start_again,
    teacher_and_student,
    teacher_model,
)

L = keras.layers
RNG = np.random.default_rng(61)


@pytest.fixture(scope="module")
def pair():
    return teacher_and_student()


def test_betas_of_batch_norms_count_as_biases():
    keras.utils.set_random_seed(7)
    teacher = teacher_model()
    student, _ = klb.quantize_model(teacher, "fat")  # its batch norm is not folded
    klb.calibrate(student, VECTORS, verbose=0)
    distiller = klb.Distiller(student, teacher, variables="thresholds+biases")
    names = [variable.name for variable in distiller.trainable_variables]
    assert (names.count("beta"), names.count("bias")) == (1, 1)
    assert "factor" in names
    distiller = klb.Distiller(student, teacher, variables="activations+biases")
    names = [variable.name for variable in distiller.trainable_variables]
    assert set(names) == {"beta", "bias", "left", "width"}  # no threshold of weights


def test_labels_add_their_cross_entropy(pair):
    teacher, student = pair
    labels = np.arange(48) % 5
    distiller = klb.Distiller(student, teacher, label_weight=2.0)
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    with_labels = distiller.evaluate(VECTORS, labels, batch_size=48, verbose=0, return_dict=True)["loss"]
    plain = klb.Distiller(student, teacher)
    plain.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    without = plain.evaluate(VECTORS, batch_size=48, verbose=0, return_dict=True)["loss"]
    probabilities = to_numpy(student(VECTORS)).astype("float64")
    entropy = -np.log(probabilities[np.arange(48), labels]).mean()
    np.testing.assert_allclose(with_labels, without + 2 * entropy, rtol=1e-4)
    np.testing.assert_allclose(losses.cross_entropy(np.eye(5)[labels], np.log(probabilities)), entropy, rtol=1e-5)


def test_agreement_in_fit_is_the_share_of_samples_however_batches_divide_them():
    teacher, student = (row_network("sigmoid", classes=1) for _ in range(2))
    student.get_layer("head").bias.assign([0.7])
    student = row_student(student)
    answers = [to_numpy(model(ROWS[:9])) > 0.5 for model in (teacher, student)]
    share = np.mean(answers[0] == answers[1])
    order = np.argsort(answers[0] != answers[1], axis=0, kind="stable")[:, 0]  # those that disagree last
    distiller = klb.Distiller(student, teacher)
    distiller.compile(keras.optimizers.Adam(1e-9), jit_compile=False)
    found = distiller.evaluate(ROWS[:9][order], batch_size=8, verbose=0, return_dict=True)["agreement"]
    assert 0 < share < 1
    assert found == pytest.approx(share, abs=1e-6)


def test_two_outputs_are_both_distilled():
    vector = keras.Input((6,), name="vector")
    hidden = L.Dense(8, activation="relu")(vector)
    teacher = keras.Model(vector, [L.Dense(3, activation="softmax")(hidden), L.Softmax()(L.Dense(4)(hidden))])
    inputs = RNG.normal(size=(32, 6)).astype("float32")
    student, _ = klb.quantize_model(teacher, "fat-w4")
    klb.calibrate(student, inputs, verbose=0)
    distiller = klb.Distiller(student, teacher)
    distiller.compile("adam", jit_compile=False)
    loss = distiller.evaluate(inputs, batch_size=32, verbose=0, return_dict=True)["loss"]
    want = 0.0
    for t, s in zip(logits_model(teacher)(inputs), logits_model(student)(inputs), strict=True):
        want += np.sqrt(((to_numpy(t).astype("float64") - to_numpy(s)) ** 2).sum() / 32)
    np.testing.assert_allclose(loss, want, rtol=1e-4)


def test_distiller_fits_with_callbacks_and_restarts(pair):
    teacher, student = pair
    start_again(student)
    distiller = klb.Distiller(student, teacher, loss="smooth_l1")
    distiller.compile(keras.optimizers.Adam(0.01))
    rates = klb.callbacks.CosineRestarts(0.01, period=4)
    stop = keras.callbacks.EarlyStopping("loss", patience=5)
    history = distiller.fit(VECTORS, epochs=3, batch_size=16, callbacks=[rates, stop], verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert rates.step == 9
    # Steps 0 to 8 in cycles of 4: the last one starts the third cycle.
    np.testing.assert_allclose(history.history["learning_rate"][-1], 0.01, rtol=1e-4)
    assert int(to_numpy(distiller.optimizer.iterations)) == 1
    assert len(distiller.trainable_variables) == len(thresholds(student))
