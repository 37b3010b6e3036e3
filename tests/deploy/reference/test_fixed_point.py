"""Fixed point against Python's unbounded integers and fractions: no NumPy on the oracle's side."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_lowbit.numerics import requantization as fp

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIER = st.integers(2**30, 2**31 - 1)
thorough = settings(max_examples=400, derandomize=True, deadline=None, database=None)


def c_divide(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def doubling_high_mul(a: int, b: int, bits: int) -> int:
    """The C text: a nudge that depends on the sign, then a division that truncates."""
    if a == b == -(2 ** (bits - 1)):
        return 2 ** (bits - 1) - 1
    nudge = 2 ** (bits - 2) if a * b >= 0 else 1 - 2 ** (bits - 2)
    return c_divide(a * b + nudge, 2 ** (bits - 1))


def half_away(x: Fraction) -> int:
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


def wrap32(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def multiply(x: int, multiplier: int, shift: int) -> int:
    high = doubling_high_mul(wrap32(x << max(shift, 0)), multiplier, 32)
    return half_away(Fraction(high, 2 ** max(-shift, 0)))


@thorough
@given(INT32, INT32)
@example(-(2**31), -(2**31))
@example(-(2**31), 2**31 - 1)
@example(2**30, 1)
@example(-(2**30), 1)
def test_high_product_is_that_of_the_c_code(a, b):
    assert int(fp.saturating_rounding_doubling_high_mul(a, b)) == doubling_high_mul(a, b, 32)


@pytest.mark.parametrize("b", [-32768, -32767, -16385, -1, 0, 1, 3, 16384, 32767])
def test_16_bit_high_product_for_every_left_factor(b):
    a = np.arange(-32768, 32768)
    expected = [doubling_high_mul(int(v), b, 16) for v in a]
    assert fp.saturating_rounding_doubling_high_mul(a, b, bits=16).tolist() == expected


@pytest.mark.parametrize("exponent", range(16))
def test_division_rounds_halves_away_from_zero(exponent):
    x = np.arange(-32768, 32768)
    expected = [half_away(Fraction(int(v), 2**exponent)) for v in x]
    assert fp.rounding_divide_by_power_of_two(x, exponent).tolist() == expected


@thorough
@given(INT32, st.integers(0, 31))
def test_division_over_all_of_int32(x, exponent):
    assert int(fp.rounding_divide_by_power_of_two(x, exponent)) == half_away(Fraction(x, 2**exponent))


def test_division_of_16_bits_by_too_many_keeps_the_wrapped_mask_of_the_c_code():
    got = fp.rounding_divide_by_power_of_two([-32768, -1, 0, 1, 32767], 16, bits=16)
    assert got.tolist() == [-1, -1, 1, 1, 1]


@thorough
@given(INT32, MULTIPLIER, st.integers(-31, 31))
@example(-(2**31), 2**31 - 1, 0)
@example(2**31 - 1, 2**30, 31)
@example(1, 2**30, -1)
def test_multiply_rounds_twice(x, multiplier, shift):
    factor = fp.Multiplier(np.asarray(multiplier), np.asarray(shift))
    assert int(fp.multiply_by_quantized_multiplier(x, factor)) == multiply(x, multiplier, shift)


def test_two_roundings_differ_from_one():
    """x * m / 2**31 = 0.499... rounds to 1 of 2 first, and only then to 1: one rounding gives 0."""
    factor = fp.Multiplier(np.asarray(2**31 - 1), np.asarray(-1))
    assert int(fp.multiply_by_quantized_multiplier(1, factor)) == 1
    assert half_away(Fraction(2**31 - 1, 2**32)) == 0


def test_factors_broadcast_over_channels():
    factor = fp.quantize_multiplier([0.5, 0.25, 2.0])
    x = np.array([[4, 4, 4], [-3, 6, 7]])
    assert fp.multiply_by_quantized_multiplier(x, factor).tolist() == [[2, 1, 8], [-1, 2, 14]]  # -3 / 2: up


@thorough
@given(st.floats(2.0**-31, 2.0**30))
@example(1.0)
@example(float(np.nextafter(1.0, 0.0)))
@example(0.75 + 2.0**-33)
def test_quantize_multiplier_is_the_nearest_31_bit_factor(real):
    factor = fp.quantize_multiplier(real)
    multiplier, shift = int(factor.multiplier), int(factor.shift)
    assert 2**30 <= multiplier < 2**31
    error = abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) - Fraction(real))
    assert error <= Fraction(2) ** (shift - 32)


@pytest.mark.parametrize("real", [0.0, 2.0**-33, 1e-20, 5e-324])
def test_tiny_factors_are_zero(real):
    assert [int(v) for v in fp.quantize_multiplier(real)] == [0, 0]


@pytest.mark.parametrize(("real", "words"), [(np.nan, "nan"), (np.inf, "inf"), (2.0**31, "2.14748e\\+09")])
def test_factors_that_litert_cannot_hold_are_refused(real, words):
    with pytest.raises(ValueError, match=words):
        fp.quantize_multiplier([0.5, real])


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_wrap_is_twos_complement(bits):
    values = [0, 1, -1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), -(2 ** (bits - 1)) - 1, 2**bits, 3 * 2**bits + 5]
    expected = [(v + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for v in values]
    assert fp.wrap(values, bits).tolist() == expected


def test_round_half_away_as_c_does():
    x = np.array([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999999999999994, -0.49999999999999994, 2.0**52 + 1, -0.0])
    assert fp.round_half_away(x).tolist() == [1, -1, 2, 3, -3, 0, 0, 2.0**52 + 1, 0]
    assert fp.round_half_away(np.float32([8388609.0, 0.49999997])).tolist() == [8388609.0, 0.0]
    assert fp.round_half_away(np.float32(1.5)).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_half_away_of_every_kind_of_number(dtype):
    """Of any exponent, of halves and of the numbers beside them: never away from what a fraction of whole numbers says."""
    random = np.random.default_rng(0)
    halves = (random.integers(-(2**30), 2**30, 2000) / 2).astype(dtype)
    sizes = (2.0 ** random.uniform(-3, 60, 2000) * random.choice([-1, 1], 2000)).astype(dtype)
    x = np.concatenate([halves, sizes])
    x = np.concatenate([x, np.nextafter(x, dtype(0)), np.nextafter(x, dtype(2.0**62))])
    exact = [(-1 if value < 0 else 1) * int(abs(Fraction(float(value))) + Fraction(1, 2)) for value in x]
    assert [int(found) for found in fp.round_half_away(x)] == exact


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**20))
@thorough
def test_division_toward_zero(x, divisor):
    assert int(fp.divide_toward_zero(x, divisor)) == c_divide(x, divisor)


@pytest.mark.parametrize("exponent", [1, 5, 14])
def test_left_shift_saturates(exponent):
    x = np.arange(-32768, 32768)
    got = fp.saturating_left_shift(x, exponent, bits=16)
    limit = 2 ** (15 - exponent)
    assert (got[x > limit] == 32767).all()
    assert (got[x < -limit] == -32768).all()
    inside = np.abs(x) < limit
    assert (got[inside] == x[inside] * 2**exponent).all()


@pytest.mark.parametrize(
    ("activation", "scale", "zero_point", "expected"),
    [
        (None, 0.1, 5, (-128, 127)),
        ("relu", 0.1, 5, (5, 127)),
        ("relu", 0.1, -128, (-128, 127)),
        ("relu6", 6 / 255, -128, (-128, 127)),
        ("relu6", 0.1, -128, (-128, -68)),
        ("relu6", 0.04, 0, (0, 127)),
        ("relu6", 12.0, 3, (3, 4)),  # 6 / 12 is a half step: away from zero
        ("relu6", 12.001, 127, (127, 127)),
    ],
)
def test_activation_ranges(activation, scale, zero_point, expected):
    assert fp.activation_range(activation, scale, zero_point) == expected


def test_activation_errors_carry_values():
    with pytest.raises(ValueError, match="'elu' is unknown"):
        fp.activation_range("elu", 0.1, 0)
    with pytest.raises(ValueError, match="1e-12 needs 6e\\+12 steps"):
        fp.activation_range("relu6", 1e-12, 0)


@pytest.mark.parametrize("shape", [(5, 3, 4), (60, 1), (1, 2, 2, 7)])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("largest", [1e-6, 1.0, 1e6])
def test_large_sums_are_requantized_in_pieces(monkeypatch, shape, per_channel, largest):
    random = np.random.default_rng(0)
    total = random.integers(-(2**31), 2**31, shape).astype(np.int32)
    factor = fp.quantize_multiplier(largest * random.uniform(1e-3, 1, shape[-1] if per_channel else ()))
    whole = fp.requantize(total, factor, 3)
    slowly = fp.multiply_by_quantized_multiplier(total, factor) + 3
    np.testing.assert_array_equal(whole, np.clip(fp.wrap(slowly), -128, 127))
    monkeypatch.setattr(fp, "CACHED", 8)
    np.testing.assert_array_equal(fp.requantize(total, factor, 3), whole)


def test_requantize_saturates_and_wraps_where_int32_would():
    factor = fp.quantize_multiplier(1.0)
    assert fp.requantize([500, -500, 3], factor, 1, (-128, 127)).tolist() == [127, -128, 4]
    assert fp.requantize([2**31 - 1], factor, 127, (-128, 127)).tolist() == [126]  # 1.0 is 2**30 shifted left by 1
