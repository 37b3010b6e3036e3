"""The losses of distill against NumPy, and the logits that they compare."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.distill import logits_model, losses
from tests.support.distill_models import ROWS

L = keras.layers
RNG = np.random.default_rng(61)
TEACHER, STUDENT = RNG.normal(size=(2, 7, 4))


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_losses_equal_numpy():
    difference = TEACHER - STUDENT
    rmse = np.sqrt((difference**2).sum() / 7)
    np.testing.assert_allclose(losses.rmse(TEACHER.astype("float32"), STUDENT.astype("float32")), rmse, rtol=2e-6)
    smooth = (np.sqrt(difference**2 + 1e-5) - np.sqrt(1e-5)).sum(-1).mean()
    np.testing.assert_allclose(
        losses.smooth_l1(TEACHER.astype("float32"), STUDENT.astype("float32")), smooth, rtol=1e-5
    )
    for temperature in (1.0, 4.0):
        log_t, log_s = log_softmax(TEACHER / temperature), log_softmax(STUDENT / temperature)
        kl = temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(-1).mean()
        got = losses.kl(temperature)(TEACHER.astype("float32"), STUDENT.astype("float32"))
        np.testing.assert_allclose(got, kl, rtol=1e-4)


@pytest.mark.parametrize("name", ["rmse", "smooth_l1", "kl"])
def test_loss_is_0_only_for_equal_logits_and_its_gradient_there_is_finite(name):
    loss = losses.get(name, 2.0)
    logits = tf.constant(TEACHER, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(tf.constant(TEACHER, tf.float32), logits)
    assert abs(float(value)) < 1e-7
    assert np.isfinite(tape.gradient(value, logits)).all()
    assert float(loss(tf.constant(TEACHER, tf.float32), logits + tf.constant([0.1, 0, 0, 0]))) > 1e-4


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


def test_bad_losses_are_refused():
    with pytest.raises(ValueError, match="Choose one of 'rmse', 'smooth_l1', 'kl'"):
        losses.get("mse", 1.0)
    with pytest.raises(ValueError, match="above 0"):
        losses.get("kl", 0.0)


# --------------------------------------------------------------------------------------------------------- logits


@pytest.fixture(scope="module")
def ends():
    """Name -> a model whose every output ends with a softmax."""
    keras.utils.set_random_seed(61)
    vector = keras.Input((8,), name="vector")
    dense = keras.Model(vector, L.Dense(4, activation="softmax")(vector), name="dense")
    layer = keras.Sequential([keras.Input((8,)), L.Dense(4), L.Softmax()], name="layer")
    two = keras.Model(vector, [L.Activation("softmax")(L.Dense(3)(vector)), keras.ops.softmax(L.Dense(2)(vector))])
    handed_on = L.Activation("linear", dtype="float32")(L.Flatten()(L.Softmax()(L.Reshape((1, 4))(L.Dense(4)(vector)))))
    quantized, _ = klb.quantize_model(dense)
    klb.calibrate(quantized, RNG.normal(size=(9, 8)).astype("float32"), verbose=0)
    return {
        "activation of the last layer": dense,
        "layer": layer,
        "two outputs": two,
        "before what hands on": keras.Model(vector, handed_on),
        "nested": keras.Model(vector, L.Identity()(dense(vector))),
        "nested in a sequential": keras.Sequential([keras.Input((8,)), L.Dense(8), layer]),
        "only a softmax inside": keras.Model(vector, keras.Sequential([keras.Input((8,)), L.Softmax()])(vector)),
        "quantized": quantized,
    }


ENDS = [
    "activation of the last layer",
    "layer",
    "two outputs",
    "before what hands on",
    "nested",
    "nested in a sequential",
    "only a softmax inside",
    "quantized",
]


@pytest.mark.parametrize("name", ENDS)
def test_final_softmax_is_left_out(ends, name):
    assert list(ends) == ENDS
    model = ends[name]
    inputs = RNG.normal(size=(3, 8)).astype("float32")
    want, got = (keras.tree.flatten(m(inputs)) for m in (model, logits_model(model)))
    for probabilities, logits in zip(want, got, strict=True):
        np.testing.assert_allclose(keras.ops.softmax(logits), probabilities, rtol=1e-5, atol=1e-7)
        assert np.abs(np.sum(logits, axis=-1) - 1).max() > 1e-3
    assert {id(v) for v in model.variables} == {id(v) for v in logits_model(model).variables}
    for layer in model.layers:
        assert len(layer._inbound_nodes) <= 2, "it added calls to the model's own layers"


def test_outputs_without_softmax_and_softmaxes_inside_stay():
    vector = keras.Input((8,))
    attention = L.Softmax()(L.Dense(8)(vector))
    model = keras.Model(vector, [L.Dense(2)(L.Multiply()([attention, vector])), L.Dense(1, activation="tanh")(vector)])
    inputs = RNG.normal(size=(3, 8)).astype("float32")
    for want, got in zip(model(inputs), logits_model(model)(inputs), strict=True):
        np.testing.assert_array_equal(want, got)


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
