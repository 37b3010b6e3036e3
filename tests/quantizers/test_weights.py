import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

from keras_lowbit.quantizers import Binary, Ternary, Uniform
from tests.support import oracle

RNG = np.random.default_rng(4)
KERNEL = RNG.normal(size=(3, 3, 4, 6)).astype("float32")
FILTER_AXES = {"conv": (-1,), "depthwise": (2, 3), "transpose": (2,), "bias": ()}
GOLDEN = np.float32([0.9, -0.5, 0.1, -0.05, 0.3, -1.2, 0, 0.7])
# Sums of at most 216 float32 terms, pairwise: relative error well below this.
RTOL = 3e-6


def quantize(quantizer, weights, filter_axes=(-1,)):
    return ops.convert_to_numpy(quantizer(ops.convert_to_tensor(weights), {}, filter_axes, True))


def parts(quantizer, weights, filter_axes):
    """Codes as [filters, elements] and one scale per filter."""
    quantized = quantizer.encode(weights, {}, filter_axes)
    codes = oracle.rows(ops.convert_to_numpy(quantized.codes), filter_axes)
    scale = np.broadcast_to(ops.convert_to_numpy(quantized.scale), weights.shape)
    return codes, oracle.rows(scale, filter_axes)[:, 0]


def test_golden_vector_of_binary():
    quantized = Binary().encode(GOLDEN[:, None], {}, (-1,))
    assert float(quantized.scale[0, 0]) == 0.46875
    np.testing.assert_array_equal(np.ravel(quantized.codes), [1, -1, 1, -1, 1, -1, 1, 1])
    on_grid = quantize(Binary(), GOLDEN[:, None])
    assert oracle.relative_error(GOLDEN[None].astype(float), on_grid.T) == pytest.approx(0.76, abs=1e-6)


def test_golden_vector_of_ternary():
    quantized = Ternary().encode(GOLDEN[:, None], {}, (-1,))
    assert float(quantized.scale[0, 0]) == pytest.approx(0.825, rel=1e-7)
    np.testing.assert_array_equal(np.ravel(quantized.codes), [1, -1, 0, 0, 0, -1, 0, 1])
    on_grid = quantize(Ternary(), GOLDEN[:, None])
    assert oracle.relative_error(GOLDEN[None].astype(float), on_grid.T) == pytest.approx(0.36, abs=1e-6)


def test_golden_vector_of_the_centred_threshold():
    weights = np.float32([1.2, 0.9, 0.4, -0.1])[:, None]
    plain = Ternary().encode(weights, {}, (-1,)).codes
    centred = Ternary(centered=True).encode(weights, {}, (-1,)).codes
    np.testing.assert_array_equal(np.ravel(plain), [1, 1, 0, 0])
    np.testing.assert_array_equal(np.ravel(centred), [1, 1, 1, 0])


@pytest.mark.parametrize("axes", FILTER_AXES.values(), ids=FILTER_AXES.keys())
def test_binary_is_the_oracles(axes):
    codes, scale = parts(Binary(), KERNEL, axes)
    want_codes, want_scale = oracle.binary(oracle.rows(KERNEL, axes))
    np.testing.assert_array_equal(codes, want_codes)
    np.testing.assert_allclose(scale, want_scale, rtol=RTOL)


@pytest.mark.parametrize("axes", FILTER_AXES.values(), ids=FILTER_AXES.keys())
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("scale_granularity", ["channel", "tensor"])
@pytest.mark.parametrize("centered", [False, True])
def test_ternary_is_the_oracles(axes, granularity, scale_granularity, centered):
    arguments = {"granularity": granularity, "scale_granularity": scale_granularity, "centered": centered}
    codes, scale = parts(Ternary(**arguments), KERNEL, axes)
    filters = oracle.rows(KERNEL, axes)
    want_codes, want_scale, deltas = oracle.ternary(filters, 0.7, **arguments)
    margin = np.abs(np.abs(filters) / deltas[:, None] - 1).min()
    assert margin > 1e-5, "a weight too near its threshold for float32: choose another kernel"
    np.testing.assert_array_equal(codes, want_codes)
    np.testing.assert_allclose(scale, want_scale, rtol=RTOL)


def test_sign_of_zero_is_plus_one_and_the_threshold_is_strict():
    np.testing.assert_array_equal(Binary().encode(np.zeros((2, 1), "f"), {}, (-1,)).codes, [[1], [1]])
    equal = np.float32([[1], [1], [-1], [-1]])
    np.testing.assert_array_equal(Ternary(factor=1.0).encode(equal, {}, (-1,)).codes, np.zeros((4, 1)))
    np.testing.assert_array_equal(quantize(Ternary(factor=1.0), equal), np.zeros((4, 1)))


@pytest.mark.parametrize(
    "quantizer",
    [
        Binary(),
        Ternary(),
        Ternary(calibration="mse"),
        Uniform(4),
        Uniform(4, calibration="mse"),
        Uniform(calibration="percentile"),
    ],
)
def test_a_filter_of_zeros_stays_zero(quantizer):
    weights = KERNEL.copy()
    weights[..., 2] = 0
    on_grid = quantize(quantizer, weights)
    np.testing.assert_array_equal(on_grid[..., 2], 0)
    assert np.isfinite(on_grid).all()


@pytest.mark.parametrize("quantizer", [Binary(), Ternary(), Ternary(calibration="mse")])
def test_no_more_values_than_levels_in_a_filter(quantizer):
    on_grid = quantize(quantizer, KERNEL)
    levels = {"binary": 2, "ternary": 3}[quantizer.name]
    assert all(len(np.unique(on_grid[..., index])) == levels for index in range(6))


UNIFORM = list(itertools.product(range(2, 9), ("channel", "tensor"), ("max", "percentile", "mse")))


@pytest.mark.parametrize(("bits", "granularity", "calibration"), UNIFORM)
def test_uniform_codes_are_the_oracles_for_its_scale(bits, granularity, calibration):
    quantizer = Uniform(bits, granularity, calibration, percentile=97.0)
    codes, scale = parts(quantizer, KERNEL, (-1,))
    filters = oracle.rows(KERNEL, (-1,))
    limit = 2 ** (bits - 1) - 1
    steps = filters / scale[:, None]
    clear = np.abs(np.abs(steps - np.floor(steps)) - 0.5) > 1e-4  # away from ties of float32
    np.testing.assert_array_equal(codes[clear], oracle.symmetric(filters, scale, bits)[clear])
    assert np.abs(codes).max() <= limit
    group = np.abs(filters) if granularity == "channel" else np.abs(filters).reshape(1, -1)
    if calibration == "max":
        want = group.max(1) / limit
        np.testing.assert_allclose(scale, np.broadcast_to(want, 6), rtol=2.0**-23)
    if calibration == "percentile":
        want = np.percentile(group, 97.0, axis=1) / limit
        np.testing.assert_allclose(scale, np.broadcast_to(want, 6), rtol=1e-6)


weights = arrays(np.float32, (7, 3), elements=st.floats(-4, 4, width=32)).map(
    lambda array: np.where(np.abs(array) < 1e-4, 0, array).astype(np.float32)
)
QUANTIZERS = [Binary(), Ternary(), Ternary(calibration="mse"), Uniform(2), Uniform(8)]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
@given(real=weights)
def test_quantizing_twice_keeps_the_codes(quantizer, real):
    once = quantizer.encode(real, {}, (-1,))
    twice = quantizer.encode(once.real, {}, (-1,))
    real_once = ops.convert_to_numpy(once.real)
    # Binary has no code 0, and an all-zero filter is +1 throughout: compare where the grid is not 0.
    same = ops.convert_to_numpy(once.codes == twice.codes) | (real_once == 0)
    assert same.all()


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
@given(real=weights, exponent=st.integers(-12, 12))
def test_codes_do_not_depend_on_the_unit_and_the_grid_scales_with_it(quantizer, real, exponent):
    unit = np.float32(2.0**exponent)
    np.testing.assert_array_equal(quantize(quantizer, real * unit), quantize(quantizer, real) * unit)


@pytest.mark.parametrize("quantizer", QUANTIZERS[1:], ids=repr)
@given(real=weights)
def test_odd(quantizer, real):
    np.testing.assert_array_equal(quantize(quantizer, -real), -quantize(quantizer, real))


def test_mse_calibration_is_odd_and_scales_with_the_unit():
    quantizer, real = Uniform(4, calibration="mse"), KERNEL
    np.testing.assert_array_equal(quantize(quantizer, -real), -quantize(quantizer, real))
    np.testing.assert_array_equal(quantize(quantizer, real * np.float32(0.125)), quantize(quantizer, real) / 8)


@given(real=weights)
def test_the_optimum_is_never_worse_than_twn(real):
    def error(quantizer):
        return np.sum((quantize(quantizer, real).astype(float) - real) ** 2, axis=0)

    # Ties within float32: relative to the energy of the filter.
    assert np.all(error(Ternary(calibration="mse")) <= error(Ternary()) + 1e-5 * np.sum(real.astype(float) ** 2, 0))


def gradient(quantizer, real, upstream):
    real = tf.constant(real)
    with tf.GradientTape() as tape:
        tape.watch(real)
        on_grid = quantizer(real, {}, (-1,), True)
    return tape.gradient(on_grid, real, output_gradients=tf.constant(upstream)).numpy()


@pytest.mark.parametrize(
    "quantizer", [Binary(), Ternary(), Ternary(calibration="mse"), Uniform(4), Uniform(8, "tensor")]
)
def test_gradient_is_the_upstream_on_both_sides_of_every_threshold(quantizer):
    upstream = RNG.normal(size=KERNEL.shape).astype("float32")
    np.testing.assert_array_equal(gradient(quantizer, KERNEL, upstream), upstream)
    np.testing.assert_array_equal(gradient(quantizer, np.zeros_like(KERNEL), upstream), upstream)


@pytest.mark.parametrize("calibration", ["percentile", "mse"])
def test_gradient_stops_where_the_weight_saturates(calibration):
    quantizer = Uniform(3, calibration=calibration, percentile=80.0)
    upstream = RNG.normal(size=KERNEL.shape).astype("float32")
    limit = ops.convert_to_numpy(quantizer.encode(KERNEL, {}, (-1,)).scale) * np.float32(3)
    inside = np.abs(KERNEL) <= limit
    assert inside.any()
    assert not inside.all()
    np.testing.assert_array_equal(gradient(quantizer, KERNEL, upstream), np.where(inside, upstream, 0))


def test_half_precision_input_is_quantized_in_float32():
    on_grid = Ternary()(ops.cast(KERNEL, "float16"), {}, (-1,))
    assert ops.dtype(on_grid) == "float32"
    np.testing.assert_array_equal(on_grid, quantize(Ternary(), KERNEL.astype("float16").astype("float32")))
