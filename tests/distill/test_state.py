"""distill: which state stays, with held-back samples, losses that are not finite and checkpoints; what is refused."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.distill import logits_model, thresholds
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.distill_models import VECTORS, same, start_again, teacher_and_student, teacher_model, values


@pytest.fixture(scope="module")
def pair():
    return teacher_and_student()


def validation_loss(student, teacher, inputs):
    """RMSE of the logits, in float64."""
    t, s = (to_numpy(keras.tree.flatten(logits_model(m)(inputs))[0]).astype("float64") for m in (teacher, student))
    return np.sqrt(np.square(t - s).sum(-1).mean())


def test_state_of_the_least_loss_on_held_back_samples_stays(pair):
    teacher, student = pair
    start_again(student)
    held_back = np.random.default_rng(4).normal(size=(16, 6)).astype("float32")
    before = validation_loss(student, teacher, held_back)

    class Derailed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 5:
                for variable in self.model.trainable_variables:
                    variable.assign(0.5 + 0 * to_numpy(variable))

    arguments = {"batch_size": 16, "callbacks": [Derailed()], "verbose": 0}
    arguments["config"] = klb.DistillConfig(learning_rate=0.05)
    history = klb.distill(student, teacher, VECTORS, epochs=6, validation_data=held_back, **arguments).history
    assert len(history["val_loss"]) == len(history["val_agreement"]) == 6
    assert min(history["val_loss"]) < min(before, history["val_loss"][-1]), "the case shows nothing"
    np.testing.assert_allclose(validation_loss(student, teacher, held_back), min(history["val_loss"]), rtol=1e-4)


def test_start_stays_where_no_epoch_is_better_on_held_back_samples(pair):
    teacher, _ = pair
    twin = keras.models.clone_model(teacher)
    twin.set_weights(teacher.get_weights())
    kernel = twin.get_layer("head").kernel
    before = to_numpy(kernel).copy()
    labels = (np.arange(48) % 5, np.arange(16) % 5)
    arguments = {"config": klb.DistillConfig(variables=[kernel], learning_rate=0.1), "verbose": 0}
    with pytest.raises(ValueError, match="must be a pair"):
        klb.distill(twin, teacher, VECTORS, labels=labels[0], validation_data=VECTORS[:16], **arguments)
    history = klb.distill(
        twin, teacher, VECTORS, epochs=2, labels=labels[0], validation_data=(VECTORS[:16], labels[1]), **arguments
    ).history
    assert history["val_loss"][0] > 0.1, "labels are a term of the loss"
    klb.distill(twin, teacher, VECTORS, epochs=2, validation_data=VECTORS[:16], **arguments)
    kernel.assign(before)
    klb.distill(twin, teacher, VECTORS, epochs=2, validation_data=VECTORS[:16], **arguments)
    np.testing.assert_array_equal(to_numpy(kernel), before)


def test_loss_that_is_not_finite_brings_the_best_state_back(pair):
    teacher, student = pair
    start_again(student)

    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations == 4:
                variable = self.model.trainable_variables[0]
                variable.assign(np.full(variable.shape, np.nan))

    with pytest.warns(RuntimeWarning, match="not finite in epoch 2"):
        history = klb.distill(student, teacher, VECTORS, epochs=3, batch_size=16, callbacks=[Poison()], verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(value).all() for value in values(thresholds(student)))


def test_hopeless_training_ends_with_the_best_state(pair):
    teacher, student = pair
    start_again(student)
    before = values(thresholds(student))

    def broken(teacher_logits, student_logits):
        return keras.ops.sum(student_logits) * float("nan")

    with pytest.warns(RuntimeWarning), pytest.raises(FloatingPointError, match="best state is in place"):
        klb.distill(student, teacher, VECTORS, klb.DistillConfig(loss=broken), epochs=3, batch_size=8, verbose=0)
    assert same(before, values(thresholds(student)))


def test_checkpoint_goes_on_to_the_same_bits(pair, tmp_path):
    teacher, student = pair
    arguments = {"epochs": 4, "batch_size": 16, "validation_data": VECTORS[:20], "verbose": 0}
    arguments["config"] = klb.DistillConfig(period=5)
    start_again(student)
    whole = klb.distill(student, teacher, VECTORS, **arguments)
    want = values(thresholds(student))

    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    path = tmp_path / "tuning.npz"
    start_again(student)
    with pytest.raises(KeyboardInterrupt):
        klb.distill(student, teacher, VECTORS, **arguments, checkpoint=path, callbacks=[Killed()])
    start_again(student)
    resumed = klb.distill(student, teacher, VECTORS, **arguments, checkpoint=path)
    assert same(want, values(thresholds(student)))
    assert resumed.history == whole.history


def test_foreign_checkpoints_are_refused(pair, tmp_path):
    teacher, student = pair
    path = tmp_path / "tuning.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no checkpoint of distill"):
        klb.distill(student, teacher, VECTORS, epochs=1, checkpoint=path, verbose=0)
    path.unlink()
    klb.distill(student, teacher, VECTORS, epochs=1, checkpoint=path, verbose=0)
    config = klb.DistillConfig(variables=thresholds(student)[:3])
    with pytest.raises(ValueError, match="other variables"):
        klb.distill(student, teacher, VECTORS, config, checkpoint=path, verbose=0)


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda t, s: {"student": t}, ValueError, "same model"),
        (
            lambda t, s: {"teacher": "mobilenet"},
            TypeError,
            "distill as teacher takes a Keras 3 model, got 'mobilenet'",
        ),
        (lambda t, s: {"teacher": teacher_model(classes=6)}, ValueError, "different shapes"),
        (lambda t, s: {"student": klb.quantize_model(t, "fat")[0]}, ValueError, "klb.calibrate"),
        (lambda t, s: {"config": klb.DistillConfig(variables="all")}, ValueError, "'pointwise'"),
        (
            lambda t, s: {"config": klb.DistillConfig(variables=t.trainable_variables)},
            ValueError,
            "variables of the student",
        ),
        (lambda t, s: {"config": klb.DistillConfig(variables=[])}, ValueError, "at least one"),
        (lambda t, s: {"epochs": 0}, ValueError, "epochs of 1 or more"),
        (lambda t, s: {"data": VECTORS[:0]}, ValueError, "No data"),
        (lambda t, s: {"data": VECTORS * np.float32("nan")}, ValueError, "not all finite"),
        (lambda t, s: {"labels": np.zeros(3)}, ValueError, "3.* labels for 48 samples"),
        (lambda t, s: {"config": klb.DistillConfig(label_weight=1.0)}, ValueError, "needs labels"),
        (lambda t, s: {"config": klb.DistillConfig(label_weight=-1.0)}, ValueError, "0 or more"),
        (
            lambda t, s: {"data": iter([VECTORS]), "config": klb.DistillConfig(cache_teacher=True)},
            ValueError,
            "needs data in arrays",
        ),
        (lambda t, s: {"config": klb.DistillConfig(learning_rate=0.0)}, ValueError, "above 0"),
    ],
)
def test_bad_arguments_are_refused_in_words(pair, make, error, words):
    teacher, student = pair
    arguments = {"student": student, "teacher": teacher, "data": VECTORS, "epochs": 1, "verbose": 0}
    with pytest.raises(error, match=words):
        klb.distill(**(arguments | make(teacher, student)))


def test_student_without_thresholds_is_refused():
    teacher = teacher_model()
    plain, _ = klb.quantize_model(teacher, "int8")
    klb.calibrate(plain, VECTORS, verbose=0)
    with pytest.raises(ValueError, match="recipe 'fat'"):
        klb.distill(plain, teacher, VECTORS, verbose=0)


def test_students_that_share_weights_with_the_teacher_are_refused():
    teacher = teacher_model()
    sharing = keras.Model(teacher.input, teacher.output)
    with pytest.raises(ValueError, match="share"):
        klb.distill(sharing, teacher, VECTORS, klb.DistillConfig(variables=sharing.trainable_variables), verbose=0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: {"loss": "kl"},
            TypeError,
            r"no argument loss= any more; write config=klb\.DistillConfig\(loss='kl'\)",
        ),
        (lambda: {"learning_rate": 0.1}, TypeError, r"DistillConfig\(learning_rate=0\.1\)"),
        (lambda: {"variables": [VECTORS]}, TypeError, r"DistillConfig\(variables=\.\.\.\)"),
        (lambda: {"config": 6}, TypeError, r"klb\.DistillConfig as config, got int.*epochs=6, batch_size=32"),
        (lambda: {"config": klb.DistillConfig(loss="mse")}, ValueError, "Unknown loss 'mse'"),
        (
            lambda: {"config": klb.DistillConfig(loss="kl", temperature=0.0)},
            ValueError,
            "temperature=0.0 must be above 0",
        ),
        (lambda: {"config": klb.DistillConfig(period=0)}, ValueError, "period 1 or more"),
    ],
)
def test_what_defines_the_objective_is_said_in_the_config(pair, make, error, words):
    teacher, student = pair
    with pytest.raises(error, match=words):
        klb.distill(student, teacher, VECTORS, **({"epochs": 1, "verbose": 0} | make()))


def test_a_config_is_a_value():
    assert klb.DistillConfig(loss="kl", variables=["a", "b"]) == klb.DistillConfig(loss="kl", variables=("a", "b"))
    assert [klb.DistillConfig().weight_of_labels(given) for given in (True, False)] == [1.0, 0.0]
    assert klb.DistillConfig(label_weight=0.5).weight_of_labels(True) == 0.5
