"""What corrects a model is judged on samples it was not made from, by every function alike, and never leaves it worse."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit import guard
from keras_lowbit.data import Batches
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.model_zoo import randomize

L = keras.layers
RNG = np.random.default_rng(97)


# ------------------------------------------------------------------------------------------------ the two parts of data


def parts(data, batch_size=8, **options):
    """First column of the samples that change a model, of those that judge it, and the Samples."""
    samples = guard.Samples(Batches(data, batch_size, options.pop("steps", None)), **options)
    found = [
        np.concatenate([first(batch) for batch in batches]).tolist() for batches in (list(samples), samples.held_back)
    ]
    return *found, samples


def first(batch):
    if isinstance(batch, dict):
        batch = batch["a"]
    return (batch[0] if isinstance(batch, list) else batch)[:, 0]


def rows(count):
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)


FORMS = {
    "array": lambda x: x,
    "dict": lambda x: {"a": x, "b": -x},
    "list": lambda x: [x, -x],
    "tf.data": lambda x: tf.data.Dataset.from_tensor_slices((x, x[:, 0])).batch(5),
    "generator": lambda x: (x[i : i + 3] for i in range(0, len(x), 3)),
    "function": lambda x: lambda: iter([x[:1], x[1:]]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_every_fourth_sample_is_held_back_whatever_the_form_of_the_data(form, batch_size):
    made_from, judging, samples = parts(FORMS[form](rows(22)), batch_size)
    assert judging == [3, 7, 11, 15, 19] == samples.rows
    assert sorted(made_from + judging) == list(range(22))
    assert (samples.unseen, samples.read, samples.count) == (True, 22, 5)


def test_of_many_samples_in_an_array_256_are_held_back_evenly():
    made_from, judging, _ = parts(rows(5000), 32)
    assert 240 <= len(judging) <= 256
    assert judging[-1] > 4900
    assert set(np.diff(judging)) == {judging[1] - judging[0]}
    assert sorted(made_from + judging) == list(range(5000))
    assert guard.held_back_rows(1024).tolist() == list(range(3, 1024, 4))


@pytest.mark.parametrize("count", [2, 3])
def test_of_two_or_three_samples_the_last_is_held_back(count):
    made_from, judging, samples = parts(rows(count))
    assert (made_from, judging, samples.rows) == (list(range(count - 1)), [count - 1], [count - 1])
    assert guard.held_back_rows(count).tolist() == [count - 1]


def test_a_single_sample_judges_itself_and_the_verdict_says_so():
    made_from, judging, samples = parts(rows(1))
    assert (made_from, judging, samples.unseen) == ([0], [0], False)
    assert "the data themselves" in str(guard.judged(samples, 2.0, 1.0))


def test_validation_data_judge_and_all_data_count():
    made_from, judging, samples = parts(rows(6), validation_data=rows(3) + 100)
    assert (made_from, judging, samples.rows) == (list(range(6)), [100, 101, 102], [])
    samples = guard.Samples(Batches(rows(6)), None, check=False)
    assert sum(map(len, samples)) == 6
    assert samples.held_back == []


# ------------------------------------------------------------------------------------------------ changes and verdicts


def changed_to(value, measure, fails=False):
    """A variable of 1 after a guarded change to `value`, the verdict, and the error if one was raised."""
    variable = keras.Variable(1.0)
    samples = guard.Samples(Batches(rows(4)))
    list(samples)

    def change():
        variable.assign(value)
        if fails:
            raise KeyError("midway")

    try:
        verdict = guard.guarded(samples, [variable], change, lambda: measure(float(variable)))
    except KeyError:
        verdict = None
    return float(variable), verdict


def test_a_change_stays_only_if_the_error_did_not_grow():
    assert changed_to(0.5, lambda value: value)[0] == 0.5
    found, verdict = changed_to(2.0, lambda value: value)
    assert (found, verdict.before, verdict.after, verdict.kept) == (1.0, 1.0, 2.0, False)
    assert str(verdict) == "error 1 -> 2 on 1 held-back samples, taken back"
    assert changed_to(2.0, lambda value: 7.0)[1].kept
    for bad in (np.nan, np.inf):
        assert changed_to(0.5, lambda value, bad=bad: bad if value == 0.5 else 1.0)[0] == 1.0


def test_a_failure_takes_the_change_back():
    assert changed_to(0.5, lambda value: value, fails=True) == (1.0, None)


def test_noise_is_error_over_signal_and_the_mean_over_outputs():
    one, two = RNG.normal(size=(5, 3)).astype("float32"), RNG.normal(size=(5, 2)).astype("float32")
    assert guard.noise([one, two], [one, two]) == 0
    assert guard.noise([one], [1.1 * one]) == pytest.approx(0.01, rel=1e-4)
    assert guard.noise([one, two], [1.1 * one, two]) == pytest.approx(0.005, rel=1e-4)


# --------------------------------------------------------------------------------- every function that corrects a model

IMAGES = RNG.normal(size=(48, 6, 6, 3)).astype("float32")
CORRECTIONS = (
    klb.correct_biases,
    klb.round_weights,
    klb.equalize,
    klb.rescale_depthwise,
    klb.reestimate_batch_norms,
    klb.distill,
)


@pytest.mark.parametrize("function", CORRECTIONS, ids=lambda function: function.__name__)
def test_every_correction_is_checked_unless_told_otherwise(function):
    arguments = inspect.signature(function).parameters
    assert arguments["check"].default is True
    assert arguments["validation_data"].default is None
    assert "check=False" in function.__doc__
    assert "validation_data:" in function.__doc__


def test_check_is_true_or_false():
    for call in (
        lambda: klb.equalize(relu6_network(), check="no"),
        lambda: klb.rescale_depthwise(relu6_network(), IMAGES, check=None),
        lambda: klb.distill(None, None, IMAGES, check=1),
    ):
        with pytest.raises(TypeError, match=r"got check=.*; give True or False"):
            call()


def relu6_network():
    keras.utils.set_random_seed(9)
    image = keras.Input((6, 6, 3), name="image")
    hidden = L.DepthwiseConv2D(3, padding="same", name="dw")(L.Conv2D(6, 1, name="conv", activation="relu6")(image))
    hidden = L.Conv2D(6, 1, activation="relu", name="pw")(L.ReLU(6.0)(hidden))
    return randomize(keras.Model(image, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(hidden))))


def norm_network():
    keras.utils.set_random_seed(9)
    image = keras.Input((6, 6, 3), name="image")
    hidden = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(6, 3, use_bias=False)(image)))
    model = randomize(keras.Model(image, L.Dense(3)(L.GlobalAveragePooling2D()(hidden))))
    klb.reestimate_batch_norms(model, IMAGES, check=False, verbose=0)  # as a trained network's are
    return model


def student_of(model, recipe="fat"):
    student, _ = klb.quantize_model(model, recipe)
    klb.calibrate(student, IMAGES, verbose=0)
    return student


def error(model, candidate):
    return guard.noise([to_numpy(model(IMAGES))], [to_numpy(candidate(IMAGES))])


def scalar_error(model, candidate):
    """Of a float model behind 8 bits and one scale per tensor: what equalizing and rescaling are for."""
    return error(model, student_of(candidate, "fat-scalar"))


def spread_network():
    """Channels of very different ranges in front of the clip of a ReLU6, which the largest reach."""
    model = relu6_network()
    for name, factors in {"conv": np.geomspace(0.01, 3, 6), "dw": np.geomspace(3, 0.01, 6)[:, None]}.items():
        model.get_layer(name).kernel.assign(to_numpy(model.get_layer(name).kernel) * factors)
    return model


# Made from data that say something else, judged by data like those of use: how much worse `check=False` leaves it.
UNLIKE = 20 + 5 * IMAGES
TINY = 0.001 * IMAGES  # nothing in them comes near the clip of a ReLU6


def biases(**options):
    model = relu6_network()
    student = student_of(model)
    before = error(model, student)
    klb.correct_biases(student, model, UNLIKE, verbose=0, **options)
    return before, error(model, student)


def rounding(**options):
    model = relu6_network()
    student = student_of(model, "fat-w4")
    before = error(model, student)
    klb.round_weights(student, model, UNLIKE, verbose=0, **options)
    return before, error(model, student)


def equalizing(**options):
    """A ReLU in place of a ReLU6 that clips."""
    model = relu6_network()
    model.get_layer("conv").kernel.assign(10 * to_numpy(model.get_layer("conv").kernel))
    changed = klb.equalize(model, IMAGES, relu6="relu", verbose=0, **options)
    return scalar_error(model, model), scalar_error(model, changed)


def rescaling(**options):
    model = spread_network()
    return scalar_error(model, model), scalar_error(model, klb.rescale_depthwise(model, TINY, verbose=0, **options))


def statistics(**options):
    model = norm_network()
    wanted = to_numpy(model(IMAGES))
    klb.reestimate_batch_norms(model, UNLIKE, verbose=0, **options)
    return 0.0, guard.noise([wanted], [to_numpy(model(IMAGES))])


def distilling(**options):
    model = relu6_network()
    student = student_of(model)
    before = error(model, student)
    config = klb.DistillConfig(learning_rate=0.5)
    klb.distill(student, model, UNLIKE, config, epochs=1, batch_size=24, verbose=0, **options)
    return before, error(model, student)


@pytest.mark.parametrize("correct", [biases, rounding, equalizing, rescaling, statistics, distilling])
@pytest.mark.filterwarnings("ignore:.*(as it was|as they were)")
def test_no_correction_leaves_a_model_worse_on_data_that_it_did_not_see(correct):
    options = {} if correct is statistics else {"validation_data": IMAGES}
    before, after = correct(**options)
    assert after <= before * 1.0001
    before, unchecked = correct(check=False)
    assert unchecked > 1.5 * before, "without the guard it is not worse either: this test could not fail"


@pytest.mark.parametrize(
    ("correct", "words"),
    [
        (equalizing, r"equalize left .* as it was, quantized by 'int8' and 'fat-scalar': it did not help .*recipe="),
        (rescaling, r"rescale_depthwise left .* as it was"),
        (
            distilling,
            r"distill left .* as it was: no epoch was better on the samples that judge it \(val_loss .* -> .*\)",
        ),
    ],
)
def test_what_is_left_out_as_a_whole_is_said(correct, words):
    with pytest.warns(UserWarning, match=words):
        correct(validation_data=IMAGES)


def test_statistics_of_a_float_network_stay_and_the_way_out_is_said():
    with pytest.warns(
        UserWarning, match=r"left the statistics of .* nothing says whether.*labels=.*reference=.*check=False"
    ):
        statistics()
