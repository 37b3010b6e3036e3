"""distill: what a run does with frozen layers, early stops, heads of one unit, and starts that would lose work."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.distill import logits_model, losses
from keras_lowbit.keras_graph.variables import to_numpy

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
    distilled(student, teacher, config=klb.DistillConfig(learning_rate=0.01))
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


def sigmoid_heads():
    hidden = L.Dense(3)(row := keras.Input((4,)))
    yield keras.Model(row, L.Dense(1, activation="sigmoid")(hidden))
    yield keras.Model(row, L.Reshape((3, 1))(L.Activation("sigmoid")(hidden)))
    yield keras.Model(row, keras.ops.sigmoid(hidden))


@pytest.mark.parametrize("index", range(3))
def test_a_final_sigmoid_is_left_out(index):
    model = list(sigmoid_heads())[index]
    logits = logits_model(model)(ROWS)
    np.testing.assert_allclose(keras.ops.sigmoid(logits), model(ROWS), rtol=1e-5)
    assert np.min(logits) < 0


def test_one_unit_is_a_choice_between_two_classes():
    teacher, student = (RNG.normal(size=(20, 1)).astype("float32") for _ in range(2))
    two_t, two_s = (np.concatenate([0 * logit, logit], axis=-1) for logit in (teacher, student))
    for name in ("rmse", "smooth_l1", "kl"):
        found, wanted = (losses.get(name, 2.0)(*pair) for pair in ((teacher, student), (two_t, two_s)))
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert float(found) > 0.01
    np.testing.assert_array_equal(losses.agreement([teacher], [student]), (teacher > 0)[:, 0] == (student > 0)[:, 0])
    labels = (RNG.random(20) < 0.5).astype("int64")
    for given in (labels, labels[:, np.newaxis], np.stack([labels], axis=-1).astype("float32")):
        np.testing.assert_allclose(
            losses.cross_entropy(tf.constant(given), tf.constant(student)),
            losses.cross_entropy(tf.constant(labels), tf.constant(two_s)),
            rtol=1e-5,
        )


def test_agreement_in_fit_is_the_share_of_samples_however_batches_divide_them():
    teacher, student = (network("sigmoid", classes=1) for _ in range(2))
    student.get_layer("head").bias.assign([0.7])
    student = student_of(student)
    answers = [model.predict(ROWS[:9], verbose=0) > 0.5 for model in (teacher, student)]
    share = np.mean(answers[0] == answers[1])
    order = np.argsort(answers[0] != answers[1], axis=0, kind="stable")[:, 0]  # those that disagree last
    distiller = klb.Distiller(student, teacher)
    distiller.compile(keras.optimizers.Adam(1e-9))
    found = distiller.evaluate(ROWS[:9][order], batch_size=8, verbose=0, return_dict=True)["agreement"]
    assert 0 < share < 1
    assert found == pytest.approx(share, abs=1e-6)


def state(model):
    return [np.array(to_numpy(variable)) for variable in model.variables]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: {"data": iter([ROWS[:8], ROWS[8:]])}, r"data is a list_iterator.*needed 2 times.*Give the function"),
        (lambda: {"validation_data": (part for part in [ROWS])}, r"validation_data is a generator.*needed 3 times"),
        (lambda: {"labels": [[0, 1], [1, 0]] * 12}, r"numbers in nested lists.*np\.asarray"),
    ],
    ids=["data", "validation_data", "labels"],
)
def test_what_would_fail_later_is_refused_before_anything_changes(make, words):
    teacher = network()
    student = student_of(teacher)
    before = state(student)
    with pytest.raises(ValueError, match=words):
        distilled(student, teacher, **{"epochs": 2} | make())
    for left, right in zip(state(student), before, strict=True):
        np.testing.assert_array_equal(left, right)


def test_endless_iterators_and_lists_of_labels_are_taken():
    teacher = network()
    student = student_of(teacher)
    endless = (ROWS[start % 24 : start % 24 + 8] for start in itertools.count(0, 8))
    assert len(distilled(student, teacher, endless, steps=2, epochs=np.int64(2)).history["loss"]) == 2
    labels = [int(label) for label in RNG.integers(0, 3, 24)]
    config = klb.DistillConfig(variables=[student.get_layer("head").bias], learning_rate=1e-9)
    found, wanted = (
        distilled(student, teacher, labels=form, config=config).history for form in (labels, np.array(labels))
    )
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_factors_are_multiplied_in_once_whichever_student_meets_the_finished_checkpoint(tmp_path):
    teacher = network()
    first, second = student_of(teacher), student_of(teacher)
    config = klb.DistillConfig(variables="pointwise", learning_rate=0.05)
    options = {"config": config, "checkpoint": tmp_path / "new" / "run.npz"}
    start = to_numpy(first.get_layer("body").kernel)
    distilled(first, teacher, **options)
    wanted = state(first)
    assert np.abs(wanted[0] - start).max() > 0.01
    for student in (first, second, first):  # finished already; built anew after a kill; again
        assert distilled(student, teacher, **options).epoch == [0]
        for left, right in zip(state(student), wanted, strict=True):
            np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match=r"factors of the 1 epochs .* multiplied in.*as it was before"):
        distilled(first, teacher, epochs=2, **options)
