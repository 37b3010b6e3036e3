"""AdjustableThreshold: the properties and golden values of FAT."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_lowbit.quantizers import ActivationRange, AdjustableThreshold, Stochastic, Ternary, Uniform
from tests.support import threshold_oracle as oracle

RNG = np.random.default_rng(21)
BITS = range(2, 9)
RANGE = ActivationRange()
ASYMMETRIC = AdjustableThreshold(RANGE, mode="asymmetric")


def state_of(quantizer, shape=(), filter_axes=(), **changes):
    """The quantizer's state at its start, as tensors; changed values are broadcast to the variable's shape."""
    specs = quantizer.state_specs(shape, filter_axes)
    values = {name: np.full(spec.shape, changes.pop(name, spec.initial), np.float32) for name, spec in specs.items()}
    assert not changes
    return {name: tf.constant(value) for name, value in values.items()}


def known(quantizer, minimum, maximum, **changes):
    return state_of(quantizer, minimum=minimum, maximum=maximum, count=1.0, **changes)


def run(quantizer, real, state, filter_axes=()):
    return quantizer(tf.constant(np.float32(real)), state, filter_axes, True).numpy()


def gradients(quantizer, real, state, names, filter_axes=(), upstream=None):
    """Gradients with respect to x and to the named state, and one row per element where no upstream is given."""
    real = tf.constant(np.float32(real))
    watched = [state[name] for name in names]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([real, *watched])
        on_grid = quantizer(real, state, filter_axes, True)
    if upstream is not None:
        return [g.numpy() for g in tape.gradient(on_grid, [real, *watched], tf.constant(np.float32(upstream)))]
    rows = []
    for one in np.eye(real.shape[0], dtype=np.float32):
        rows.append([float(ops.sum(g)) for g in tape.gradient(on_grid, watched, tf.constant(one))])
    return np.array(rows).T


# ---------------------------------------------------------------------------------------------------- golden values


def test_symmetric_golden_values():
    real = [-1.3, -0.4, 0.03, 0.5, 0.97, 1.4]
    quantizer = AdjustableThreshold(Uniform(8, "tensor"))
    state = state_of(quantizer, (6,), threshold=1.5, factor=0.8)
    want = [-1.2, -0.3968504, 0.0283465, 0.5007874, 0.9732283, 1.2]
    np.testing.assert_allclose(run(quantizer, real, state), want, atol=5e-7)
    (slopes,) = gradients(quantizer, real, state, ["factor"])
    # u - v is a difference of numbers up to 127: float32 leaves it good to 127 * 2^-23 steps of T_max / q.
    np.testing.assert_allclose(slopes, [-1.5, 0.003937, -0.0020669, 0.0009843, 0.0040353937, 1.5], atol=5e-7)


def test_asymmetric_golden_values():
    real, state = [-1.3, -0.4, 0.03, 0.5, 0.97, 1.4], known(ASYMMETRIC, -1.0, 2.0, left=0.05, width=0.8)
    want = [-0.8470588, -0.3952941, 0.0282353, 0.4988235, 0.9694118, 1.4023529]
    np.testing.assert_allclose(run(ASYMMETRIC, real, state), want, atol=5e-7)
    scale, zero_point = ASYMMETRIC.grid(state)
    assert float(scale) == pytest.approx(0.0094117647, rel=1e-6)
    assert float(zero_point) == -38
    left, width = gradients(ASYMMETRIC, real, state, ["left", "width"])
    np.testing.assert_array_equal(left, [3, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(width, [0.0036765, 0.0058824, -0.0022059, -0.0014706, -0.0007353, 0.0029412], atol=5e-7)


# ------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("granularity", "axes"), [("channel", (-1,)), ("channel", (2, 3)), ("tensor", (-1,))])
def test_factor_1_is_the_base_bit_for_bit(bits, granularity, axes):
    kernel = RNG.normal(size=(3, 3, 4, 6)).astype("float32")
    base = Uniform(bits, granularity)
    quantizer = AdjustableThreshold(base)
    np.testing.assert_array_equal(
        run(quantizer, kernel, state_of(quantizer, kernel.shape, axes), axes), base(kernel, {}, axes)
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("limits", [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0)])
def test_factors_of_the_start_are_the_activation_range_bit_for_bit(bits, limits):
    real = (RNG.normal(size=500) * 4).astype("float32")
    base = ActivationRange(bits)
    quantizer = AdjustableThreshold(base, mode="asymmetric")
    state = known(quantizer, *limits)
    np.testing.assert_array_equal(run(quantizer, real, state), base(real, state, (), False))
    for ours, theirs in zip(quantizer.grid(state), base.grid(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("axes", [(-1,), (2, 3)])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_values_and_gradients_of_weights_are_the_oracles(bits, axes, granularity):
    kernel = RNG.normal(size=(3, 3, 4, 6)).astype("float32")
    upstream, quantizer = RNG.normal(size=kernel.shape), AdjustableThreshold(Uniform(bits, granularity))
    state = state_of(quantizer, kernel.shape, axes)
    state["factor"] = tf.constant(RNG.uniform(0.5, 1.0, state["factor"].shape).astype("float32"))
    reduced = (0, 1) if axes == (2, 3) else (0, 1, 2)
    largest = np.abs(kernel.astype(float)).max(axis=reduced if granularity == "channel" else None, keepdims=True)
    threshold = largest * np.float64(state["factor"].numpy())
    q = 2 ** (bits - 1) - 1
    keep = np.abs(kernel / threshold * q % 1 - 0.5) > 1e-4
    want = oracle.symmetric(kernel.astype(float), threshold, bits)
    np.testing.assert_allclose(run(quantizer, kernel, state, axes)[keep], want[keep], rtol=2e-6)
    d_real, d_factor = gradients(quantizer, kernel, state, ["factor"], axes, upstream * keep)
    smooth = oracle.symmetric_surrogate(kernel.astype(float), threshold, bits)
    slopes = [upstream * keep * oracle.derivative(smooth, (kernel.astype(float), threshold), i) for i in (0, 1)]
    np.testing.assert_allclose(d_real[keep], slopes[0][keep], atol=1e-5)
    summed = tuple(axis for axis in range(4) if d_factor.shape[axis] == 1)
    # float32: 216 terms at most, each u - v good to 127 * 2^-23 steps.
    np.testing.assert_allclose(d_factor, slopes[1].sum(axis=summed, keepdims=True) * largest, atol=2e-4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(6))
def test_asymmetric_activations_are_the_oracles(seed, bits):
    rng = np.random.default_rng(seed)
    minimum, size, left, width = map(np.float32, rng.uniform([-4, 0.1, -0.3, 0.4], [4, 6, 0.5, 1.2]))
    quantizer = AdjustableThreshold(ActivationRange(bits), mode="asymmetric")
    state, real = known(quantizer, minimum, minimum + size, left=left, width=width), np.linspace(-6, 6, 257)
    ends = oracle.ends(minimum, minimum + size, left, width)
    want, step, z = oracle.asymmetric(real, *ends, bits)
    scale, zero_point = (float(value) for value in quantizer.grid(state))
    assert scale == pytest.approx(step, rel=1e-5)
    lowest = -(2 ** (bits - 1))
    assert lowest <= zero_point <= lowest + 2**bits - 1
    if abs(ends[0] / step % 1 - 0.5) > 1e-3:
        assert zero_point == lowest - z
        keep = np.abs(real / step % 1 - 0.5) > 2e-3
        np.testing.assert_allclose(run(quantizer, real, state)[keep], want[keep], rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.floats(-4, 4), st.floats(0.01, 6), st.floats(-0.2, 0.4), st.floats(0.5, 1.0), st.sampled_from(BITS))
def test_zero_is_exact_levels_are_few_and_the_error_inside_is_half_a_step(minimum, size, left, width, bits):
    for mode, factors in (("asymmetric", {"left": left, "width": width}), ("symmetric", {"factor": width})):
        quantizer = AdjustableThreshold(ActivationRange(bits), mode=mode)
        state = known(quantizer, minimum, minimum + size, **factors)
        real = np.linspace(-8, 8, 1001).astype("float32")
        on_grid, quantized = run(quantizer, real, state), quantizer.encode(real, state)
        assert run(quantizer, [0.0, -0.0], state).tolist() == [0, 0]
        assert len(np.unique(on_grid)) <= 2**bits
        np.testing.assert_array_equal(on_grid, quantized.real)
        codes = quantized.codes.numpy()
        inside = (codes > codes.min()) & (codes < codes.max())
        scale = float(quantized.scale)
        # Half a step, and float32's share of up to 2^bits steps.
        assert (np.abs(on_grid - real.astype(float))[inside] <= scale * (0.5 + 2.0 ** (bits - 22))).all()


@pytest.mark.parametrize("factor", [0.3, 1.2])
def test_outside_the_limits_the_forward_is_that_of_the_limit_and_the_gradient_is_0(factor):
    kernel, upstream = RNG.normal(size=(8, 5)), RNG.normal(size=(8, 5))
    quantizer = AdjustableThreshold(Uniform(4))
    outside, at_limit = (
        state_of(quantizer, (8, 5), (-1,), factor=value) for value in (factor, np.clip(factor, 0.5, 1.0))
    )
    np.testing.assert_array_equal(run(quantizer, kernel, outside, (-1,)), run(quantizer, kernel, at_limit, (-1,)))
    assert not gradients(quantizer, kernel, outside, ["factor"], (-1,), upstream)[1].any()
    assert gradients(quantizer, kernel, at_limit, ["factor"], (-1,), upstream)[1].all()


@pytest.mark.parametrize(("left", "width"), [(-0.3, 0.4), (0.5, 1.5)])
def test_asymmetric_factors_outside_their_limits_get_no_gradient(left, width):
    upstream = RNG.normal(size=50)
    state = known(ASYMMETRIC, -1.0, 2.0, left=left, width=width)
    _, d_left, d_width = gradients(ASYMMETRIC, RNG.normal(size=50) * 3, state, ["left", "width"], (), upstream)
    assert d_left == d_width == 0


def test_an_unsigned_range_keeps_its_left_end():
    state = known(ASYMMETRIC, 0.0, 6.0, left=0.3, width=1.0)
    on_grid = run(ASYMMETRIC, [-1.0, 0.0, 0.01, 6.0], state)
    np.testing.assert_allclose(on_grid, [0, 0, 0, 6], rtol=1e-6)
    assert float(ASYMMETRIC.grid(state)[1]) == -128
    assert gradients(ASYMMETRIC, [-1.0, 1.0], state, ["left"], (), [1.0, 1.0])[1] == 0


@pytest.mark.parametrize(
    ("signed", "minimum", "zero_point", "levels"),
    [
        (None, -1.0, 0, (-128, 127)),
        (None, 0.0, -128, (0, 255)),
        (True, 0.0, 0, (-128, 127)),
        (False, -1.0, -128, (0, 255)),
    ],
)
def test_symmetric_activations_are_signed_by_data_or_by_argument(signed, minimum, zero_point, levels):
    quantizer = AdjustableThreshold(RANGE, signed=signed)
    state = known(quantizer, minimum, 2.0, factor=0.5)
    scale, zero = quantizer.grid(state)
    assert float(zero) == zero_point
    assert float(scale) == pytest.approx(1.0 / levels[1], rel=1e-6)
    codes = quantizer.encode(np.float32([-9, 9]), state).codes.numpy() - zero_point
    np.testing.assert_array_equal(codes, levels)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_equal_filters_have_the_scalar_grid_and_filters_of_their_own_fit_better(bits):
    vector, scalar = (AdjustableThreshold(Uniform(bits, kind)) for kind in ("channel", "tensor"))
    row = RNG.normal(size=(3, 3, 4, 1))
    kernel = np.tile(row, (1, 1, 1, 5))
    results = [run(q, kernel, state_of(q, kernel.shape, (-1,), factor=0.7), (-1,)) for q in (vector, scalar)]
    np.testing.assert_array_equal(*results)
    kernel = RNG.normal(size=(3, 3, 4, 5)) * np.float32([0.1, 0.3, 1, 2, 5])
    steps, errors = [], []
    for quantizer in (vector, scalar):
        state = state_of(quantizer, kernel.shape, (-1,))
        steps.append(quantizer.encode(np.float32(kernel), state, (-1,)).scale.numpy().reshape(-1))
        errors.append(np.square(run(quantizer, kernel, state, (-1,)) - kernel).mean())
    assert (steps[0] <= steps[1]).all()
    assert errors[0] < errors[1]


# ---------------------------------------------------------------------------------------------- state and its start


def test_what_is_trained_and_what_data_decide():
    kernel = (3, 3, 4, 6)
    specs = AdjustableThreshold().state_specs(kernel, (-1,))
    assert {name: (spec.shape, spec.trainable) for name, spec in specs.items()} == {
        "threshold": ((1, 1, 1, 6), False),
        "factor": ((1, 1, 1, 6), True),
    }
    assert AdjustableThreshold(Uniform(4, "tensor")).state_specs(kernel, (-1,))["factor"].shape == (1, 1, 1, 1)
    weights = AdjustableThreshold(mode="asymmetric").state_specs(kernel, (2, 3))
    assert {name: spec.trainable for name, spec in weights.items()} == {
        "minimum": False,
        "maximum": False,
        "left": True,
        "width": True,
    }
    assert weights["left"].shape == (1, 1, 4, 6)
    assert {n for n, spec in ASYMMETRIC.state_specs((None, 8, 8, 3)).items() if spec.trainable} == {"left", "width"}
    fixed = AdjustableThreshold(ActivationRange(minimum=-1.0, maximum=1.0))
    assert set(fixed.state_specs((None, 3))) == {"factor"}
    assert (fixed.has_static_range, fixed.for_activations, AdjustableThreshold().for_activations) == (True, True, False)


def test_calibrated_weights_keep_their_threshold_and_uncalibrated_ones_follow_the_kernel():
    kernel = RNG.normal(size=(10, 4)).astype("float32")
    quantizer = AdjustableThreshold(Uniform(4))
    free = state_of(quantizer, kernel.shape, (-1,))
    start = quantizer.tuning_start(kernel, (-1,))
    np.testing.assert_array_equal(start["threshold"], np.abs(kernel).max(0, keepdims=True))
    np.testing.assert_array_equal(start["factor"], np.ones((1, 4)))
    np.testing.assert_array_equal(run(quantizer, kernel, free | start, (-1,)), run(quantizer, kernel, free, (-1,)))
    assert np.abs(run(quantizer, 2 * kernel, free | start, (-1,))).max() < np.abs(kernel).max() * 1.001
    assert np.abs(run(quantizer, 2 * kernel, free, (-1,))).max() > np.abs(kernel).max() * 1.9


def test_asymmetric_weights_start_at_their_ends():
    kernel = (RNG.normal(size=(10, 4)) + 0.5).astype("float32")
    quantizer = AdjustableThreshold(mode="asymmetric")
    start = quantizer.tuning_start(kernel, (-1,))
    np.testing.assert_array_equal(start["minimum"], kernel.min(0, keepdims=True))
    np.testing.assert_array_equal(start["maximum"], kernel.max(0, keepdims=True))
    on_grid = run(quantizer, kernel, start, (-1,))
    steps = np.maximum(kernel.max(0), 0) - np.minimum(kernel.min(0), 0)
    assert (np.abs(on_grid - kernel) <= steps / 255 * 0.501).all()
    np.testing.assert_array_equal(on_grid, run(quantizer, kernel, state_of(quantizer, kernel.shape, (-1,)), (-1,)))


def test_start_mse_is_the_factor_of_least_squared_error():
    kernel = RNG.standard_t(3, size=(200, 6)).astype("float32")
    quantizer = AdjustableThreshold(Uniform(4), calibration="mse")
    factor = quantizer.tuning_start(kernel, (-1,))["factor"].numpy().reshape(-1)
    ratios = np.arange(30, 101) / 100
    for index, row in enumerate(kernel.astype(float).T):
        errors = [np.sum((oracle.symmetric(row, r * np.abs(row).max(), 4) - row) ** 2) for r in ratios]
        assert factor[index] == pytest.approx(np.clip(ratios[np.argmin(errors)], 0.5, 1.0), abs=1e-5)
    zeros = quantizer.tuning_start(np.zeros((5, 2), np.float32), (-1,))
    np.testing.assert_array_equal(zeros["factor"], np.ones((1, 2)))


def test_a_filter_of_zeros_stays_zero_and_a_nan_shows():
    kernel = RNG.normal(size=(9, 3))
    kernel[:, 0], kernel[2, 1] = 0, np.nan
    quantizer = AdjustableThreshold(Uniform(4))
    state = state_of(quantizer, kernel.shape, (-1,))
    on_grid = run(quantizer, kernel, state, (-1,))
    assert not on_grid[:, 0].any()
    assert np.isnan(on_grid[:, 1]).all()
    assert np.isfinite(on_grid[:, 2]).all()
    _, d_factor = gradients(quantizer, np.nan_to_num(kernel), state, ["factor"], (-1,), np.ones((9, 3)))
    assert np.isfinite(d_factor).all()
    assert d_factor[0, 0] == 0


def test_values_and_gradients_pass_until_there_is_a_range():
    real, upstream = RNG.normal(size=(2, 20)) * 100
    state = state_of(ASYMMETRIC)
    np.testing.assert_array_equal(run(ASYMMETRIC, real, state), np.float32(real))
    d_real, d_left, d_width = gradients(ASYMMETRIC, real, state, ["left", "width"], (), upstream)
    np.testing.assert_array_equal(d_real, np.float32(upstream))
    assert d_left == d_width == 0


def test_stochastic_trains_the_factors_of_its_base():
    quantizer = Stochastic(AdjustableThreshold(Uniform(4)))
    specs = quantizer.state_specs((8, 5), (-1,))
    assert specs["base_factor"].trainable
    kernel = RNG.normal(size=(8, 5)).astype("float32")
    start = quantizer.tuning_start(kernel, (-1,))
    np.testing.assert_array_equal(start["base_threshold"], np.abs(kernel).max(0, keepdims=True))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdjustableThreshold(Ternary()), r"base: Uniform\(8\) for weights|needs a base Uniform"),
        (lambda: AdjustableThreshold(None), "needs a base"),
        (lambda: AdjustableThreshold(Uniform(4, calibration="mse")), "write calibration='mse'"),
        (lambda: AdjustableThreshold(mode="affine"), "choose one of 'symmetric', 'asymmetric'"),
        (lambda: AdjustableThreshold(calibration="best"), "choose one of 'max', 'mse'"),
        (lambda: AdjustableThreshold(limits=(0.0, 1.0)), r"0 < low <= 1 <= high, got \(0.0, 1.0\)"),
        (lambda: AdjustableThreshold(limits=(0.5, 0.9)), r"0 < low <= 1 <= high, got \(0.5, 0.9\)"),
        (lambda: AdjustableThreshold(left_limits=(0.1, 0.4)), r"got \(0.1, 0.4\)"),
        (lambda: AdjustableThreshold(signed=False), "int8 weights are signed. Leave signed out"),
        (lambda: AdjustableThreshold(RANGE, calibration="mse"), r"calibrate\(calibration='mse'\)"),
        (lambda: AdjustableThreshold().grid({}), "not the range of an activation"),
    ],
)
def test_wrong_arguments_say_what_to_give_instead(make, words):
    with pytest.raises((ValueError, NotImplementedError), match=words):
        make()
