import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_lowbit.quantizers import ActivationRange, AdjustableThreshold, DynamicFixedPoint, LearnedStep
from tests.support import oracle

RNG = np.random.default_rng(5)
BITS = range(2, 9)


def state(minimum=0.0, maximum=0.0, count=0.0, frozen=0.0):
    values = {"minimum": minimum, "maximum": maximum, "count": count, "frozen": frozen}
    return {name: ops.convert_to_tensor(np.float32(value)) for name, value in values.items()}


def observe(quantizer, batches, start=None):
    current = start or state()
    for batch in batches:
        current = {**current, **quantizer.observe(ops.convert_to_tensor(np.float32(batch)), current)}
    return {name: float(value) for name, value in current.items()}


def quantize(quantizer, real, current=None):
    return ops.convert_to_numpy(quantizer(ops.convert_to_tensor(np.float32(real)), current, (), True))


def test_values_pass_through_bit_for_bit_before_there_is_a_range():
    real = RNG.normal(size=(4, 5)).astype("float32")
    np.testing.assert_array_equal(quantize(ActivationRange(), real, state()), real)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("limits", [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (2.0, 5.0), (-5.0, -2.0)])
def test_codes_and_reals_are_the_oracles(bits, limits):
    real = RNG.normal(size=200) * 4
    quantizer, current = ActivationRange(bits), state(*limits, count=1)
    quantized = quantizer.encode(np.float32(real), current)
    scale, zero_point = float(quantized.scale), float(quantized.zero_point)
    assert scale == pytest.approx(oracle.affine(*limits, bits)[0], rel=1e-6)
    steps = real.astype(np.float32).astype(float) / scale
    want = np.clip(np.round(steps) + zero_point, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    clear = np.abs(steps % 1 - 0.5) > 1e-4  # away from ties of float32
    np.testing.assert_array_equal(ops.convert_to_numpy(quantized.codes)[clear], want[clear])
    np.testing.assert_allclose(
        quantize(quantizer, real, current)[clear], (scale * (want - zero_point))[clear], rtol=1e-6
    )


@pytest.mark.parametrize("bits", BITS)
def test_zero_is_exact_and_its_code_is_an_int8(bits):
    for low, high in RNG.normal(size=(50, 2)) * 10:
        quantizer, current = ActivationRange(bits), state(min(low, high), max(low, high), count=1)
        quantized = quantizer.encode(np.float32([0.0]), current)
        assert -(2 ** (bits - 1)) <= float(quantized.zero_point) <= 2 ** (bits - 1) - 1
        np.testing.assert_array_equal(quantized.codes, [quantized.zero_point])
        np.testing.assert_array_equal(quantize(quantizer, [0.0, -0.0], current), [0.0, 0.0])


@pytest.mark.parametrize("limits", [(0.0, 0.0), (1e-45, 1e-45), (0.0, 1e-42), (-1e30, 1e30), (0.0, 3e38)])
def test_degenerate_ranges_stay_finite(limits):
    real = np.float32([-1e30, -1, 0, 1e-30, 1, 1e30])
    on_grid = quantize(ActivationRange(), real, state(*limits, count=1))
    assert np.isfinite(on_grid).all()
    assert on_grid[2] == 0


def test_average_starts_from_the_first_batch():
    batches = [[-1.0, 3.0], [-2.0, 5.0], [0.5, 1.0]]
    got = observe(ActivationRange(momentum=0.9), batches)
    low, high = -1.0, 3.0
    for keep, batch in zip([2 / 11, 3 / 12], batches[1:], strict=True):
        low, high = keep * low + (1 - keep) * min(batch), keep * high + (1 - keep) * max(batch)
    assert got["minimum"] == pytest.approx(low, rel=1e-6)
    assert got["maximum"] == pytest.approx(high, rel=1e-6)
    assert got["count"] == 3


def test_young_average_follows_the_batches_and_an_old_one_keeps_its_momentum():
    for count, keep in [(1, 2 / 11), (8, 9 / 18), (80, 81 / 90), (81, 0.9), (1000, 0.9)]:
        got = observe(ActivationRange(momentum=0.9), [[-2.0, 4.0]], state(-1, 1, count=count))
        assert got["minimum"] == pytest.approx(-2 + keep, rel=1e-6)
        assert got["maximum"] == pytest.approx(4 - 3 * keep, rel=1e-6)
    # What the warm-up is for: ten batches of a range ten times wider leave less than a percent of the old one.
    followed = observe(ActivationRange(), [[0.0, 10.0]] * 10, state(0, 1, count=1))
    assert followed["maximum"] == pytest.approx(10, rel=0.01)


def test_hold_only_widens():
    batches, start = [[-1, 3], [-0.5, 5], [-9, 0]], state(-1, 3, count=100)  # old enough for its full momentum
    got = observe(ActivationRange(momentum=0.5, hold=True), batches[1:], start)
    assert got["minimum"] == -5.0
    assert got["maximum"] == 4.0
    narrower = observe(ActivationRange(momentum=0.5), batches[1:], start)
    assert narrower["maximum"] == 2.0
    assert observe(ActivationRange(hold=True), batches)["maximum"] >= 3 + 9 / 11 * 2 - 1e-6


def test_frozen_ranges_do_not_move():
    start = state(-1, 2, count=5, frozen=1)
    assert observe(ActivationRange(), [[-100, 100]], start) == {"minimum": -1, "maximum": 2, "count": 5, "frozen": 1}


@pytest.mark.parametrize("batch", [[], [np.nan, 1.0], [1.0, np.nan], [np.inf, 0.0], [-np.inf]], ids=repr)
def test_empty_and_non_finite_batches_change_nothing(batch):
    start = state(-1, 2, count=5)
    assert observe(ActivationRange(), [batch], start) == {"minimum": -1, "maximum": 2, "count": 5, "frozen": 0}
    assert observe(ActivationRange(), [batch])["count"] == 0


def test_a_nan_value_stays_nan():
    on_grid = quantize(ActivationRange(), [0.5, np.nan], state(-1, 1, count=1))
    np.testing.assert_array_equal(np.isnan(on_grid), [False, True])


def test_fixed_range_needs_no_state_and_observes_nothing():
    quantizer = ActivationRange(minimum=0.0, maximum=6.0)
    assert quantizer.observe(np.float32([9.0]), {}) == {}
    on_grid = quantize(quantizer, [-3.0, 0.0, 2.0, 9.0], None)
    step = 6.0 / 255
    np.testing.assert_allclose(on_grid, [0, 0, np.round(2 / step) * step, 6.0], rtol=1e-6)


def gradient(quantizer, real, upstream, current):
    real = tf.constant(np.float32(real))
    with tf.GradientTape() as tape:
        tape.watch(real)
        on_grid = quantizer(real, current, (), True)
    return tape.gradient(on_grid, real, output_gradients=tf.constant(upstream)).numpy()


@pytest.mark.parametrize("quantizer", [ActivationRange(minimum=-1.0, maximum=2.0), ActivationRange()])
def test_gradient_passes_inside_the_grid_on_its_ends_and_not_outside(quantizer):
    current = None if quantizer.has_static_range else state(-1, 2, count=1)
    quantized = quantizer.encode(np.float32([-1e9, 1e9]), current or {})
    low, high = ops.convert_to_numpy(quantized.real)
    real = np.float32(
        [-9, np.nextafter(low, np.float32(-9)), low, -0.3, 0, 1, high, np.nextafter(high, np.float32(9)), 9]
    )
    upstream = RNG.normal(size=real.shape).astype("float32")
    passes = np.array([0, 0, 1, 1, 1, 1, 1, 0, 0], bool)
    np.testing.assert_array_equal(gradient(quantizer, real, upstream, current), np.where(passes, upstream, 0))


def test_gradient_passes_everywhere_before_there_is_a_range():
    real, upstream = RNG.normal(size=(2, 20)).astype("float32") * 100
    np.testing.assert_array_equal(gradient(ActivationRange(), real, upstream, state()), upstream)


@pytest.mark.parametrize("limits", [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (2.0, 5.0), (-5e-3, 1e-3)])
def test_sixteen_bits_are_symmetric_and_float32_holds_every_code(limits):
    quantizer, current = ActivationRange(16), state(*limits, count=1)
    real = RNG.uniform(-1.1, 1.1, 20000) * max(map(abs, limits))
    quantized = quantizer.encode(np.float32(real), current)
    scale, codes = float(quantized.scale), ops.convert_to_numpy(quantized.codes)
    assert scale == pytest.approx(max(map(abs, limits)) / 32767, rel=1e-6)
    assert float(quantized.zero_point) == 0
    steps = real.astype(np.float32).astype(float) / scale
    want = np.clip(np.round(steps), -(2**15), 2**15 - 1)
    clear = np.abs(steps % 1 - 0.5) > 2.0**-8  # float32 rounds a quotient of up to 2**15 steps by 2**-9 of one
    np.testing.assert_array_equal(codes[clear], want[clear])
    on_grid = quantize(quantizer, real, current)
    np.testing.assert_array_equal(quantize(quantizer, on_grid, current), on_grid)


@pytest.mark.parametrize(("minimum", "maximum"), [(0.0, 32767 / 32768), (-32767 / 32768, 32767 / 32768)])
def test_the_sixteen_bit_range_of_a_sigmoid_or_tanh_is_exactly_that_of_litert(minimum, maximum):
    for compiled in (False, True):
        grid = tf.function(ActivationRange(16, minimum=minimum, maximum=maximum).grid, jit_compile=compiled)
        assert [float(value) for value in grid({})] == [2.0**-15, 0.0]


@pytest.mark.parametrize("bits", [1, 9, 15, 17, 32, 8.0, True])
def test_other_bits_are_refused_with_those_that_there_are(bits):
    with pytest.raises(ValueError, match=r"needs 2 to 8 bits.*16, LiteRT's 16x8 mode"):
        ActivationRange(bits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdjustableThreshold(ActivationRange(16)), "ActivationRange\\(16\\) itself"),
        (lambda: LearnedStep(ActivationRange(16)), "ActivationRange\\(16\\) itself"),
        (lambda: DynamicFixedPoint(16), "For 16-bit activations use ActivationRange"),
    ],
)
def test_quantizers_that_have_no_sixteen_bits_name_the_one_that_has(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_room_below_leaves_the_lowest_codes_to_what_is_less_than_all_values():
    current = state(-1.0, 3.0, count=1)
    plain, roomy = ActivationRange(), ActivationRange().with_room_below(10.0)
    assert roomy == ActivationRange(room_below=10.0)
    low, high = (float(end) for end in roomy.ends(current))
    assert (low, high) == (-11.0, 3.0)
    codes = roomy.encode(np.float32([-1e9, -11.0, -1.0, 3.0]), current).codes
    assert np.asarray(codes).tolist() == [-128, -128, 54, 127]
    assert np.asarray(plain.encode(np.float32([-1e9, -1.0]), current).codes).tolist() == [-128, -128]
    fixed = ActivationRange(minimum=0.0, maximum=1.0)
    assert fixed.with_room_below(10.0) == fixed
    with pytest.raises(ValueError, match=r"room_below of at least 0, got -1"):
        ActivationRange(room_below=-1.0)
