import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

from keras_lowbit.numerics import grids
from tests.support import oracle

BITS = range(2, 9)
reals = arrays(np.float32, 16, elements=st.floats(-1000, 1000, width=32))
scales = st.floats(0.0009765625, 100, width=32).map(np.float32)


def encode(real, scale, bits):
    return ops.convert_to_numpy(grids.encode_symmetric(ops.convert_to_tensor(real), np.float32(scale), bits))


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_limit_leaves_out_the_lowest_code(bits):
    assert grids.symmetric_limit(bits) == -int(np.iinfo(np.int8).min) // 2 ** (8 - bits) - 1


@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_its_own_code(bits):
    limit = grids.symmetric_limit(bits)
    codes = np.arange(-limit, limit + 1, dtype=np.float32)
    np.testing.assert_array_equal(encode(codes * np.float32(0.37), 0.37, bits), codes)


@given(reals, scales, st.sampled_from(BITS))
def test_narrow_grid_is_odd(real, scale, bits):
    np.testing.assert_array_equal(encode(-real, scale, bits), -encode(real, scale, bits))


@given(reals, scales, st.sampled_from(BITS))
def test_order_is_kept(real, scale, bits):
    assert np.all(np.diff(encode(np.sort(real), scale, bits)) >= 0)


@given(reals, scales, st.sampled_from(BITS))
def test_inside_the_range_the_error_is_at_most_half_a_step(real, scale, bits):
    inside = np.abs(real.astype(float)) <= float(scale) * grids.symmetric_limit(bits)
    error = np.abs(encode(real, scale, bits).astype(float) * scale - real)
    # Half a step for rounding, plus the float32 division real / scale: one part in 2^23 of at most 127 steps.
    assert np.all(error[inside] <= scale * (0.5 + 127 * 2.0**-23))


@given(reals, scales, st.sampled_from(BITS), st.integers(-20, 20))
def test_codes_do_not_depend_on_the_unit(real, scale, bits, exponent):
    unit = np.float32(2.0**exponent)
    np.testing.assert_array_equal(encode(real * unit, scale * unit, bits), encode(real, scale, bits))


def test_ties_go_to_even():
    np.testing.assert_array_equal(encode(np.float32([0.5, 1.5, 2.5, -0.5, -1.5]), 1.0, 4), [0, 2, 2, 0, -2])


def test_scale_zero_gives_codes_zero():
    np.testing.assert_array_equal(encode(np.float32([0, 1, -3]), 0.0, 8), [0, 0, 0])


def affine(minimum, maximum, bits):
    scale, zero_point = grids.affine_parameters(np.float32(minimum), np.float32(maximum), bits)
    return float(scale), float(zero_point)


RANGES = [
    (-1.0, 1.0),
    (0.0, 6.0),
    (-3.0, 0.0),
    (2.0, 5.0),  # does not hold 0: widened
    (-5.0, -2.0),
    (-0.001, 1000.0),
    (-1e30, 1e30),
    (-1e-30, 3e-30),
]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("limits", RANGES)
def test_affine_grid_is_the_oracles(limits, bits):
    scale, zero_point = affine(*limits, bits)
    want_scale, want_zero_point = oracle.affine(*limits, bits)
    # Two float32 roundings: the width and the division.
    assert scale == pytest.approx(want_scale, rel=2.0**-22)
    # Where -min / scale is a tie (7.5 steps and the like) float32 may fall on the other side.
    steps = -(2 ** (bits - 1)) - min(limits[0], 0.0) / want_scale
    assert abs(zero_point - want_zero_point) <= (1 if abs(steps % 1 - 0.5) < 1e-3 else 0)


@given(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32), st.sampled_from(BITS))
def test_zero_is_exact_and_its_code_lies_on_the_grid(minimum, width, bits):
    scale, zero_point = grids.affine_parameters(np.float32(minimum), np.float32(minimum + width), bits)
    lowest = -(2 ** (bits - 1))
    assert lowest <= float(zero_point) <= lowest + 2**bits - 1
    assert float(zero_point) == round(float(zero_point))
    code = grids.encode_affine(ops.zeros((1,)), scale, zero_point, bits)
    assert float(code[0]) == float(zero_point)
    assert float(grids.dequantize(code, scale, zero_point)[0]) == 0.0


@pytest.mark.parametrize("limits", [(0.0, 0.0), (1e-45, 1e-45), (0.0, 1e-42), (-1e-45, 0.0)])
def test_empty_and_denormal_ranges_give_finite_positive_scales(limits):
    scale, zero_point = affine(*limits, 8)
    assert np.isfinite(scale)
    assert scale > 0
    assert -128 <= zero_point <= 127


@given(arrays(np.float32, 32, elements=st.floats(-8, 8, width=32)), st.sampled_from(BITS))
def test_affine_codes_keep_order_and_range(real, bits):
    scale, zero_point = grids.affine_parameters(np.float32(-2), np.float32(5), bits)
    codes = ops.convert_to_numpy(grids.encode_affine(np.sort(real), scale, zero_point, bits))
    assert np.all(np.diff(codes) >= 0)
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1


def test_dequantize_agrees_between_numpy_and_tensors_bit_for_bit():
    codes = np.arange(-128, 128).astype(np.int8)
    scale = np.float32(0.0123)
    from_numpy = grids.dequantize(codes, scale, 7)
    from_tensor = grids.dequantize(ops.cast(codes, "float32"), scale, 7)
    np.testing.assert_array_equal(from_numpy, ops.convert_to_numpy(from_tensor))


def test_quantized_real_is_scale_times_codes_minus_zero_point():
    quantized = grids.Quantized(ops.convert_to_tensor([-1.0, 0.0, 3.0]), 0.5, 1.0)
    np.testing.assert_array_equal(quantized.real, [-1.0, -0.5, 1.0])
