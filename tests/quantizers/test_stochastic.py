import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_lowbit.quantizers import ActivationRange, Binary, Stochastic, Ternary, Uniform
from tests.support import oracle

RNG = np.random.default_rng(6)
KERNEL = RNG.normal(size=(3, 3, 4, 16)).astype("float32")
PROBABILITIES = ("constant", "linear", "softmax", "sigmoid")
SELECTIONS = ("quantize_inv_error", "keep_error")
MODES = list(itertools.product(PROBABILITIES, SELECTIONS))


def state(ratio, seed=1, **more):
    return {"ratio": tf.constant(ratio, "float32"), "seed": keras.random.SeedGenerator(seed), **more}


def quantize(quantizer, ratio, seed=1, weights=KERNEL, axes=(-1,), training=True):
    return ops.convert_to_numpy(quantizer(weights, state(ratio, seed), axes, training))


def mask(quantizer, ratio, seed=1, weights=KERNEL, axes=(-1,)):
    """Which units carry the base's values; every unit must be the base's or float throughout."""
    hybrid = quantize(quantizer, ratio, seed, weights, axes)
    base = ops.convert_to_numpy(quantizer.base(weights, {}, axes))
    kept = axes if quantizer.granularity == "channel" else range(weights.ndim)
    drawn = oracle.rows(hybrid == base, kept).all(1)
    assert np.all(drawn | oracle.rows(hybrid == weights, kept).all(1)), "a unit is mixed"
    return drawn


@pytest.mark.parametrize("base", [Binary(), Ternary(), Uniform(4)])
@pytest.mark.parametrize(("probability", "selection"), MODES)
@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_ratio_0_is_the_float_kernel_and_ratio_1_the_base_in_one_compiled_graph(
    base, probability, selection, granularity
):
    quantizer = Stochastic(base, granularity, probability, selection)
    ratio, seed = tf.Variable(0.0), keras.random.SeedGenerator(3)
    compiled = tf.function(lambda w: quantizer(w, {"ratio": ratio, "seed": seed}, (-1,), True))
    want = {0.0: KERNEL, 1.0: ops.convert_to_numpy(base(KERNEL, {}, (-1,)))}
    for value in (0.0, 1.0, 1.0, 0.0):
        ratio.assign(value)
        np.testing.assert_array_equal(compiled(KERNEL), want[value])
    ratio.assign(0.5)
    compiled(KERNEL)
    assert compiled.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(("probability", "selection"), MODES)
@pytest.mark.parametrize(
    ("units", "ratio", "count"), [(64, 0.875, 56), (64, 0.5, 32), (10, 0.2, 2), (7, 0.5, 4), (3, 0.75, 3), (1, 0.5, 1)]
)
def test_exactly_the_asked_number_of_filters_in_every_draw(probability, selection, units, ratio, count):
    quantizer = Stochastic(Ternary(), "channel", probability, selection)
    weights = RNG.normal(size=(5, units)).astype("float32")
    assert {mask(quantizer, ratio, seed, weights).sum() for seed in range(5)} == {count}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_exactly_the_asked_number_of_elements(selection, ratio):
    quantizer = Stochastic(Binary(), "element", selection=selection)
    assert mask(quantizer, ratio).sum() == np.ceil(ratio * KERNEL.size)


@pytest.mark.parametrize("axes", [(-1,), (2, 3), (2,)])
def test_units_are_the_filters_of_the_layer(axes):
    units = int(np.prod([KERNEL.shape[axis] for axis in axes]))
    drawn = mask(Stochastic(Binary()), 0.5, axes=axes)
    assert drawn.shape == (units,)
    assert drawn.sum() == units / 2


def test_inference_is_fully_quantized_unless_asked_otherwise():
    base = ops.convert_to_numpy(Ternary()(KERNEL, {}, (-1,)))
    np.testing.assert_array_equal(quantize(Stochastic(), 0.5, training=False), base)
    hybrid = Stochastic(hybrid_evaluation=True)
    np.testing.assert_array_equal(quantize(hybrid, 0.5, training=False), quantize(hybrid, 0.5, training=True))
    assert not np.array_equal(quantize(hybrid, 0.5, training=False), base)


def test_codes_for_deployment_do_not_depend_on_the_ratio():
    np.testing.assert_array_equal(
        Stochastic().encode(KERNEL, state(0.25), (-1,)).codes, Ternary().encode(KERNEL, {}, (-1,)).codes
    )


def test_same_seed_same_masks_other_steps_and_other_layers_other_masks():
    quantizer, first, again, other = Stochastic(), state(0.5, 1), state(0.5, 1), state(0.5, 2)
    draws = {
        name: [ops.convert_to_numpy(quantizer(KERNEL, values, (-1,), True)) for _ in range(20)]
        for name, values in (("first", first), ("again", again), ("other", other))
    }
    np.testing.assert_array_equal(draws["first"], draws["again"])
    for left, right in itertools.pairwise(draws["first"]):
        assert not np.array_equal(left, right)
    assert sum(np.array_equal(*pair) for pair in zip(draws["first"], draws["other"], strict=True)) == 0


def test_two_layers_draw_independently():
    # Filter 0 drawn in both layers: half of a half if independent, a half if they shared their masks.
    quantizer, left, right = Stochastic(probability="constant"), state(0.5, 1), state(0.5, 2)
    weights = RNG.normal(size=(5, 4)).astype("float32")
    base = ops.convert_to_numpy(Ternary()(weights, {}, (-1,)))[:, 0]

    def drawn(values):
        return np.array_equal(ops.convert_to_numpy(quantizer(weights, values, (-1,), True))[:, 0], base)

    both = np.mean([drawn(left) and drawn(right) for _ in range(400)])
    assert abs(both - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)  # four standard deviations


@pytest.mark.parametrize(("probability", "selection"), MODES)
def test_masks_do_not_depend_on_the_unit_of_the_weights(probability, selection):
    quantizer = Stochastic(Ternary(), "channel", probability, selection)
    for seed, exponent in ((1, 5), (2, -8), (3, 20)):
        scaled = KERNEL * np.float32(2.0**exponent)
        np.testing.assert_array_equal(
            mask(quantizer, 0.5, seed), mask(quantizer, 0.5, seed, scaled), err_msg=f"2^{exponent}"
        )


DEGENERATE = {
    "zeros": np.zeros((6, 4), "f"),
    "one zero filter": np.concatenate([np.zeros((6, 1)), RNG.normal(size=(6, 3))], 1).astype("f"),
    "one filter": RNG.normal(size=(6, 1)).astype("f"),
    "no error anywhere": np.sign(RNG.normal(size=(6, 4))).astype("f") * np.float32(0.5),
    "tiny": (RNG.normal(size=(6, 4)) * 1e-30).astype("f"),
    "huge": (RNG.normal(size=(6, 4)) * 1e30).astype("f"),
}


@pytest.mark.parametrize("weights", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize(("probability", "selection"), MODES)
@pytest.mark.parametrize("base", [Binary(), Ternary()])
def test_degenerate_weights_stay_finite(weights, probability, selection, base):
    quantizer = Stochastic(base, "channel", probability, selection)
    on_grid = ops.convert_to_numpy(base(weights, {}, (-1,)))
    for ratio in (0.0, 0.3, 1.0):
        hybrid = quantize(quantizer, ratio, weights=weights)
        assert np.isfinite(hybrid).all()
        columns = zip(hybrid.T, weights.T, on_grid.T, strict=True)
        assert all(np.array_equal(h, w) or np.array_equal(h, q) for h, w, q in columns)


@pytest.mark.parametrize("base", [Binary(), Ternary(), Uniform(4)])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_gradient_is_that_of_a_float_layer_whose_kernel_is_the_hybrid(base, ratio):
    quantizer, upstream = Stochastic(base), RNG.normal(size=KERNEL.shape).astype("float32")
    real = tf.constant(KERNEL)
    with tf.GradientTape() as tape:
        tape.watch(real)
        hybrid = quantizer(real, state(ratio), (-1,), True)
    np.testing.assert_array_equal(tape.gradient(hybrid, real, output_gradients=tf.constant(upstream)), upstream)
    inputs = tf.constant(RNG.normal(size=(2, 6, 6, 4)).astype("float32"))
    kernel = tf.constant(hybrid)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([real, kernel])
        through = tf.reduce_sum(tf.nn.conv2d(inputs, quantizer(real, state(ratio), (-1,), True), 1, "SAME") ** 2)
        direct = tf.reduce_sum(tf.nn.conv2d(inputs, kernel, 1, "SAME") ** 2)
    np.testing.assert_array_equal(tape.gradient(through, real), tape.gradient(direct, kernel))


def test_gradient_of_a_saturating_base_stops_only_on_drawn_units():
    base = Uniform(3, calibration="percentile", percentile=70.0)
    quantizer = Stochastic(base)
    real, upstream = tf.constant(KERNEL), RNG.normal(size=KERNEL.shape).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(real)
        hybrid = quantizer(real, state(0.5), (-1,), True)
    got = tape.gradient(hybrid, real, output_gradients=tf.constant(upstream)).numpy()
    quantized = base.encode(KERNEL, {}, (-1,))
    inside = np.abs(KERNEL) <= ops.convert_to_numpy(quantized.scale) * 3
    floats = (hybrid.numpy() == KERNEL).all((0, 1, 2))
    assert 0 < floats.sum() < 16
    np.testing.assert_array_equal(got, np.where(inside | floats, upstream, 0))


def test_state_of_the_base_is_reached_through_its_prefix():
    quantizer = Stochastic(ActivationRange())
    values = state(1.0, base_minimum=tf.constant(0.0), base_maximum=tf.constant(0.0), base_count=tf.constant(0.0))
    values["base_frozen"] = tf.constant(0.0)
    new = quantizer.observe(tf.constant([-1.0, 3.0]), values)
    assert {name: float(value) for name, value in new.items()} == {
        "base_minimum": -1.0,
        "base_maximum": 3.0,
        "base_count": 1.0,
    }


def test_a_nan_filter_is_nan_in_the_hybrid_and_the_others_are_not():
    weights = KERNEL.copy()
    weights[0, 0, 0, 3] = np.nan
    for seed in range(4):
        hybrid = quantize(Stochastic(), 0.5, seed, weights)
        assert np.isnan(hybrid[0, 0, 0, 3])
        assert np.isfinite(np.delete(hybrid, 3, axis=-1)).all()
