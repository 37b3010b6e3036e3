"""distill with training=True: the student runs as in its own fit, and all that a run changes is kept, judged and resumed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.distill import thresholds
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.distill_models import VECTORS, same, values

L = keras.layers


def networks(recipe="twn"):
    """A float network whose batch norm trains, and its quantized copy, which keeps that."""
    keras.utils.set_random_seed(5)
    vector = keras.Input((6,), name="vector")
    hidden = L.ReLU()(L.BatchNormalization(momentum=0.5, name="norm")(L.Dense(8, use_bias=False, name="body")(vector)))
    model = keras.Model(vector, L.Dense(5, activation="softmax", name="head")(hidden))
    student, _ = klb.quantize_model(model, klb.recipes.get(recipe).replace(activations=None))
    return model, student


@pytest.mark.usefixtures("step_by_step")
def test_a_step_is_that_of_the_students_own_training():
    model, student = networks()
    _, by_hand = networks()
    sums = by_hand.get_layer("body")(VECTORS).numpy().astype(float)
    norm, twin = student.get_layer("norm"), by_hand.get_layer("norm")
    with tf.GradientTape() as tape:
        probabilities = by_hand(VECTORS, training=True)
        wanted = tf.constant(model.predict(VECTORS, verbose=0))
        loss = tf.reduce_mean(tf.reduce_sum(wanted * (tf.math.log(wanted) - tf.math.log(probabilities)), -1))
    variables = [variable.value for variable in by_hand.trainable_variables]
    after = [v.numpy() - 0.1 * g.numpy() for v, g in zip(variables, tape.gradient(loss, variables), strict=True)]
    distiller = klb.Distiller(student, model, loss="kl", variables=student.trainable_variables, training=True)
    distiller.compile(keras.optimizers.SGD(0.1))
    history = distiller.fit(VECTORS, batch_size=len(VECTORS), verbose=0)
    assert history.history["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    for found, want in zip(values(student.trainable_variables), after, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(to_numpy(norm.moving_mean), to_numpy(twin.moving_mean), rtol=1e-5)
    np.testing.assert_allclose(to_numpy(norm.moving_mean), 0.5 * sums.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("step_by_step")
def test_by_default_the_students_statistics_stand_still():
    model, student = networks()
    before = values(student.non_trainable_variables)
    config = klb.DistillConfig(loss="kl", variables=student.trainable_variables)
    klb.distill(student, model, VECTORS, config, epochs=1, check=False, verbose=0)
    assert same(before, values(student.non_trainable_variables))


@pytest.mark.usefixtures("step_by_step")
def test_the_best_state_has_the_statistics_of_its_epoch():
    model, student = networks()
    before = values(student.variables)
    config = klb.DistillConfig(loss="kl", variables=student.trainable_variables, training=True, learning_rate=50.0)
    with pytest.warns(UserWarning, match="no epoch was better"):
        klb.distill(student, model, VECTORS, config, epochs=1, validation_data=VECTORS, verbose=0)
    assert same(before, values(student.variables))


def test_a_resumed_run_has_the_same_bits_statistics_and_draws_included(tmp_path):
    arguments = {"epochs": 3, "batch_size": 16, "check": False, "verbose": 0}

    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(**more):
        model, student = networks("sq-twn")
        for layer in ("body", "head"):
            student.get_layer(layer).kernel_host.state["ratio"].assign(0.5)
        student.get_layer("body").kernel_host.seed_generator.state.assign([3, 4])
        student.get_layer("head").kernel_host.seed_generator.state.assign([5, 6])
        config = klb.DistillConfig(loss="kl", variables=student.trainable_variables, training=True, period=5)
        klb.distill(student, model, VECTORS, config, **arguments, **more)
        return values(student.variables)

    want = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "taught", callbacks=[Killed()])
    assert same(want, run(checkpoint=tmp_path / "taught"))


def test_weights_that_stand_still_and_flags_that_are_none_are_refused():
    model, student = networks("fat")
    with pytest.raises(ValueError, match="training=True with variables='pointwise'"):
        klb.Distiller(student, model, variables="pointwise", training=True)
    with pytest.raises(TypeError, match="DistillConfig got training='yes'; give True or False"):
        klb.DistillConfig(training="yes")
    assert thresholds(student)
