"""TrainedTernary (TTQ) against the paper's formulas, and through training, saving and the file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_lowbit as klb
from keras_lowbit.quantizers import Stochastic, TrainedTernary

RNG = np.random.default_rng(7)
KERNEL, UPSTREAM = RNG.normal(0.1, 1, size=(3, 3, 4, 5)), RNG.normal(size=(3, 3, 4, 5))


def ttq(kernel, factors, threshold=0.05, per_tensor=False, merged=False):
    """Signs, W_p, W_n and the starts of every filter (last axis), float64. factors: of W_p and of W_n."""
    axes = None if per_tensor else tuple(range(kernel.ndim - 1))
    delta = threshold * np.abs(kernel).max(axis=axes, keepdims=True)
    above, below = kernel > delta, kernel < -delta
    sides = [above | below] * 2 if merged else [above, below]
    starts = [(np.abs(kernel) * side).sum(axes, keepdims=True) / side.sum(axes, keepdims=True) for side in sides]
    return above * 1.0 - below, *(f * start for f, start in zip(factors, starts, strict=True)), starts


def run(quantizer, kernel, state, names):
    """Values and gradients with respect to the kernel and the named state."""
    kernel = tf.constant(np.float32(kernel))
    state = {name: tf.constant(np.float32(value)) for name, value in state.items()}
    watched = [kernel, *(state[name] for name in names)]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        on_grid = quantizer(kernel, state, (-1,), True)
    gradients = tape.gradient(on_grid, watched, tf.constant(np.float32(UPSTREAM[: len(kernel)])))
    return [value.numpy() for value in (on_grid, *gradients)]


def state_of(quantizer, kernel, **factors):
    start = quantizer.tuning_start(np.float32(kernel), (-1,))
    return {name: np.array(value) * factors.get(name, 1.0) for name, value in start.items()}


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.6, 1.3)])
def test_two_scales_have_the_values_and_gradients_of_the_paper(factors, per_tensor):
    quantizer = TrainedTernary(granularity="tensor" if per_tensor else "channel")
    state = state_of(quantizer, KERNEL, positive=factors[0], negative=factors[1])
    signs, positive, negative, starts = ttq(KERNEL, factors, per_tensor=per_tensor)
    got, d_kernel, d_positive, d_negative = run(quantizer, KERNEL, state, ["positive", "negative"])
    step = np.maximum(positive, negative) / 127
    want = np.where(signs > 0, np.round(positive / step), -np.round(negative / step)) * np.abs(signs) * step
    np.testing.assert_allclose(got, want, rtol=1e-6)
    exact = np.where(signs > 0, positive, -negative) * np.abs(signs)
    assert np.all(np.abs(got - exact) <= 0.51 * step)
    passes = np.where(signs > 0, factors[0], np.where(signs < 0, factors[1], 1.0))
    np.testing.assert_allclose(d_kernel, passes * UPSTREAM, rtol=1e-6)
    axes = None if per_tensor else (0, 1, 2)
    for found, side, start in ((d_positive, signs > 0, starts[0]), (d_negative, signs < 0, -starts[1])):
        wanted = (UPSTREAM * side).sum(axes, keepdims=True) / start
        np.testing.assert_allclose(found.ravel(), wanted.ravel(), rtol=1e-4, atol=1e-5)


def test_one_scale_is_ternary_in_two_bits():
    quantizer = TrainedTernary(merged=True)
    signs, scale, _, (start, _) = ttq(KERNEL, (0.7, 0.7), merged=True)
    got, d_kernel, d_factor = run(quantizer, KERNEL, state_of(quantizer, KERNEL, factor=0.7), ["factor"])
    np.testing.assert_allclose(got, signs * scale, rtol=1e-6)
    np.testing.assert_allclose(d_kernel, np.where(signs == 0, 1.0, 0.7) * UPSTREAM, rtol=1e-6)
    wanted = (UPSTREAM * signs).sum((0, 1, 2)) / start.ravel()
    np.testing.assert_allclose(d_factor.ravel(), wanted, rtol=1e-4, atol=1e-5)
    assert (quantizer.bits, TrainedTernary().bits) == (2, 8)
    assert set(np.unique(quantizer.encode(np.float32(KERNEL), {}, (-1,)).codes)) == {-1, 0, 1}


def test_under_sgd_the_scales_take_the_path_of_the_paper():
    quantizer, rate, kernel = TrainedTernary(), 0.01, KERNEL
    state = state_of(quantizer, kernel)
    signs, positive, negative, _ = ttq(kernel, (1.0, 1.0))
    for _ in range(5):
        _, _, d_positive, d_negative = run(quantizer, kernel, state, ["positive", "negative"])
        state["positive"] = state["positive"] - rate * d_positive
        state["negative"] = state["negative"] - rate * d_negative
        positive = positive - rate * (UPSTREAM * (signs > 0)).sum((0, 1, 2))
        negative = negative + rate * (UPSTREAM * (signs < 0)).sum((0, 1, 2))
    np.testing.assert_allclose(state["positive"] * state["start_positive"], positive, rtol=1e-4)
    np.testing.assert_allclose(state["negative"] * state["start_negative"], negative, rtol=1e-4)


@pytest.mark.parametrize("merged", [False, True])
def test_the_first_training_step_fixes_the_starts_and_later_ones_leave_them(merged):
    quantizer, kernel = TrainedTernary(merged=merged), np.float32(KERNEL)
    specs = quantizer.state_specs(kernel.shape, (-1,))
    state = {name: np.full(spec.shape, spec.initial, np.float32) for name, spec in specs.items()}
    first = quantizer.observe(kernel, state)
    calibrated = quantizer.tuning_start(kernel, (-1,))
    assert set(first) == {name for name in calibrated if name.startswith("start")}
    for name, value in first.items():
        np.testing.assert_allclose(value, calibrated[name], rtol=1e-6)
    for name, value in quantizer.observe(2 * kernel, state | first).items():
        np.testing.assert_array_equal(value, first[name])


def test_filters_of_zeros_and_of_one_sign():
    kernel = np.zeros((4, 3), np.float32)
    kernel[:, 1], kernel[:, 2] = [1.0, 2.0, 3.0, 0.1], [-1.0, -2.0, -3.0, 0.0]
    found = TrainedTernary().encode(kernel, {}, (-1,))
    np.testing.assert_array_equal(np.asarray(found.codes)[:, 0], 0)
    np.testing.assert_allclose(np.asarray(found.real)[:, 1], [2, 2, 2, 0], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found.real)[:, 2], [-2, -2, -2, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.0}, r"threshold in \[0, 1\), got 1.0. The paper uses 0.05"),
        ({"granularity": "row"}, "choose one of 'channel', 'tensor'"),
        ({"limits": (2.0, 3.0)}, "0 < low <= 1 <= high"),
    ],
)
def test_wrong_arguments_say_what_to_give_instead(options, words):
    with pytest.raises(ValueError, match=words):
        TrainedTernary(**options)


def small_model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="kind")(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("quantizer", "weights"),
    [(TrainedTernary(), "int8"), (TrainedTernary(merged=True), "int2"), (Stochastic(TrainedTernary(), seed=0), "int8")],
    ids=["two scales", "one scale", "SQ"],
)
def test_it_trains_saves_and_exports_to_the_bit(quantizer, weights, tmp_path):
    images, labels = RNG.normal(size=(32, 8, 8, 3)).astype("float32"), RNG.integers(0, 4, 32)
    recipe = klb.recipes.get("ttq").replace(plan=(klb.recipes.Rule(quantizer),))
    model, _ = klb.quantize_model(small_model(), recipe)
    klb.calibrate(model, images, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    model.fit(images, labels, epochs=2, verbose=0)
    host = model.get_layer("first").kernel_host
    moved = [float(np.abs(np.asarray(variable) - 1).max()) for variable in host.learned]
    assert min(moved) > 1e-4
    values = np.asarray(host.encode(model.get_layer("first").kernel).real)
    assert all(len(np.unique(values[..., channel])) <= 3 for channel in range(8))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))
    klb.export_litert(again, tmp_path / "model.tflite", weights=weights)
    assert klb.verify(again, tmp_path / "model.tflite", images).ok


def test_the_recipe_names_its_paper():
    recipe = klb.recipes.get("ttq")
    assert recipe.plan == (klb.recipes.Rule(TrainedTernary()),)
    assert "arXiv:1612.01064" in recipe.source
