"""Dynamic fixed point against a NumPy float64 oracle written from the format's definition."""

import json
import math

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from keras_lowbit import calibrate, freeze_ranges, layers, quantizers
from keras_lowbit.numerics import dynamic_fixed_point as dfp
from keras_lowbit.quantizers import DynamicFixedPoint

GOLDEN = np.float32([0.9, -0.5, 0.1, -0.05, 0.3, -1.2, 0, 0.7])
tensors = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-8, 8, width=16))
widths = st.integers(2, 8)


def oracle(values, bits, signed):
    """Codes I and exponent E of a tensor, in float64; the logarithm by frexp, which is exact."""
    values = np.asarray(values, np.float64)
    largest = np.abs(values).max()
    if largest == 0:
        return np.zeros(values.shape, int), 0
    top = math.frexp(largest)[1] - 1
    exponent = top - (bits - 2 if signed else bits - 1)
    low, high = (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return np.clip(np.round(values / 2.0**exponent), low, high).astype(int), exponent


def encode(values, bits=8, **options):
    """Integers I and exponent of a bare tensor."""
    found = DynamicFixedPoint(bits, **options).encode(np.asarray(values, np.float32), {})
    codes = np.asarray(found.codes) - np.asarray(found.zero_point)
    return codes.astype(int), int(np.log2(np.asarray(found.scale).reshape(())))


@pytest.mark.parametrize(
    ("values", "bits", "codes", "exponent"),
    [
        (GOLDEN, 8, (58, -32, 6, -3, 19, -77, 0, 45), -6),
        (GOLDEN, 4, (4, -2, 0, 0, 1, -5, 0, 3), -2),
        (np.abs(GOLDEN), 8, (115, 64, 13, 6, 38, 154, 0, 90), -7),
        ((1.999, 0.5, -1), 8, (127, 32, -64), -6),  # 128 is cut off
        ((0, 0, 0), 8, (0, 0, 0), 0),
    ],
)
def test_golden_vectors(values, bits, codes, exponent):
    found = encode(values, bits)
    np.testing.assert_array_equal(found[0], codes)
    assert found[1] == exponent


@given(bits=widths, values=tensors)
def test_equals_the_oracle(bits, values):
    codes, exponent = encode(values, bits)
    wanted, wanted_exponent = oracle(values, bits, signed=bool((values < 0).any()))
    np.testing.assert_array_equal(codes, wanted)
    assert exponent == wanted_exponent


@given(bits=widths, values=tensors, shift=st.integers(-90, 90))
def test_a_power_of_two_moves_only_the_exponent(bits, values, shift):
    codes, exponent = encode(values, bits)
    moved, moved_exponent = encode(values * np.float32(2.0**shift), bits)
    np.testing.assert_array_equal(moved, codes)
    assert not values.any() or moved_exponent == exponent + shift


@given(bits=widths, values=tensors)
def test_values_on_the_grid_stay_and_others_move_by_half_a_step_at_most(bits, values):
    quantizer = DynamicFixedPoint(bits, signed=True)
    once = np.asarray(quantizer(values))
    np.testing.assert_array_equal(np.asarray(quantizer(once)), once)
    codes, exponent = encode(values, bits, signed=True)
    np.testing.assert_array_equal(once, (codes * 2.0**exponent).astype(np.float32))  # exact in float32
    free = np.abs(values.astype(np.float64)) <= (2 ** (bits - 1) - 1) * 2.0**exponent
    assert (np.abs(once - values.astype(np.float64))[free] <= 2.0 ** (exponent - 1)).all()


def test_powers_by_comparison_are_exact_at_both_sides_of_every_octave():
    octaves = np.ldexp(np.float32(1), np.arange(-126, 128)).astype(np.float32)
    np.testing.assert_array_equal(dfp.floor_power(octaves), octaves)
    np.testing.assert_array_equal(dfp.floor_power(np.nextafter(octaves[1:], np.float32(0))), octaves[:-1])
    np.testing.assert_array_equal(dfp.ceil_power(octaves), octaves)
    np.testing.assert_array_equal(dfp.exponents(octaves), np.arange(-126, 128))
    with pytest.raises(ValueError, match="powers of two"):
        dfp.exponents(np.float32([0.3]))


def test_a_kernel_has_one_exponent_for_each_filter_or_for_the_layer():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32") * [1e-3, 1, 7, 0, 30]
    found = DynamicFixedPoint(8, granularity="channel").encode(kernel, {}, (-1,))
    assert found.scale.shape == (1, 1, 1, 5)
    assert found.zero_point == 0
    for index in range(5):
        codes, exponent = oracle(kernel[..., index].astype("float32"), 8, signed=True)
        np.testing.assert_array_equal(np.asarray(found.codes)[..., index], codes)
        assert float(found.scale[0, 0, 0, index]) == 2.0**exponent
    assert DynamicFixedPoint(8).encode(kernel, {}, (-1,)).scale.shape == (1, 1, 1, 1)
    positive = DynamicFixedPoint(8).encode(np.abs(kernel), {}, (-1,))  # a kernel is signed whatever it holds
    assert np.asarray(positive.codes).max() <= 127
    assert positive.zero_point == 0


@pytest.mark.parametrize(
    ("low", "high", "step", "zero_point"),
    [(0.0, 6.0, 2.0**-5, -128), (-1.0, 6.0, 2.0**-4, 0), (-9.0, 1.0, 2.0**-3, 0), (0.0, 0.0, 1.0, -128)],
)
def test_the_grid_of_an_activation(low, high, step, zero_point):
    state = {name: np.float32(value) for name, value in {"minimum": low, "maximum": high, "count": 1}.items()}
    assert [float(value) for value in DynamicFixedPoint(8).grid(state)] == [step, zero_point]


def test_an_activation_saturates_where_int8_does_and_gradients_stop_there():
    state = {"minimum": -1.0, "maximum": 1.9, "count": 1.0, "frozen": 1.0}
    state = {name: keras.ops.convert_to_tensor(np.float32(value)) for name, value in state.items()}
    real = np.float32([-9, -2, 0.3, 1.99, 9])
    quantizer = DynamicFixedPoint(8)
    found = quantizer.encode(real, state)
    np.testing.assert_array_equal(found.codes, [-128, -128, 19, 127, 127])
    np.testing.assert_array_equal(quantizer.gradient_mask(real, found), [False, True, True, False, False])
    assert quantizer.gradient_mask(real, quantizer.encode(real, {}, (-1,))) is None


def test_as_a_layers_kernel_and_range_it_holds_its_exponent_from_calibration_on():
    image = keras.Input((4,))
    hidden = layers.QuantActivation("relu", DynamicFixedPoint(8), name="range")(image)
    out = layers.QuantDense(3, kernel_quantizer=DynamicFixedPoint(8, granularity="channel"), name="dense")(hidden)
    model = keras.Model(image, out)
    dense, activation = model.get_layer("dense"), model.get_layer("range")
    assert dense.kernel_host.state == {}
    data = np.random.default_rng(1).uniform(0, 3, (32, 4)).astype("float32")
    ranges = calibrate(model, data, verbose=0)
    assert list(ranges) == ["range/output_quantizer"]
    before = float(activation.output_host.state["maximum"])
    model.compile("sgd", "mse")
    model.fit(data * 10, np.ones((32, 3)), verbose=0)
    assert float(activation.output_host.state["maximum"]) == before
    freeze_ranges(model, False)
    model.fit(data * 10, np.ones((32, 3)), verbose=0)
    assert float(activation.output_host.state["maximum"]) > before
    np.testing.assert_array_equal(dense.quantized_kernel(), dense.kernel_host.encode(dense.kernel).real)


def test_a_nan_weight_shows_in_its_filter():
    kernel = np.ones((5, 3), np.float32)
    kernel[1, 1] = np.nan
    real = np.asarray(DynamicFixedPoint(8, granularity="channel")(kernel, {}, (-1,)))
    assert np.isnan(real[:, 1]).any()
    assert np.isfinite(real[:, [0, 2]]).all()


@pytest.mark.parametrize("quantizer", [DynamicFixedPoint(), DynamicFixedPoint(4, granularity="channel", signed=True)])
def test_json_round_trip(quantizer):
    assert quantizers.deserialize(json.loads(json.dumps(quantizers.serialize(quantizer)))) == quantizer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 1}, "2 to 8 bits"),
        ({"granularity": "row"}, "'channel', 'tensor'"),
        ({"signed": False, "minimum": -1.0, "maximum": 1.0}, "Leave signed out"),
    ],
)
def test_wrong_arguments_say_what_to_give(arguments, words):
    with pytest.raises(ValueError, match=words):
        DynamicFixedPoint(**arguments)
