"""Moving statistics taken anew equal those NumPy computes, and nothing else in the model changes."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.keras_graph.variables import to_numpy

L = keras.layers
RNG = np.random.default_rng(23)
IMAGES = (3 + 2 * RNG.normal(size=(20, 5, 5, 2))).astype("float32")


def randomized(model):
    """Every norm far from what the data would give."""
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            for variable in layer.variables:
                variable.assign(np.random.default_rng(1).uniform(0.5, 2, variable.shape))
    return model


def one_norm(**options):
    image = keras.Input((5, 5, 2), name="image")
    hidden = L.BatchNormalization(name="norm", **options)(image)
    return randomized(keras.Model(image, L.Dense(3)(L.Dropout(0.5)(hidden))))


def again(model, data=IMAGES, **options):
    """Unchecked: what the statistics become is one thing, whether they stay another (see below)."""
    return klb.reestimate_batch_norms(model, data, verbose=0, **({"batch_size": 6, "check": False} | options))


def statistics(layer):
    return to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)


@pytest.mark.parametrize("batch_size", [1, 6, 20])
def test_equals_numpy_over_all_batches(batch_size):
    model = one_norm()
    assert again(model, batch_size=batch_size) == 1
    mean, variance = statistics(model.get_layer("norm"))
    values = IMAGES.astype("float64")
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, values.var((0, 1, 2)), rtol=1e-6)


def test_steps_and_labels_as_for_calibrate():
    model = one_norm()
    again(model, tf.data.Dataset.from_tensor_slices((IMAGES, np.arange(20))).batch(4).repeat(), steps=2)
    np.testing.assert_allclose(statistics(model.get_layer("norm"))[0], IMAGES[:8].mean((0, 1, 2)), rtol=1e-6)


def test_twice_gives_the_same_and_the_rest_is_untouched():
    model = one_norm(momentum=0.3)
    model.get_layer("norm").trainable = False
    before = [to_numpy(variable) for variable in model.trainable_variables]
    affine = [to_numpy(model.get_layer("norm").gamma), to_numpy(model.get_layer("norm").beta)]
    again(model)
    first = statistics(model.get_layer("norm"))
    again(model)
    np.testing.assert_array_equal(first, statistics(model.get_layer("norm")))
    norm = model.get_layer("norm")
    assert norm.trainable is False
    for left, right in zip([*before, *affine], [*model.trainable_variables, norm.gamma, norm.beta], strict=True):
        np.testing.assert_array_equal(left, to_numpy(right))


def test_a_later_norm_sees_what_an_earlier_one_normalised_with_the_batch():
    image = keras.Input((5, 5, 2))
    inner = keras.Sequential([keras.Input((5, 5, 2)), L.BatchNormalization(name="first")])
    model = randomized(keras.Model(image, L.BatchNormalization(name="second")(inner(image))))
    assert again(model, batch_size=20) == 2
    mean, variance = statistics(model.get_layer("second"))
    first = inner.get_layer("first")
    np.testing.assert_allclose(mean, to_numpy(first.beta), rtol=1e-4)
    np.testing.assert_allclose(variance, np.square(to_numpy(first.gamma)), rtol=1e-2)


def test_norms_behind_quantized_weights_see_the_grid():
    image = keras.Input((5, 5, 2))
    hidden = L.BatchNormalization(name="norm")(L.Conv2D(3, 1, use_bias=False, name="conv")(image))
    model, _ = klb.quantize_model(keras.Model(image, hidden), klb.recipes.get("inq-2").replace(activations=None))
    assert again(model) == 1
    want = IMAGES.astype("float64") @ klb.quantized_weights(model)["conv"].real[0, 0]
    mean, variance = statistics(model.get_layer("norm"))
    np.testing.assert_allclose(mean, want.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, want.var((0, 1, 2)), rtol=1e-5)


def test_a_shared_norm_pools_both_uses():
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="a_right")
    norm = L.BatchNormalization(name="norm")
    model = randomized(keras.Model([left, right], L.Add()([norm(left), norm(right)])))
    one, two = RNG.normal(size=(10, 2)).astype("float32"), 5 + RNG.normal(size=(10, 2)).astype("float32")
    assert again(model, [one, two]) == 1
    np.testing.assert_allclose(statistics(norm)[0], np.concatenate([one, two]).mean(0), rtol=1e-5)


def test_a_dict_goes_by_name_whatever_the_order_of_its_keys():
    z, a = keras.Input((2,), name="z"), keras.Input((2,), name="a")
    model = randomized(keras.Model([z, a], L.Add()([L.BatchNormalization(name="norm")(z), a])))
    one, two = RNG.normal(size=(10, 2)).astype("float32"), 5 + RNG.normal(size=(10, 2)).astype("float32")
    again(model, {"a": two, "z": one})
    np.testing.assert_allclose(statistics(model.get_layer("norm"))[0], one.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"hold the inputs \['a'\], but .* needs \['z'\] too"):
        again(model, {"a": two})


def test_bad_data_leave_the_statistics_alone():
    model = one_norm()
    before = statistics(model.get_layer("norm"))
    broken = IMAGES.copy()
    broken[-1] = np.nan
    for data, words in ((broken, "batch 3"), (IMAGES[:0], "No data"), (iter(()), "No data")):
        with pytest.raises(ValueError, match=words):
            again(model, data)
        np.testing.assert_array_equal(before, statistics(model.get_layer("norm")))


def test_a_model_without_norms_returns_zero():
    row = keras.Input((3,))
    assert again(keras.Model(row, L.Dense(2)(row)), IMAGES) == 0


def test_a_subclassed_model_is_refused():
    class Mine(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(TypeError, match="not a Functional or Sequential"):
        again(Mine())


# ------------------------------------------------------------------------------------------------ whether they stay

LABELS = (IMAGES[:, 1:4, 1:4, 0].mean((1, 2)) > IMAGES[:, 1:4, 1:4, 1].mean((1, 2))).astype("int32")


def network():
    keras.utils.set_random_seed(2)
    image = keras.Input((5, 5, 2), name="image")
    hidden = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(6, 3, use_bias=False, name="conv")(image)))
    model = keras.Model(image, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, run_eagerly=True)
    return model


@functools.cache
def trained_weights():
    """Of a float network, with the statistics of its data."""
    model = network()
    again(model)
    for _ in range(20):
        model.train_on_batch(IMAGES, LABELS)
    again(model)
    return model.get_weights()


def trained():
    model = network()
    model.set_weights(trained_weights())
    return model


def checked(model, data=IMAGES, **options):
    return klb.reestimate_batch_norms(model, data, batch_size=6, verbose=0, **options)


def loss_of(model):
    return model.evaluate(IMAGES, LABELS, verbose=0)


@pytest.mark.parametrize(
    "unlike", [lambda x: 10 * x, lambda x: x - 5, np.zeros_like, lambda x: RNG.normal(size=x.shape)]
)
@pytest.mark.parametrize("recipe", [None, "dfp-4w8a-n4", "inq-2", "int8"])
def test_data_unlike_the_training_set_do_not_ruin_a_network(unlike, recipe):
    model = trained()
    if recipe is not None:
        loss, model = model.loss, klb.quantize_model(model, recipe)[0]
        klb.calibrate(model, IMAGES, verbose=0)
        model.compile(loss=loss, run_eagerly=True)
    before, start = loss_of(model), statistics(model.get_layer("norm"))
    with pytest.warns(UserWarning, match="left the statistics of"):
        assert checked(model, unlike(IMAGES).astype("float32")) == 0
    np.testing.assert_array_equal(start, statistics(model.get_layer("norm")))
    assert again(model, unlike(IMAGES).astype("float32")) == 1
    assert loss_of(model) > before, "the case shows nothing"


def test_where_quantizing_has_moved_them_they_are_taken_anew_and_help():
    model = trained()
    quantized, _ = klb.quantize_model(model, "inq-2")
    klb.calibrate(quantized, IMAGES, verbose=0)
    wanted = to_numpy(model(IMAGES))
    before = np.square(to_numpy(quantized(IMAGES)) - wanted).mean()
    assert checked(quantized) == 1
    assert np.square(to_numpy(quantized(IMAGES)) - wanted).mean() < 0.7 * before


@pytest.mark.parametrize("judge", ["labels", "reference", "pair"])
def test_stale_statistics_of_a_trained_network_are_renewed_where_labels_or_a_reference_say_so(judge):
    model, teacher = trained(), trained()
    norm = model.get_layer("norm")
    norm.moving_mean.assign(to_numpy(norm.moving_mean) + 2)
    norm.moving_variance.assign(9 * to_numpy(norm.moving_variance))
    before = loss_of(model)
    with pytest.warns(UserWarning, match=r"nothing says whether others are better.*labels=.*reference=.*check=False"):
        assert checked(model) == 0
    options = {
        "labels": {"labels": LABELS},
        "reference": {"reference": teacher},
        "pair": {"labels": LABELS, "validation_data": (IMAGES[:8], LABELS[:8])},
    }[judge]
    assert checked(model, **options) == 1
    assert loss_of(model) < before
    if judge == "labels":
        options["validation_data"] = (IMAGES, LABELS)
    with pytest.warns(UserWarning, match="it did not help"):
        assert checked(model, 10 * IMAGES, **options) == 0


def test_fresh_statistics_are_always_set():
    image = keras.Input((5, 5, 2), name="image")
    model = keras.Model(image, L.BatchNormalization(name="norm")(image))
    assert checked(model, 100 + IMAGES) == 1
    assert 95 < to_numpy(model.get_layer("norm").moving_mean).mean() < 110


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": LABELS[:3]}, r"labels= holds \[3\] labels for 20 samples"),
        ({"labels": LABELS, "validation_data": IMAGES}, r"must be a pair \(inputs, labels\), got ndarray"),
    ],
)
def test_labels_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        checked(trained(), **options)


def test_labels_need_a_compiled_loss():
    with pytest.raises(ValueError, match="labels= needs a loss: compile"):
        checked(one_norm(), labels=LABELS)
