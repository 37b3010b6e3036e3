"""The grid of INQ against a NumPy float64 oracle written from the paper (arXiv:1702.03044, eq. 1 to 4)."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from keras_lowbit.quantizers import PowerOfTwo, get

BITS = (2, 3, 4, 5)
every_width = pytest.mark.parametrize("bits", BITS)
weights = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=st.floats(-8, 8, width=16)
)

GOLDEN_WEIGHTS = (0.9, -0.5, 0.1, -0.05, 0.3, -1.2, 0.0, 0.7)
GOLDEN = {
    2: (1, -1, 0, 0, 0, -1, 0, 1),
    3: (1, -0.5, 0, 0, 0.5, -1, 0, 0.5),
    4: (1, -0.5, 0.125, 0, 0.25, -1, 0, 0.5),
    5: (1, -0.5, 0.125, -0.0625, 0.25, -1, 0, 0.5),
}


def oracle_exponents(values, bits):
    """n1 and n2 of a group of weights; the logarithm corrected by comparison."""
    largest = float(np.abs(np.asarray(values, np.float64)).max())
    top = int(np.floor(np.log2(4 * largest / 3)))
    top += (largest >= 1.5 * 2.0**top) - (largest < 0.75 * 2.0**top)
    return top, top + 1 - 2 ** (bits - 1) // 2


def oracle(values, bits, exponents=None):
    """Nearest element of {0, +-2^n2 .. +-2^n1} of each weight, ties to the larger magnitude, by looking at all."""
    values = np.asarray(values, np.float64)
    if not values.any():
        return np.zeros_like(values)
    top, low = exponents or oracle_exponents(values, bits)
    grid = np.array([0.0, *(2.0**n for n in range(low, top + 1))])
    distance = np.abs(np.abs(values)[..., None] - grid)
    nearest = grid.size - 1 - np.argmin(distance[..., ::-1], axis=-1)
    return np.sign(values) * grid[nearest]


def on_grid(values, bits, axes=(), **options):
    return np.asarray(PowerOfTwo(bits, **options)(np.asarray(values, np.float32), {}, axes))


@every_width
def test_golden_vectors(bits):
    np.testing.assert_array_equal(on_grid(GOLDEN_WEIGHTS, bits), np.asarray(GOLDEN[bits], np.float32))


def test_the_example_of_the_paper():
    assert oracle_exponents([0.5], 3) == (-1, -2)
    quantized = PowerOfTwo(3).encode(np.asarray([0.5, 0.25, 0.1], np.float32), {})
    assert float(quantized.scale[0]) == 0.25
    np.testing.assert_array_equal(quantized.codes, [2, 1, 0])


@every_width
@given(values=weights)
def test_equals_the_oracle_and_is_idempotent_and_odd(bits, values):
    got = on_grid(values, bits)
    np.testing.assert_array_equal(got, oracle(values, bits).astype(np.float32))
    np.testing.assert_array_equal(on_grid(got, bits), got)
    np.testing.assert_array_equal(on_grid(-values, bits), -got)
    assert np.unique(np.abs(got[got != 0])).size <= 2 ** (bits - 2)


@every_width
@given(values=weights, shift=st.integers(-60, 60))
def test_powers_of_two_pass_through(bits, values, shift):
    factor = np.float32(2.0**shift)
    np.testing.assert_array_equal(on_grid(values * factor, bits), on_grid(values, bits) * factor)


@every_width
@pytest.mark.parametrize("octave", range(-90, 91, 15))
@pytest.mark.parametrize("mantissa", [0.75, 1.0, 1.4999999, 1.5, 2.9999998, 3.0])
def test_the_largest_weight_maps_to_the_top(bits, octave, mantissa):
    largest = np.float32(mantissa) * np.float32(2.0**octave)
    top, low = oracle_exponents([largest], bits)
    assert 0.75 * 2.0**top <= largest < 1.5 * 2.0**top
    quantized = PowerOfTwo(bits).encode(np.asarray([largest, -largest, 0], np.float32), {})
    assert float(quantized.scale[0]) == 2.0**low
    np.testing.assert_array_equal(quantized.real, np.asarray([2.0**top, -(2.0**top), 0], np.float32))


@every_width
def test_exact_borders_go_up_and_one_ulp_below_does_not(bits):
    scale = np.float32(2.0 ** (1 - 2 ** (bits - 2)))  # the top is 1
    borders = [(0.5, 0, 1), *((0.75 * 2**k, 2 ** (k - 1), 2**k) for k in range(1, 2 ** (bits - 2)))]
    for border, below, above in borders:
        border = np.float32(border) * scale
        values = np.asarray([border, np.nextafter(border, np.float32(0)), -border], np.float32)
        codes = PowerOfTwo(bits).snap(values, np.broadcast_to(scale, (1,)))
        np.testing.assert_array_equal(codes, [above, below, -above])


@every_width
@pytest.mark.parametrize("factor", [1.5, 3.0, 1e6])
def test_overflow_saturates_where_the_paper_says_zero(bits, factor):
    codes = PowerOfTwo(bits).snap(np.asarray([factor, -factor], np.float32) * 8, np.asarray([8.0], np.float32))
    top = 2 ** (2 ** (bits - 2) - 1)
    limit = min(top, oracle([factor], bits, (2 ** (bits - 2) - 1, 0))[0])
    np.testing.assert_array_equal(codes, [limit, -limit])
    far = PowerOfTwo(bits).snap(np.asarray([3.0 * top, -3.0 * top], np.float32), np.ones(1, np.float32))
    np.testing.assert_array_equal(far, [top, -top])


def test_a_scale_per_filter():
    kernel = np.random.default_rng(3).normal(size=(3, 3, 2, 4)).astype("float32") * [1e-3, 1.0, 5.0, 0.0]
    got = on_grid(kernel, 3, (-1,), granularity="channel")
    for index in range(4):
        np.testing.assert_array_equal(got[..., index], oracle(kernel.astype("float32")[..., index], 3))
    assert PowerOfTwo(3, "channel").encode(kernel, {}, (-1,)).scale.shape == (1, 1, 1, 4)
    assert PowerOfTwo(3).encode(kernel, {}, (-1,)).scale.shape == (1, 1, 1, 1)


def least_error_by_trying(values, bits):
    """The top exponent of least squared error among the eight octaves below that of the largest weight."""
    values = np.asarray(values, np.float64)
    top, _ = oracle_exponents(values, bits)
    tried = [np.square(values - saturating(values, bits, top - k)).sum() for k in range(8)]
    return np.asarray(tried), top


def saturating(values, bits, top):
    """Nearest element of the grid below 2^top; larger values give 2^top."""
    grid = np.array([0.0, *(2.0 ** (top - k) for k in range(2 ** (bits - 2)))])
    return np.sign(values) * grid[np.abs(np.abs(values)[..., None] - grid).argmin(-1)]


@every_width
@given(values=weights)
def test_mse_finds_the_top_of_least_error_and_is_idempotent_and_odd(bits, values):
    got = on_grid(values, bits, calibration="mse")
    np.testing.assert_array_equal(on_grid(got, bits, calibration="mse"), got)
    np.testing.assert_array_equal(on_grid(-values, bits, calibration="mse"), -got)
    np.testing.assert_array_equal(on_grid(values * 2.0**30, bits, calibration="mse"), got * np.float32(2.0**30))
    if values.any():
        tried, _ = least_error_by_trying(values, bits)
        error = np.square(np.asarray(values, np.float64) - got).sum()
        assert error <= tried.min() + 1e-6 * np.square(np.asarray(values, np.float64)).sum()


@pytest.mark.parametrize(("bits", "octaves"), [(2, (2, 3)), (3, (1, 2)), (4, (0, 1)), (5, (0, 0))])
def test_mse_lowers_the_top_of_a_bell_shaped_kernel(bits, octaves):
    kernel = np.random.default_rng(4).normal(size=(3, 3, 16, 8)).astype(np.float32)
    kernel[0, 0, 0, 0] = 6.5  # one outlier sets the top of "max" to 8
    tried, top = least_error_by_trying(kernel, bits)
    below = top - int(np.log2(np.abs(on_grid(kernel, bits, calibration="mse")).max()))
    assert below == tried.argmin()
    assert octaves[0] <= below <= octaves[1]


def test_mse_is_one_top_per_filter_where_asked():
    kernel = np.random.default_rng(3).normal(size=(3, 3, 2, 4)).astype(np.float32) * [1e-30, 1.0, 5.0, 0.0]
    kernel = kernel.astype(np.float32)
    got = on_grid(kernel, 3, (-1,), granularity="channel", calibration="mse")
    for index in range(4):
        np.testing.assert_array_equal(got[..., index], on_grid(kernel[..., index], 3, calibration="mse"))
    assert np.abs(got[..., 0]).max() > 0
    kernel[0, 0, 0, 1] = np.nan
    spoilt = on_grid(kernel, 3, (-1,), granularity="channel", calibration="mse")
    assert np.isnan(spoilt[..., 1]).all()
    assert np.isfinite(np.delete(spoilt, 1, axis=-1)).all()


def test_int8_exact_leaves_the_lowest_octave_out():
    values = np.asarray([1.0, 2.0**-6, 2.0**-7, 2.0**-8], np.float32)
    np.testing.assert_array_equal(PowerOfTwo(5, int8_exact=True).encode(values, {}).codes, [64, 1, 1, 0])
    np.testing.assert_array_equal(PowerOfTwo(5).encode(values, {}).codes, [128, 2, 1, 1])
    assert [PowerOfTwo(bits).magnitudes for bits in BITS] == [1, 2, 4, 8]
    assert [PowerOfTwo(bits, int8_exact=True).magnitudes for bits in BITS] == [1, 2, 4, 7]


@every_width
def test_a_layer_of_zeros_stays_zero(bits):
    np.testing.assert_array_equal(on_grid(np.zeros((3, 2)), bits), np.zeros((3, 2)))


def test_nan_is_not_hidden():
    values = np.asarray([[1.0, 2.0], [np.nan, 3.0]], np.float32)
    assert np.isnan(on_grid(values, 4)).all()
    per_filter = on_grid(values, 4, (-1,), granularity="channel")
    assert np.isnan(per_filter[:, 0]).all()
    assert np.isfinite(per_filter[:, 1]).all()
    assert np.isnan(np.asarray(PowerOfTwo(4).snap(values, np.ones((1, 1), np.float32)))[1, 0])


@pytest.mark.parametrize("bits", [1, 6, 4.0, True, "5"])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match="PowerOfTwo needs 2 to 5 bits, got bits="):
        PowerOfTwo(bits)


def test_config_and_name():
    quantizer = PowerOfTwo(3, "channel")
    assert get(quantizer.get_config()) == quantizer
    assert get("power_of_two") == PowerOfTwo(5)
    with pytest.raises(ValueError, match="choose one of 'channel', 'tensor'"):
        PowerOfTwo(3, "row")
    with pytest.raises(ValueError, match="choose one of 'max', 'mse'"):
        PowerOfTwo(3, calibration="best")
