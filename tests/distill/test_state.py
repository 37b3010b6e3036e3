"""distill: which state stays, with held-back samples, losses that are not finite and checkpoints; what is refused."""

import io
import os

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.distill import logits_model, thresholds
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.sealed import seal, unseal
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


@pytest.mark.filterwarnings("ignore:distill left")  # rounding decides whether an equal student moves at all
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
    judging = {"labels": labels[0], "validation_data": (VECTORS[:16], labels[1])}
    with pytest.warns(UserWarning, match="no epoch was better"):
        history = klb.distill(twin, teacher, VECTORS, epochs=2, **judging, **arguments).history
    assert history["val_loss"][0] > 0.1, "labels are a term of the loss"
    kernel.assign(before)
    klb.distill(twin, teacher, VECTORS, epochs=2, validation_data=VECTORS[:16], **arguments)
    np.testing.assert_array_equal(to_numpy(kernel), before)


@pytest.mark.usefixtures("step_by_step")
def test_loss_that_is_not_finite_brings_the_best_state_back(pair):
    teacher, student = pair
    start_again(student)

    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations == 4:
                variable = self.model.trainable_variables[0]
                variable.assign(np.full(variable.shape, np.nan))

    with pytest.warns(RuntimeWarning, match="not finite in epoch 2"):
        history = klb.distill(
            student, teacher, VECTORS, epochs=3, batch_size=16, callbacks=[Poison()], check=False, verbose=0
        )
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(value).all() for value in values(thresholds(student)))


@pytest.mark.usefixtures("step_by_step")
def test_hopeless_training_ends_with_the_best_state(pair):
    teacher, student = pair
    start_again(student)
    before = values(thresholds(student))

    def broken(teacher_logits, student_logits):
        return keras.ops.sum(student_logits) * float("nan")

    with pytest.warns(RuntimeWarning), pytest.raises(FloatingPointError, match="best state is in place"):
        klb.distill(
            student, teacher, VECTORS, klb.DistillConfig(loss=broken), epochs=3, batch_size=8, check=False, verbose=0
        )
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


@pytest.mark.usefixtures("step_by_step")
def test_foreign_checkpoints_are_refused(pair, tmp_path):
    teacher, student = pair
    path = tmp_path / "tuning.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no checkpoint of distill"):
        klb.distill(student, teacher, VECTORS, epochs=1, checkpoint=path, verbose=0)
    path.unlink()
    klb.distill(student, teacher, VECTORS, epochs=1, checkpoint=path, check=False, verbose=0)
    config = klb.DistillConfig(variables=thresholds(student)[:3])
    with pytest.raises(ValueError, match="other variables"):
        klb.distill(student, teacher, VECTORS, config, checkpoint=path, verbose=0)


def state(student):
    return values(student.variables)


@pytest.fixture(scope="module")
def stored(pair, tmp_path_factory):
    """A checkpoint of one epoch."""
    teacher, student = pair
    path = tmp_path_factory.mktemp("stored") / "tuning"
    start_again(student)
    klb.distill(student, teacher, VECTORS, epochs=1, checkpoint=path, verbose=0)
    return path.read_bytes()


class Never(keras.callbacks.Callback):
    """No epoch may begin."""

    def on_train_begin(self, logs=None):
        pytest.fail("training began")


def damaged(stored):
    about, arrays = unseal("distill", stored)
    history = arrays["history:loss"]
    yield from {
        "empty": b"",
        "half": stored[: len(stored) // 2],
        "one byte less": stored[:-1],
        "one bit": stored[:300] + bytes([stored[300] ^ 4]) + stored[301:],
        "the last bit": stored[:-1] + bytes([stored[-1] ^ 128]),
        "a zip file": b"PK\x03\x04" + stored,
        "an archive of NumPy": archive(),
        "an epoch of 1e9": seal("distill", about | {"epoch": 10**9}, arrays),
        "an epoch below": seal("distill", about | {"epoch": -1}, arrays),
        "an epoch true": seal("distill", about | {"epoch": True}, arrays),
        "a step below": seal("distill", about | {"step": -1}, arrays),
        "a step in words": seal("distill", about | {"step": "4"}, arrays),
        "a newer version": seal("distill", about | {"format_version": 99}, arrays),
        "no version": seal("distill", {key: about[key] for key in ("epoch", "step", "written")}, arrays),
        "a list": seal("distill", [1], arrays),
        "a history of numbers of another kind": seal(
            "distill", about, arrays | {"history:loss": history.astype("int8")}
        ),
        "a history of two axes": seal("distill", about, arrays | {"history:loss": history[:, None]}),
    }.items()


def archive():
    stream = io.BytesIO()
    np.savez(stream, about=np.array("{}"))
    return stream.getvalue()


def test_damaged_checkpoints_are_refused_by_name_before_training_and_change_nothing(pair, stored, tmp_path):
    teacher, student = pair
    path, before = tmp_path / "tuning", state(student)
    for name, content in damaged(stored):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tuning' is no checkpoint of distill, or damaged \(.*Delete it"):
            klb.distill(student, teacher, VECTORS, epochs=3, checkpoint=path, callbacks=[Never()], verbose=0)
        assert same(before, state(student)), name


def test_a_checkpoint_whose_arrays_are_of_other_kinds_is_of_another_model(pair, stored, tmp_path):
    teacher, student = pair
    about, arrays = unseal("distill", stored)
    for change in ({"variable_0": arrays["variable_0"].astype("float64")}, {"more": arrays["variable_0"]},
                   {"best_0": np.zeros((7, 7), "float32")}, {"best_loss": np.zeros(3)}):  # fmt: skip
        (tmp_path / "tuning").write_bytes(seal("distill", about, arrays | change))
        with pytest.raises(ValueError, match="another model or other variables"):
            klb.distill(
                student, teacher, VECTORS, epochs=3, checkpoint=tmp_path / "tuning", callbacks=[Never()], verbose=0
            )


def test_places_that_cannot_be_written_are_known_before_training(pair, stored, tmp_path):
    teacher, student = pair
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "kept").write_bytes(stored)
    (tmp_path / "kept").chmod(0o444)
    for path in (tmp_path, tmp_path / "file" / "x", tmp_path / "kept", "/proc/tuning", tmp_path / ("n" * 300)):
        with pytest.raises(OSError, match="cannot write"):
            klb.distill(student, teacher, VECTORS, epochs=3, checkpoint=path, callbacks=[Never()], verbose=0)


@pytest.mark.usefixtures("step_by_step")
def test_bytes_and_names_that_are_no_utf8_resume_too(pair, tmp_path):
    teacher, student = pair
    start_again(student)
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9", b"tuning")
    for epochs in (1, 2):
        found = klb.distill(student, teacher, VECTORS, epochs=epochs, checkpoint=path, verbose=0)
        assert len(found.history["loss"]) == epochs


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
