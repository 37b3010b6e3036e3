"""LearnedStep (LSQ) and LearnedPowerOfTwo (TQT) against their papers' formulas."""

import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit.quantizers import ActivationRange, LearnedPowerOfTwo, LearnedStep, Uniform
from tests.support import threshold_oracle as oracle

RNG = np.random.default_rng(31)
BITS = range(2, 9)


def state_of(quantizer, shape=(), filter_axes=(), **changes):
    specs = quantizer.state_specs(shape, filter_axes)
    values = {name: np.full(spec.shape, changes.pop(name, spec.initial), np.float32) for name, spec in specs.items()}
    assert not changes
    return {name: tf.constant(value) for name, value in values.items()}


def run(quantizer, real, state, filter_axes=(), names=(), upstream=None):
    """Values, then gradients with respect to x and the named state."""
    real = tf.constant(np.float32(real))
    watched = [real, *(state[name] for name in names)]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        on_grid = quantizer(real, state, filter_axes, True)
    if upstream is None:
        return on_grid.numpy()
    return on_grid.numpy(), *(g.numpy() for g in tape.gradient(on_grid, watched, tf.constant(np.float32(upstream))))


def first_step(kernel, bits):
    """LSQ: ``2 mean |w| / sqrt(q)``, for each filter (last axis)."""
    return 2 * np.abs(kernel.astype(float)).mean(axis=tuple(range(kernel.ndim - 1))) / np.sqrt(2 ** (bits - 1) - 1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("factor", [1.0, 0.6])
def test_lsq_values_and_gradients_of_filters(bits, factor):
    kernel, upstream = RNG.normal(size=(3, 3, 4, 5)).astype("float32"), RNG.normal(size=(3, 3, 4, 5))
    quantizer = LearnedStep(Uniform(bits))
    state = state_of(quantizer, kernel.shape, (-1,), factor=factor)
    first = first_step(kernel, bits)
    want, slope = oracle.lsq(kernel.astype(float), first * factor, bits)
    keep = np.abs(kernel / (first * factor) % 1 - 0.5) > 1e-4
    got, d_real, d_factor = run(quantizer, kernel, state, (-1,), ["factor"], upstream * keep)
    np.testing.assert_allclose(got[keep], want[keep], rtol=2e-6)
    q = 2 ** (bits - 1) - 1
    inside = np.abs(np.round(kernel / (first * factor))) <= q
    np.testing.assert_array_equal(d_real[keep], np.float32(upstream * inside)[keep])
    # Esser et al. section 2.2, with 36 weights a filter; in units of the first step.
    wanted = (upstream * keep * slope).sum(axis=(0, 1, 2)) / np.sqrt(36 * q) / first
    np.testing.assert_allclose(d_factor.reshape(-1), wanted, rtol=1e-4, atol=1e-4)


def test_under_sgd_the_step_takes_the_path_of_lsq():
    kernel, rate = RNG.normal(size=(20, 3)).astype("float32"), 0.01
    quantizer, target = LearnedStep(Uniform(4)), RNG.normal(size=(20, 3))
    state = state_of(quantizer, kernel.shape, (-1,))
    first = first_step(kernel, 4)
    step = first.copy()
    for _ in range(10):
        on_grid = run(quantizer, kernel, state, (-1,))
        upstream = on_grid - target
        _, _, d_factor = run(quantizer, kernel, state, (-1,), ["factor"], upstream)
        state["factor"] = state["factor"] - rate * d_factor
        values, slope = oracle.lsq(kernel.astype(float), step, 4)
        step -= rate * ((values - target) * slope).sum(0) / np.sqrt(20 * 7)
    np.testing.assert_allclose(state["factor"].numpy().reshape(-1) * first, step, rtol=1e-4)
    assert (np.abs(step / first - 1) > 1e-3).all()


@pytest.mark.parametrize(("minimum", "signed"), [(-1.5, True), (0.0, False)])
def test_lsq_of_activations_counts_the_features_of_one_sample(minimum, signed):
    quantizer, real, upstream = (
        LearnedStep(ActivationRange(4)),
        RNG.normal(size=(6, 5, 2)) * 2,
        RNG.normal(size=(6, 5, 2)),
    )
    state = state_of(quantizer, minimum=minimum, maximum=2.0, count=3.0, factor=0.7)
    q = 7 if signed else 15
    first = 2.0 / q
    want, slope = oracle.lsq(real, 0.7 * first, 4, signed, narrow=False)
    keep = np.abs(real / (0.7 * first) % 1 - 0.5) > 1e-4
    got, _, d_factor = run(quantizer, real, state, (), ["factor"], upstream * keep)
    np.testing.assert_allclose(got[keep], want[keep], rtol=2e-6)
    assert d_factor == pytest.approx((upstream * keep * slope).sum() / np.sqrt(10 * q) / first, rel=1e-4)
    assert float(quantizer.grid(state)[1]) == (0 if signed else -8)


@pytest.mark.parametrize(("start", "bits"), [("mean", 4), ("max", 4), ("mse", 4), ("mean", 8)])
def test_starts_of_lsq(start, bits):
    kernel = RNG.normal(size=(50, 3)).astype("float32")
    q = 2 ** (bits - 1) - 1
    threshold = (
        LearnedStep(Uniform(bits), calibration=start).tuning_start(kernel, (-1,))["threshold"].numpy().reshape(-1)
    )
    ratios = np.arange(30, 101) / 100
    largest = np.abs(kernel.astype(float)).max(0)
    best = [
        min(
            ratios,
            key=lambda r, c=c: np.sum(
                (oracle.symmetric(kernel[:, c].astype(float), r * largest[c], bits) - kernel[:, c]) ** 2
            ),
        )
        for c in range(3)
    ]
    want = {"mean": first_step(kernel, bits) * q, "max": largest, "mse": np.array(best) * largest}[start]
    np.testing.assert_allclose(threshold, want, rtol=1e-5)


@pytest.mark.parametrize(
    "quantizer", [LearnedStep(Uniform(4)), LearnedPowerOfTwo(Uniform(4)), LearnedStep(Uniform(4, "tensor"))]
)
def test_the_first_training_step_fixes_the_start_and_later_ones_leave_it(quantizer):
    kernel = RNG.normal(size=(3, 3, 4, 5)).astype("float32")
    state = state_of(quantizer, kernel.shape, (-1,))
    first = quantizer.observe(kernel, state)["threshold"]
    np.testing.assert_allclose(first, quantizer.tuning_start(kernel, (-1,))["threshold"], rtol=1e-6)
    again = quantizer.observe(2 * kernel, state | {"threshold": first})["threshold"]
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shift", [-1.3, 0.0, 0.4, 2.0])
def test_tqt_values_and_gradients_of_filters(bits, shift):
    kernel, upstream = RNG.normal(size=(40, 5)).astype("float32"), RNG.normal(size=(40, 5))
    quantizer = LearnedPowerOfTwo(Uniform(bits))
    state = state_of(quantizer, kernel.shape, (-1,), log2_factor=shift)
    step = oracle.tqt_step(np.abs(kernel.astype(float)).max(0) * 2.0**shift, bits)
    want, slope = oracle.lsq(kernel.astype(float), step, bits)
    got, d_real, d_shift = run(quantizer, kernel, state, (-1,), ["log2_factor"], upstream)
    np.testing.assert_array_equal(got, want)  # powers of two divide and multiply exactly
    np.testing.assert_array_equal(
        d_real, np.float32(upstream * (np.abs(np.round(kernel / step)) <= 2 ** (bits - 1) - 1))
    )
    # Jain et al. eq. 7: s ln 2 times the slope.
    np.testing.assert_allclose(d_shift.reshape(-1), (upstream * slope).sum(0) * step * np.log(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("minimum", "maximum", "zero_point", "step"),
    [(-1.0, 3.0, 0, 2.0**-5), (0.0, 3.0, -128, 2.0**-6), (0.0, 4.0, -128, 2.0**-6)],
)
def test_tqt_of_activations_has_power_of_two_steps(minimum, maximum, zero_point, step):
    quantizer = LearnedPowerOfTwo(ActivationRange())
    scale, zero = quantizer.grid(state_of(quantizer, minimum=minimum, maximum=maximum, count=1.0))
    assert (float(scale), float(zero)) == (step, zero_point)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LearnedStep("ternary"), "needs a base"),
        (lambda: LearnedStep(calibration="median"), "choose one of 'mean', 'max', 'mse'"),
        (lambda: LearnedStep(limits=(2.0, 3.0)), "0 < low <= 1 <= high"),
        (lambda: LearnedPowerOfTwo(signed=False), "Leave signed out"),
    ],
)
def test_wrong_arguments_say_what_to_give_instead(make, words):
    with pytest.raises(ValueError, match=words):
        make()
