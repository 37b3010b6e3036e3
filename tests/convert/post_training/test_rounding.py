"""round_weights against a plain least-squares oracle, on every kernel layout, and end to end."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.convert.post_training import round_weights as rounding
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.numerics.kernel_layouts import LAYOUTS
from tests.support.model_zoo import run

L = keras.layers
RNG = np.random.default_rng(83)
IMAGES = RNG.normal(size=(40, 9, 9, 4)).astype("float32")


def correlated(count, dimensions, seed):
    """Input vectors whose entries hang together, with unequal strengths."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 3)) @ rng.normal(size=(3, dimensions)) + 0.5 * rng.normal(size=(count, dimensions))
    return mixed * rng.uniform(0.3, 2, dimensions)


def oracle(weights, steps, moments, limit, damping=0.01):
    """One filter: round in order of the inputs' strength, then solve for the free weights anew. weights: [inputs]."""
    diagonal = np.diag(moments)
    damped = moments + np.eye(len(weights)) * damping * diagonal.mean()
    largest = np.abs(weights).argmax()
    current, fixed, codes = weights.copy(), [], np.zeros(len(weights))
    for index in np.argsort(-diagonal, kind="stable"):
        source = weights[index] if index == largest else current[index]
        codes[index] = np.clip(np.round(source / steps), -limit, limit)
        fixed.append(index)
        free = [i for i in range(len(weights)) if i not in fixed]
        # min over v_free of (w - v)^T H (w - v), the fixed entries of v on the grid
        gap = weights[fixed] - codes[fixed] * steps
        if free:
            shift = np.linalg.solve(damped[np.ix_(free, free)], damped[np.ix_(free, fixed)] @ gap)
            current[free] = weights[free] + shift
    return codes


def ends(weights, steps):
    """The code of the largest weight of every filter, 0 elsewhere."""
    largest = np.abs(weights) == np.abs(weights).max(axis=1, keepdims=True)
    return np.where(largest, np.clip(np.round(weights / steps), -7, 7), 0)


def test_regressed_weights_make_up_for_other_inputs():
    real = correlated(400, 6, 1)[None].astype("float32")
    mixing = np.eye(6) + 0.1 * np.random.default_rng(2).normal(size=(6, 6))
    seen = (real @ mixing).astype("float32")
    weights = RNG.normal(size=(1, 6, 2))
    moments, target = rounding.least_squares_target(weights, seen, real)
    double = [part[0].astype("float64") for part in (seen, real)]
    np.testing.assert_allclose(moments[0], double[0].T @ double[0] / 400, rtol=1e-4, atol=1e-5)
    errors = [np.square(double[0] @ w[0] - double[1] @ weights[0]).mean() for w in (weights, target)]
    assert errors[1] < 0.05 * errors[0]
    np.testing.assert_allclose(rounding.least_squares_target(weights, real, real)[1], weights, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_codes_equal_the_least_squares_oracle(seed):
    rng = np.random.default_rng(seed)
    vectors = correlated(200, 12, seed)
    moments = vectors.T @ vectors / 200
    weights = rng.normal(size=(12, 3))
    steps = np.abs(weights).max(0) * rng.uniform(0.6, 1, 3) / 7
    full = ends(weights[None], steps)
    found = rounding.gptq_round(weights[None], np.broadcast_to(steps, (1, 12, 3)), moments[None], 7, full)[0]
    for column in range(3):
        np.testing.assert_array_equal(found[:, column], oracle(weights[:, column], steps[column], moments, 7))


def test_independent_inputs_give_nearest_rounding():
    weights = RNG.normal(size=(2, 9, 4))
    steps = np.full(weights.shape, 0.1)
    none = np.zeros(weights.shape)
    found = rounding.gptq_round(weights, steps, np.stack([np.diag(RNG.uniform(0.1, 3, 9))] * 2), 7, none)
    np.testing.assert_array_equal(found, np.clip(np.round(weights / 0.1), -7, 7))


def test_output_error_is_lower_than_that_of_nearest_rounding():
    ratios = []
    for seed in range(20):
        vectors = correlated(300, 16, seed)
        moments = (vectors.T @ vectors / 300)[None]
        weights = np.random.default_rng(seed).normal(size=(1, 16, 8))
        steps = np.broadcast_to(np.abs(weights).max(1, keepdims=True) / 3, weights.shape)
        nearest = np.clip(np.round(weights / steps), -3, 3)
        codes = rounding.gptq_round(weights, steps, moments, 3, ends(weights, steps))
        ratios.append(
            rounding.output_error(weights, codes * steps, moments)
            / rounding.output_error(weights, nearest * steps, moments)
        )
    assert max(ratios) < 1
    assert np.mean(ratios) < 0.7


def test_descent_never_grows_the_error_and_finds_the_best_of_small_filters():
    rng = np.random.default_rng(4)
    for seed in range(5):
        vectors = correlated(100, 3, seed)
        moments = (vectors.T @ vectors / 100)[None]
        weights = rng.normal(size=(1, 3, 1))
        steps = np.broadcast_to(np.abs(weights).max(1, keepdims=True), weights.shape)
        full = ends(weights, steps)
        greedy = rounding.gptq_round(weights, steps, moments, 1, full)
        codes = rounding.coordinate_descent(weights, steps, moments, 1, greedy, full)
        errors = [rounding.output_error(weights, c * steps, moments) for c in (greedy, codes)]
        assert errors[1] <= errors[0] + 1e-12
        fixed = int(np.abs(weights).argmax())
        neighbours = [codes + step * np.eye(3)[i][None, :, None] for i in range(3) if i != fixed for step in (-1, 1)]
        allowed = [c for c in neighbours if np.abs(c).max() <= 1]
        assert all(rounding.output_error(weights, c * steps, moments) >= errors[1] - 1e-12 for c in allowed)


LAYERS = {
    "conv2d": ((9, 9, 4), klb.layers.QuantConv2D, (5, 3), {"padding": "same", "strides": 2}),
    "conv2d-dilated": ((9, 9, 4), klb.layers.QuantConv2D, (5, 3), {"dilation_rate": 2}),
    "conv2d-1x1": ((9, 9, 4), klb.layers.QuantConv2D, (5, 1), {}),
    "conv2d-1x1-strided": ((9, 9, 4), klb.layers.QuantConv2D, (5, 1), {"strides": 2}),
    "conv1d": ((9, 4), klb.layers.QuantConv1D, (5, 3), {"padding": "same"}),
    "conv1d-causal": ((9, 4), klb.layers.QuantConv1D, (5, 3), {"padding": "causal", "dilation_rate": 2}),
    "depthwise": ((9, 9, 4), klb.layers.QuantDepthwiseConv2D, (3,), {"padding": "same", "depth_multiplier": 2}),
    "dense": ((4,), klb.layers.QuantDense, (5,), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_input_vectors_times_grouped_kernel_are_what_the_layer_computes(name):
    shape, cls, sizes, options = LAYERS[name]
    layer = cls(*sizes, kernel_quantizer="uniform", **options)
    batches = [RNG.normal(size=(3, *shape)).astype("float32") for _ in range(2)]
    want = np.concatenate([to_numpy(layer(batch)).reshape(-1, layer(batch).shape[-1]) for batch in batches])
    vectors = rounding.input_vectors(layer, batches, RNG)
    layout = LAYOUTS[cls.__name__.removeprefix("Quant")]
    kernel = layout.grouped(to_numpy(layer.quantized_kernel()))
    got = np.matmul(vectors, kernel).transpose(1, 0, 2).reshape(len(want), -1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    real = to_numpy(layer.kernel)
    np.testing.assert_array_equal(layout.ungrouped(layout.grouped(real), real.shape), real)


def network():
    image = keras.Input((9, 9, 4), name="image")
    hidden = L.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv")(image)
    hidden = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu", name="dw")(hidden)
    hidden = L.Conv2D(12, 1, activation="relu", name="pw")(hidden)
    hidden = L.Conv2DTranspose(3, 2, name="transpose")(hidden)
    return keras.Model(image, L.Dense(5, name="head")(L.GlobalAveragePooling2D()(hidden)))


@pytest.mark.parametrize("recipe", ["fat-w4", "int8"])
def test_outputs_come_closer_and_only_codes_and_biases_change(recipe):
    model = network()
    quantized, _ = klb.quantize_model(model, recipe)
    klb.calibrate(quantized, IMAGES, verbose=0)
    before = klb.quantized_weights(quantized)
    fresh = IMAGES[::-1] * 0.9
    errors = [np.square(run(quantized, fresh)[0] - run(model, fresh)[0]).mean()]
    report = klb.round_weights(quantized, model, IMAGES, check=False, verbose=0)
    errors.append(np.square(run(quantized, fresh)[0] - run(model, fresh)[0]).mean())
    assert errors[1] < (0.5 if recipe == "fat-w4" else 1.0) * errors[0]
    assert report.outcomes("rounded") == ["conv", "dw", "pw", "head"]
    assert "not covered" in report["transpose"].detail
    after = klb.quantized_weights(quantized)
    for path in before:
        np.testing.assert_array_equal(before[path].scale, after[path].scale)
        limit = 7 if recipe == "fat-w4" else 127
        assert np.abs(after[path].codes.astype(int)).max() <= limit
    assert (before["pw"].codes != after["pw"].codes).any()
    np.testing.assert_array_equal(before["transpose"].codes, after["transpose"].codes)


def test_checked_a_layer_is_rounded_where_its_outputs_come_closer_on_held_back_samples_and_left_elsewhere():
    model = network()
    quantized, _ = klb.quantize_model(model, "fat-w4")
    klb.calibrate(quantized, IMAGES, verbose=0)
    fresh = RNG.normal(size=IMAGES.shape).astype("float32")
    wanted, before = run(model, fresh)[0], run(quantized, fresh)[0]
    report = klb.round_weights(quantized, model, IMAGES, verbose=0)
    assert report.verdict.kept
    assert report.verdict.samples == 10
    assert report.outcomes("rounded")
    after = run(quantized, fresh)[0]
    assert np.square(after - wanted).mean() < 0.7 * np.square(before - wanted).mean()
    codes = klb.quantized_weights(quantized)
    report = klb.round_weights(quantized, model, 40 + IMAGES, validation_data=IMAGES, verbose=0)
    kept = [row.path for row in report.layers if "its error on held-back samples would go from" in row.detail]
    assert kept
    for path in kept:
        np.testing.assert_array_equal(codes[path].codes, klb.quantized_weights(quantized)[path].codes)


def test_every_quantized_layer_is_in_the_report_with_its_reason():
    image = keras.Input((9, 9, 4), name="image")
    hidden = L.SeparableConv2D(4, 3, activation="relu", name="separable")(image)
    shared = L.Conv2D(4, 1, name="shared")
    hidden = L.Conv2D(4, 1, use_bias=False, name="bare")(shared(shared(hidden)))
    model = keras.Model(image, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(hidden)))
    quantized, _ = klb.quantize_model(model, "fat-w4")
    klb.calibrate(quantized, IMAGES, verbose=0)
    report = klb.round_weights(quantized, model, IMAGES, verbose=0)
    assert {row.path: row.detail for row in report.layers if row.outcome == "left"} == {
        "separable": "half of a separable convolution is not covered",
        "separable_depthwise": "no layer of its path in the float model",
        "shared": "shared: it runs 2 times",
        "bare": "it has no bias",
    }
    assert report.outcomes("rounded") == ["head"]


def test_grids_that_are_not_even_are_left_as_they_are():
    model = network()
    quantized, _ = klb.quantize_model(model, "inq-4")
    klb.calibrate(quantized, IMAGES, verbose=0)
    before = klb.quantized_weights(quantized)
    report = klb.round_weights(quantized, model, IMAGES, verbose=0)
    assert report.outcomes("left")
    after = klb.quantized_weights(quantized)
    for path in report.outcomes("left"):
        np.testing.assert_array_equal(before[path].real, after[path].real)


def test_models_without_a_common_layer_are_refused():
    quantized, _ = klb.quantize_model(network(), "int8")
    klb.calibrate(quantized, IMAGES, verbose=0)
    with pytest.raises(ValueError, match="the same path"):
        klb.round_weights(quantized, keras.Sequential([keras.Input((4,)), L.Dense(2)]), IMAGES, verbose=0)
