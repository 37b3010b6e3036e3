"""distill: losses against NumPy, logits found, and only declared variables learn."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.distill import logits_model, losses, thresholds
from keras_lowbit.keras_graph.variables import to_numpy
from tests.support.distill_models import VECTORS, same, start_again, teacher_and_student, teacher_model, values

L = keras.layers
RNG = np.random.default_rng(61)


@pytest.fixture(scope="module")
def pair():
    return teacher_and_student()


# --------------------------------------------------------------------------------------------------------- losses

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


def test_bad_losses_are_refused():
    with pytest.raises(ValueError, match="Choose one of 'rmse', 'smooth_l1', 'kl'"):
        losses.get("mse", 1.0)
    with pytest.raises(ValueError, match="above 0"):
        losses.get("kl", 0.0)


# --------------------------------------------------------------------------------------------------------- logits


def ends():
    """Name -> a model whose every output ends with a softmax."""
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


@pytest.mark.parametrize("name", list(ends()))
def test_final_softmax_is_left_out(name):
    model = ends()[name]
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


# ------------------------------------------------------------------------------------------------------- training


def test_only_the_thresholds_change_and_the_loss_falls(pair):
    teacher, student = pair
    start_again(student)
    learned = {id(variable) for variable in thresholds(student)}
    others = [variable for variable in student.variables if id(variable) not in learned]
    before, fixed, factors = values(teacher.variables), values(others), values(thresholds(student))
    history = klb.distill(
        student, teacher, VECTORS, klb.DistillConfig(learning_rate=0.05), epochs=8, batch_size=16, verbose=0
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
    history = klb.distill(twin, teacher, VECTORS, klb.DistillConfig(variables=kernels), epochs=1, verbose=0)
    assert abs(history.history["loss"][0]) < 1e-6
    assert history.history["agreement"] == [1.0]
    assert all(np.abs(a - b).max() < 1e-6 for a, b in zip(before, values(twin.variables), strict=True))


def test_history_holds_means_over_the_epoch(pair):
    teacher, student = pair
    start_again(student)
    frozen = klb.Distiller(student, teacher, loss="smooth_l1")
    frozen.compile("sgd")
    want = frozen.evaluate(VECTORS, batch_size=48, verbose=0, return_dict=True)
    config = klb.DistillConfig(loss="smooth_l1", learning_rate=1e-12)
    history = klb.distill(student, teacher, VECTORS, config, epochs=1, batch_size=20, verbose=0)
    for name in ("loss", "agreement"):
        np.testing.assert_allclose(history.history[name], [want[name]], rtol=1e-4)


def test_cached_teacher_logits_change_nothing(pair):
    teacher, student = pair
    found = []
    for cache in (True, False):
        start_again(student)
        config = klb.DistillConfig(cache_teacher=cache)
        klb.distill(student, teacher, VECTORS, config, epochs=2, batch_size=20, verbose=0, seed=3)
        found.append(values(thresholds(student)))
    for cached, computed in zip(*found, strict=True):
        np.testing.assert_allclose(cached, computed, rtol=0, atol=1e-5)  # predict's batches round in another order


@pytest.mark.parametrize("kind", ["dataset", "pairs", "generator function", "dict"])
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
    history = klb.distill(student, teacher, data, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2


def test_thresholds_and_biases_learn_together_and_kernels_do_not(pair):
    teacher, student = pair
    start_again(student)
    biases = [layer.bias for layer in student.layers if hasattr(layer, "kernel_host")]
    learned = {id(variable) for variable in (*thresholds(student), *biases)}
    others = [variable for variable in student.variables if id(variable) not in learned]
    fixed, before = values(others), values(biases)
    config = klb.DistillConfig(variables="thresholds+biases")
    klb.distill(student, teacher, VECTORS, config, epochs=2, batch_size=16, verbose=0)
    assert same(fixed, values(others))
    assert len(biases) == 2
    assert all(np.any(old != new) for old, new in zip(before, values(biases), strict=True))
    for variable, value in zip(biases, before, strict=True):
        variable.assign(value)
    with pytest.raises(ValueError, match="'thresholds\\+biases'"):
        klb.distill(student, teacher, VECTORS, klb.DistillConfig(variables="biases"), verbose=0)


def test_betas_of_batch_norms_count_as_biases():
    keras.utils.set_random_seed(7)
    teacher = teacher_model()
    student, _ = klb.quantize_model(teacher, "fat")  # its batch norm is not folded
    klb.calibrate(student, VECTORS, verbose=0)
    distiller = klb.Distiller(student, teacher, variables="thresholds+biases")
    names = [variable.name for variable in distiller.trainable_variables]
    assert (names.count("beta"), names.count("bias")) == (1, 1)


def test_pointwise_factors_change_weights_and_biases_by_a_quarter_at_most(pair):
    teacher, student = pair
    start_again(student)
    layers = [layer for layer in student.layers if hasattr(layer, "kernel_host")]
    weights = [weight for layer in layers for weight in (layer.kernel, layer.bias)]
    before, factors = values(weights), values(thresholds(student))
    config = klb.DistillConfig(variables="pointwise", learning_rate=0.05)
    history = klb.distill(student, teacher, VECTORS, config, epochs=6, batch_size=16, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert same(factors, values(thresholds(student)))
    old, new = (np.concatenate([value.ravel() for value in found]) for found in (before, values(weights)))
    ratio = new[old != 0] / old[old != 0]
    assert 0.75 - 1e-6 <= ratio.min() < 0.98
    assert 1.02 < ratio.max() <= 1.25 + 1e-6
    for weight, old in zip(weights, before, strict=True):
        weight.assign(old)


def test_labels_add_their_cross_entropy(pair):
    teacher, student = pair
    labels = np.arange(48) % 5
    distiller = klb.Distiller(student, teacher, label_weight=2.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    with_labels = distiller.evaluate(VECTORS, labels, batch_size=48, verbose=0, return_dict=True)["loss"]
    plain = klb.Distiller(student, teacher)
    plain.compile(keras.optimizers.SGD(0.0))
    without = plain.evaluate(VECTORS, batch_size=48, verbose=0, return_dict=True)["loss"]
    probabilities = to_numpy(student(VECTORS)).astype("float64")
    entropy = -np.log(probabilities[np.arange(48), labels]).mean()
    np.testing.assert_allclose(with_labels, without + 2 * entropy, rtol=1e-4)
    np.testing.assert_allclose(losses.cross_entropy(np.eye(5)[labels], np.log(probabilities)), entropy, rtol=1e-5)


def test_two_outputs_are_both_distilled():
    vector = keras.Input((6,), name="vector")
    hidden = L.Dense(8, activation="relu")(vector)
    teacher = keras.Model(vector, [L.Dense(3, activation="softmax")(hidden), L.Softmax()(L.Dense(4)(hidden))])
    inputs = RNG.normal(size=(32, 6)).astype("float32")
    student, _ = klb.quantize_model(teacher, "fat-w4")
    klb.calibrate(student, inputs, verbose=0)
    distiller = klb.Distiller(student, teacher)
    distiller.compile("adam")
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


# ------------------------------------------------------------------------------------------------------- the snippet


def test_snippet_runs_as_written(tmp_path, capsys):
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
