"""distill: only declared variables learn, from any data, with frozen layers, early stops and starts that would lose work."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.distill import thresholds
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.distill_models import (
    ROWS,
    VECTORS,
    row_network,
    row_student,
    same,
    start_again,
    teacher_and_student,
    values,
)

L = keras.layers
RNG = np.random.default_rng(71)


@pytest.fixture(scope="module")
def pair():
    return teacher_and_student()


def distilled(student, teacher, data=ROWS, **options):
    """Unchecked: all data train and the last epoch stays, so that steps and values are those the tests say."""
    return klb.distill(student, teacher, data, **{"epochs": 1, "batch_size": 8, "verbose": 0, "check": False} | options)


def test_only_the_thresholds_change_and_the_loss_falls(pair):
    teacher, student = pair
    start_again(student)
    learned = {id(variable) for variable in thresholds(student)}
    others = [variable for variable in student.variables if id(variable) not in learned]
    before, fixed, factors = values(teacher.variables), values(others), values(thresholds(student))
    history = klb.distill(
        student,
        teacher,
        VECTORS,
        klb.DistillConfig(learning_rate=0.05),
        epochs=8,
        batch_size=16,
        check=False,
        verbose=0,
    )
    assert set(history.history) == {"loss", "agreement", "learning_rate"}
    assert history.history["loss"][-1] < 0.7 * history.history["loss"][0]
    assert same(before, values(teacher.variables))
    assert same(fixed, values(others))
    assert not same(factors, values(thresholds(student)))
    assert all(np.isfinite(value).all() for value in values(thresholds(student)))


def test_an_equal_student_has_loss_0_and_does_not_move(pair):
    teacher, _ = pair
    twin = keras.models.clone_model(teacher)
    twin.set_weights(teacher.get_weights())
    before = values(twin.variables)
    kernels = [twin.get_layer("head").kernel]
    history = klb.distill(
        twin, teacher, VECTORS, klb.DistillConfig(variables=kernels), epochs=1, check=False, verbose=0
    )
    assert abs(history.history["loss"][0]) < 1e-6
    assert history.history["agreement"] == [1.0]
    assert all(np.abs(a - b).max() < 1e-6 for a, b in zip(before, values(twin.variables), strict=True))


@pytest.mark.usefixtures("step_by_step")
def test_history_holds_means_over_the_epoch(pair):
    teacher, student = pair
    start_again(student)
    frozen = klb.Distiller(student, teacher, loss="smooth_l1")
    frozen.compile("sgd", jit_compile=False)
    want = frozen.evaluate(VECTORS, batch_size=48, verbose=0, return_dict=True)
    config = klb.DistillConfig(loss="smooth_l1", learning_rate=1e-12)
    history = klb.distill(student, teacher, VECTORS, config, epochs=1, batch_size=20, check=False, verbose=0)
    for name in ("loss", "agreement"):
        np.testing.assert_allclose(history.history[name], [want[name]], rtol=1e-4)


def test_cached_teacher_logits_change_nothing(pair):
    teacher, student = pair
    found = []
    for cache in (True, False):
        start_again(student)
        config = klb.DistillConfig(cache_teacher=cache)
        klb.distill(student, teacher, VECTORS, config, epochs=2, batch_size=20, check=False, verbose=0, seed=3)
        found.append(values(thresholds(student)))
    for cached, computed in zip(*found, strict=True):
        np.testing.assert_allclose(cached, computed, rtol=0, atol=1e-5)  # predict's batches round in another order


@pytest.mark.parametrize("kind", ["dataset", "pairs", "generator function", "dict"])
@pytest.mark.usefixtures("step_by_step")
def test_takes_what_calibrate_takes(pair, kind):
    teacher, student = pair
    start_again(student)
    dataset = tf.data.Dataset.from_tensor_slices(VECTORS).batch(16)
    data = {
        "dataset": dataset,
        "pairs": tf.data.Dataset.from_tensor_slices((VECTORS, np.arange(48))).batch(16),
        "generator function": lambda: (VECTORS[i : i + 16] for i in (0, 16)),
        "dict": {"vector": VECTORS},
    }[kind]
    history = klb.distill(student, teacher, data, epochs=2, check=False, verbose=0)
    assert len(history.history["loss"]) == 2


@pytest.mark.usefixtures("step_by_step")
def test_endless_iterators_and_lists_of_labels_are_taken():
    teacher = row_network()
    student = row_student(teacher)
    endless = (ROWS[start % 24 : start % 24 + 8] for start in itertools.count(0, 8))
    assert len(distilled(student, teacher, endless, steps=2, epochs=np.int64(2)).history["loss"]) == 2
    labels = [int(label) for label in RNG.integers(0, 3, 24)]
    config = klb.DistillConfig(variables=[student.get_layer("head").bias], learning_rate=1e-9)
    found, wanted = (
        distilled(student, teacher, labels=form, config=config).history for form in (labels, np.array(labels))
    )
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


@pytest.mark.usefixtures("step_by_step")
def test_thresholds_and_biases_learn_together_and_kernels_do_not(pair):
    teacher, student = pair
    start_again(student)
    biases = [layer.bias for layer in student.layers if hasattr(layer, "kernel_host")]
    learned = {id(variable) for variable in (*thresholds(student), *biases)}
    others = [variable for variable in student.variables if id(variable) not in learned]
    fixed, before = values(others), values(biases)
    config = klb.DistillConfig(variables="thresholds+biases")
    klb.distill(student, teacher, VECTORS, config, epochs=2, batch_size=16, check=False, verbose=0)
    assert same(fixed, values(others))
    assert len(biases) == 2
    assert all(np.any(old != new) for old, new in zip(before, values(biases), strict=True))
    for variable, value in zip(biases, before, strict=True):
        variable.assign(value)
    with pytest.raises(ValueError, match="'thresholds\\+biases'"):
        klb.distill(student, teacher, VECTORS, klb.DistillConfig(variables="biases"), check=False, verbose=0)


def test_pointwise_factors_change_weights_and_biases_by_a_quarter_at_most(pair):
    teacher, student = pair
    start_again(student)
    layers = [layer for layer in student.layers if hasattr(layer, "kernel_host")]
    weights = [weight for layer in layers for weight in (layer.kernel, layer.bias)]
    before, factors = values(weights), values(thresholds(student))
    config = klb.DistillConfig(variables="pointwise", learning_rate=0.05)
    history = klb.distill(student, teacher, VECTORS, config, epochs=6, batch_size=16, check=False, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert same(factors, values(thresholds(student)))
    old, new = (np.concatenate([value.ravel() for value in found]) for found in (before, values(weights)))
    ratio = new[old != 0] / old[old != 0]
    assert 0.75 - 1e-6 <= ratio.min() < 0.98
    assert 1.02 < ratio.max() <= 1.25 + 1e-6
    for weight, old in zip(weights, before, strict=True):
        weight.assign(old)


@pytest.mark.usefixtures("step_by_step")
def test_factors_are_multiplied_in_once_whichever_student_meets_the_finished_checkpoint(tmp_path):
    teacher = row_network()
    first, second = row_student(teacher), row_student(teacher)
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


@pytest.mark.parametrize("before", [True, False])
def test_thresholds_of_frozen_layers_learn_whenever_they_were_frozen(before):
    teacher = row_network()
    teacher.get_layer("body").trainable = not before
    student = row_student(teacher)
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


@pytest.mark.usefixtures("step_by_step")
def test_a_callback_stops_the_run_with_its_epoch_and_the_checkpoint_goes_on(tmp_path):
    teacher = row_network()
    stopped, undisturbed = row_student(teacher), row_student(teacher)
    options = {"epochs": 3, "checkpoint": tmp_path / "run.npz"}
    assert distilled(stopped, teacher, callbacks=[StopAfter(0)], **options).epoch == [0]
    assert distilled(stopped, teacher, **options).epoch == [0, 1, 2]
    distilled(undisturbed, teacher, epochs=3)
    for found, wanted in zip(stopped.variables, undisturbed.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(wanted))


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
    teacher = row_network()
    student = row_student(teacher)
    before = state(student)
    with pytest.raises(ValueError, match=words):
        distilled(student, teacher, **{"epochs": 2} | make())
    for left, right in zip(state(student), before, strict=True):
        np.testing.assert_array_equal(left, right)


# ------------------------------------------------------------------------------------------------- judged unless told


def checked(student, teacher, data=VECTORS, **options):
    return klb.distill(student, teacher, data, **{"epochs": 2, "batch_size": 12, "verbose": 0} | options)


@pytest.mark.filterwarnings("ignore:distill left")
@pytest.mark.usefixtures("step_by_step")
def test_every_fourth_sample_judges_and_does_not_train(pair):
    teacher, student = pair
    start_again(student)
    poisoned = VECTORS.copy()
    poisoned[3::4] *= 1e6  # would ruin the loss of every batch they were in
    history = checked(student, teacher, poisoned, labels=np.arange(48) % 5).history
    assert set(history) == {"loss", "agreement", "learning_rate", "val_loss", "val_agreement"}
    assert max(history["loss"]) < 1e3 < min(history["val_loss"])


@pytest.mark.parametrize("kind", ["dataset", "function"])
@pytest.mark.usefixtures("step_by_step")
def test_data_that_can_be_read_again_are_judged_by_their_first_batch(pair, kind):
    teacher, student = pair
    start_again(student)
    batches = [VECTORS[:16], VECTORS[16:]]
    data = {"dataset": tf.data.Dataset.from_tensor_slices(VECTORS).batch(16), "function": lambda: iter(batches)}[kind]
    assert len(checked(student, teacher, data).history["val_loss"]) == 2


@pytest.mark.usefixtures("step_by_step")
def test_an_iterator_that_can_be_read_once_is_not_judged():
    teacher = row_network()
    history = checked(row_student(teacher), teacher, iter([ROWS[:8], ROWS[8:]]), epochs=1).history
    assert "val_loss" not in history


@pytest.mark.usefixtures("step_by_step")
def test_the_start_stays_with_a_warning_where_no_epoch_is_better(pair):
    teacher, student = pair
    start_again(student)
    before = values(student.variables)
    config = klb.DistillConfig(learning_rate=5.0)
    words = (
        r"distill left .* as it was: no epoch was better on the samples that judge it \(val_loss .* -> .*check=False"
    )
    with pytest.warns(UserWarning, match=words):
        checked(student, teacher, config=config)
    assert same(before, values(student.variables))
    checked(student, teacher, config=config, check=False)
    assert not same(before, values(student.variables))


class Compiled(keras.callbacks.Callback):
    """How the distiller and the teacher that fills the cache were compiled."""

    def on_train_begin(self, logs=None):
        self.found = self.model.jit_compile, self.model.teacher_logits.jit_compile


@pytest.mark.parametrize("choice", [True, False])
def test_the_caller_chooses_how_it_is_compiled_the_cached_teacher_included(choice):
    teacher = row_network()
    compiled, config = Compiled(), klb.DistillConfig(cache_teacher=True)
    distilled(row_student(teacher), teacher, config=config, callbacks=[compiled], jit_compile=choice, check=False)
    assert compiled.found == (choice, choice)


def test_other_words_for_compiling_are_refused():
    teacher = row_network()
    with pytest.raises(ValueError, match=r"jit_compile='xla'; give True \(XLA\), False or 'auto'"):
        distilled(row_student(teacher), teacher, jit_compile="xla")


# ------------------------------------------------------------------------------------------------------- the snippet


@pytest.mark.filterwarnings("ignore:distill left")  # the weights are drawn: nothing helps for sure
def test_snippet_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    image = keras.Input((8, 8, 3), name="image")
    hidden = L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(6, 3, use_bias=False)(image)))
    hidden = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3)(hidden)))
    model = keras.Model(image, L.Dense(5, activation="softmax")(L.GlobalAveragePooling2D()(hidden)))
    images = RNG.normal(size=(48, 8, 8, 3)).astype("float32")
    folded = klb.fold_batch_norms(model)
    quantized, report = klb.quantize_model(folded, "fat")
    klb.calibrate(quantized, images[:100])
    history = klb.distill(quantized, teacher=model, data=images, epochs=6, batch_size=32)  # no labels
    klb.export_litert(quantized, tmp_path / "fat.tflite")
    parity = klb.verify(quantized, tmp_path / "fat.tflite", images)
    assert parity.ok
    assert len(report.outcomes("quantized")) == 3
    assert len(history.history["loss"]) == 6
    assert "agreement" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_one_line_counts_all_steps_where_a_person_looks_on(pair, step_by_step, terminal, monkeypatch, capsys):
    teacher, student = pair
    start_again(student)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    capsys.readouterr()
    distilled(student, teacher, VECTORS, epochs=3, batch_size=16, verbose=1)
    shown, steps = capsys.readouterr().out, 3 * -(-len(VECTORS) // 16)
    assert (f"{steps}/{steps}" in shown) == terminal
    assert ("agreement: " in shown) == terminal
    assert shown.count("\n") == int(terminal)
