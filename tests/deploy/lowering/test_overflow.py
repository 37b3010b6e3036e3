"""Codes that do not fit int8: what each policy makes of them, and that export counts, tells and verifies it."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_lowbit as klb
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.lowering.int8_overflow import fit_int8, policy_of, total
from keras_lowbit.keras_graph.variables import to_numpy
from keras_lowbit.quantizers import PowerOfTwo, Quantized
from keras_lowbit.recipes import Recipe, Rule
from tests.support.lowering_zoo import ZOO, case, trained

kl = keras.layers
ALTERING = ("least_error", "saturate", "drop_lowest")
FIVE = Recipe("five", (Rule(PowerOfTwo(5)),), klb.quantizers.ActivationRange())


def powers(seed, filters=6, size=40):
    """int16 codes 0 and +-1 .. +-128 of filters (last axis), of which the first has both ends, the last fits."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1, 1], (size, filters)) * 2 ** rng.integers(0, 8, (size, filters))
    codes[rng.random((size, filters)) < 0.2] = 0
    codes[:2, 0] = 1, -128
    codes[:, -1] = np.where(np.abs(codes[:, -1]) == 128, 64, codes[:, -1])
    scale = rng.uniform(0.01, 1, (1, filters)).astype(np.float32)
    return Quantized(codes.astype(np.int16), scale)


def best_error(codes, step):
    """The smallest squared error of int8 codes of that step, every code tried for every weight."""
    choices = np.arange(-127, 128, dtype=np.float64) * step
    return np.square(codes[:, None] - choices).min(axis=1).sum()


@given(st.integers(0, 10_000), st.sampled_from(ALTERING))
def test_filters_that_fit_stay_and_the_others_are_nearest_on_their_grid(seed, policy):
    weights = powers(seed)
    fitted, found = fit_int8(weights, (-1,), policy, "d")
    codes = weights.codes.astype(np.float64)
    steps = fitted.scale[0] / weights.scale[0]
    assert fitted.codes.dtype == np.int8
    assert fitted.codes.min() >= -127
    assert set(np.unique(steps)) <= {1, 2}
    for channel in range(codes.shape[1]):
        ours, real = codes[:, channel], fitted.codes[:, channel] * steps[channel].astype(np.float64)
        error = np.square(real - ours).sum()
        if np.abs(ours).max() <= 127:
            np.testing.assert_array_equal(real, ours)
            assert steps[channel] == 1
            continue
        np.testing.assert_array_equal(np.sign(real), np.sign(ours))
        candidates = {"saturate": [1], "drop_lowest": [2], "least_error": [1, 2]}[policy]
        assert error == min(best_error(ours, step) for step in candidates)
        assert error == best_error(ours, steps[channel])
    moved = fitted.codes * steps != codes
    coarse = np.broadcast_to(steps == 2, codes.shape)
    assert (found.saturated, found.rounded) == ((moved & ~coarse).sum(), (moved & coarse).sum())
    assert found.altered == moved.sum()
    assert (found.weights, found.filters) == (codes.size, codes.shape[1])
    assert found.filters_halved == (steps == 2).sum()
    assert found.filters_saturated == (moved & ~coarse).any(axis=0).sum()
    before, after = codes * weights.scale.astype(np.float64), fitted.codes * fitted.scale.astype(np.float64)
    assert found.relative_error == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-9)


def test_what_becomes_of_both_ends_by_hand():
    weights = Quantized(np.int16([[1, 1], [-128, 128], [64, 128], [0, 2], [-1, 4]]), np.float32([[0.5, 0.25]]))
    saturated, _ = fit_int8(weights, (-1,), "saturate", "d")
    np.testing.assert_array_equal(saturated.codes, [[1, 1], [-127, 127], [64, 127], [0, 2], [-1, 4]])
    np.testing.assert_array_equal(saturated.scale, [[0.5, 0.25]])
    dropped, _ = fit_int8(weights, (-1,), "drop_lowest", "d")
    np.testing.assert_array_equal(dropped.codes, [[1, 1], [-64, 64], [32, 64], [0, 1], [-1, 2]])
    np.testing.assert_array_equal(dropped.scale, [[1.0, 0.5]])
    best, found = fit_int8(weights, (-1,), "least_error", "d")  # one 128 against two 1, then two 128 against one 1
    np.testing.assert_array_equal(best.codes[:, 0], saturated.codes[:, 0])
    np.testing.assert_array_equal(best.codes[:, 1], dropped.codes[:, 1])
    assert (found.saturated, found.rounded, found.filters_saturated, found.filters_halved) == (1, 1, 1, 1)
    assert str(found) == (
        "2 of 10 weights altered to fit int8 (1 saturated in 1 and 1 rounded in 1 of 2 filters), relative error 0.66 %"
    )


def test_equally_good_saturates():
    weights = Quantized(np.int16([[1], [128]]), np.float32(1))
    np.testing.assert_array_equal(fit_int8(weights, (-1,), "least_error", "d")[0].codes, [[1], [127]])


@given(st.integers(0, 1000), st.integers(128, 32_767))
def test_any_codes_fit(seed, largest):
    codes = np.random.default_rng(seed).integers(-largest, largest + 1, (9, 3)).astype(np.int16)
    codes[0] = largest
    fitted, _ = fit_int8(Quantized(codes, np.float32(1)), (-1,), "drop_lowest", "d")
    step = fitted.scale[0, 0]
    assert np.log2(step) % 1 == 0
    assert (np.abs(codes - fitted.codes * step) <= step / 2).all()
    assert largest * 2 / step + 0.5 >= 128 or step == 1  # half the step would not do


def test_codes_that_fit_are_left_alone():
    weights = Quantized(np.int8([[1], [64]]), np.float32(1))
    assert fit_int8(weights, (-1,), "error", "d") == (weights, None)


def test_refusals():
    weights = powers(0)
    with pytest.raises(
        ValueError, match=r"'d' has filters whose codes reach from 1 to 128.*int8_exact=True.*least_error"
    ):
        fit_int8(weights, (-1,), "error", "d")
    with pytest.raises(
        ValueError, match=r"overflow='clip'; choose one of 'least_error', 'saturate', 'drop_lowest', 'err"
    ):
        fit_int8(weights, (-1,), "clip", "d")


@pytest.mark.parametrize("noted", [None, {}, {"overflow": 3}, {"overflow": {}}, {"overflow": {"policy": "clip"}}])
def test_a_file_that_notes_no_policy_has_the_default(noted):
    assert policy_of(noted) == "least_error"


# ------------------------------------------------------------------------------------------------ whole models


def spread(model, rng):
    """Kernels whose filters hold both ends of the 5-bit grid: some more of the upper, some more of the lower."""
    for layer in model._flatten_layers():
        if getattr(layer, "kernel", None) is not None:
            shape = layer.kernel.shape
            exponents = rng.choice([0, 0, -3, -7], shape)
            exponents[..., ::2] = rng.choice([0, -2, -7, -7], shape)[..., ::2]
            layer.kernel.assign(rng.choice([-1, 1], shape) * 2.0**exponents)


def five_bits(name):
    """A case of the zoo at 5 bits, calibrated, and its data."""
    model, data = trained(ZOO[name]) if isinstance(name, str) else trained(name)
    stock = klb.dequantize(model)
    spread(stock, np.random.default_rng(5))
    quantized, _ = klb.quantize_model(stock, FIVE)
    klb.calibrate(quantized, data, verbose=0)
    return quantized, data


LAYERS = (
    "conv2d groups",
    "conv1d causal",
    "depthwise multiplier",
    "transpose same",
    "norm after conv",
    "dense 3-d",
    "shared",
)


@pytest.mark.parametrize("policy", ALTERING)
@pytest.mark.parametrize("name", LAYERS)
def test_the_file_holds_the_altered_weights_and_verifies(name, policy, tmp_path):
    model, data = five_bits(name)
    with pytest.warns(UserWarning, match=r"layers? with codes beyond 127: .* weights altered to fit int8"):
        report = klb.export_litert(model, tmp_path / "m.tflite", overflow=policy)
    assert report.overflows
    assert all(found.altered > 0 for found in report.overflows.values())
    noted = litert.read_metadata(tmp_path / "m.tflite")["overflow"]
    assert noted["policy"] == policy
    assert set(noted["layers"]) == set(report.overflows)
    parity = klb.verify(model, tmp_path / "m.tflite", data)
    assert parity.ok, parity
    assert parity.codes_equal
    assert parity.reference_equal is True
    assert parity.overflows == report.overflows
    assert "weights altered to fit int8" in str(parity)


def test_the_report_counts_by_layer_and_in_total(tmp_path):
    model, _ = five_bits(case(lambda: kl.Conv2D(4, 3, name="conv"), lambda: kl.Dense(5, name="head")))
    with pytest.warns(UserWarning, match="altered") as caught:
        report = klb.export_litert(model, tmp_path / "m.tflite")
    every, lines = total(report.overflows), str(report).splitlines()
    assert every.altered == sum(found.altered for found in report.overflows.values())
    assert every.weights == 3 * 3 * 4 * 4 + 4 * 5
    assert f"conv: {report.overflows['conv']}" in lines
    assert f"head: {report.overflows['head']}" in lines
    assert lines[-1] == str(caught[0].message)
    assert lines[-1].startswith(f"2 layers with codes beyond 127: {every.altered} of {every.weights} weights altered")
    norms = [found.squared_norm for found in report.overflows.values()]
    errors = [found.relative_error**2 for found in report.overflows.values()]
    assert every.relative_error == pytest.approx(np.sqrt(np.dot(errors, norms) / sum(norms)))


def test_layers_are_compared_as_stored_and_the_whole_as_trained(tmp_path):
    """Filters of many 1 and a 128 on an input that is always 0: rounding 1 to 2 doubles every output."""
    inputs = keras.Input((16,))
    model = keras.Model(inputs, kl.Dense(3, use_bias=False, name="head")(inputs))
    kernel = np.full((16, 3), 2.0**-7)
    kernel[0] = 1
    model.get_layer("head").kernel.assign(kernel)
    quantized, _ = klb.quantize_model(model, FIVE)
    rows = np.random.default_rng(0).uniform(0.5, 1, (8, 16)).astype("float32")
    rows[:, 0] = 0
    klb.calibrate(quantized, rows, verbose=0)
    real = np.asarray(quantized(rows))
    with pytest.warns(UserWarning, match="45 rounded in 3 of 3 filters"):
        klb.export_litert(quantized, tmp_path / "m.tflite", overflow="drop_lowest")
    parity = klb.verify(quantized, tmp_path / "m.tflite", rows)
    assert parity.ok
    assert parity.max_layer_steps <= 1
    assert parity.max_output_steps > 30
    np.testing.assert_array_equal(np.asarray(quantized(rows)), real)  # verify puts the weights back
    with pytest.warns(UserWarning, match="3 saturated in 3 and 0 rounded"):
        klb.export_litert(quantized, tmp_path / "m.tflite")
    parity = klb.verify(quantized, tmp_path / "m.tflite", rows)
    assert parity.ok
    assert parity.max_output_steps <= 1


def test_a_model_that_changed_since_export_is_noticed(tmp_path):
    model, data = five_bits("dense 3-d")
    with pytest.warns(UserWarning, match="altered"):
        klb.export_litert(model, tmp_path / "m.tflite", overflow="saturate")
    layer = next(layer for layer in model.layers if hasattr(layer, "kernel"))
    kernel = to_numpy(layer.kernel)
    largest = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    kernel[largest] *= -1
    layer.kernel.assign(kernel)
    assert not klb.verify(model, tmp_path / "m.tflite", data).codes_equal


def test_lower_warns_too_and_error_refuses_before_a_file_is_written(tmp_path):
    model, _ = five_bits("dense 3-d")
    with pytest.warns(UserWarning, match="altered to fit int8"):
        graph = klb.deploy.lower(model)
    assert graph.metadata["overflow"]["policy"] == "least_error"
    for call in (
        lambda **o: klb.export_litert(model, tmp_path / "m.tflite", **o),
        lambda **o: klb.deploy.lower(model, **o),
    ):
        with pytest.raises(ValueError, match="reach from 1 to 128"):
            call(overflow="error")
        with pytest.raises(ValueError, match="overflow='none'; choose one of"):
            call(overflow="none")
    assert not (tmp_path / "m.tflite").exists()
    assert klb.summary(model).file_bytes > 0


def test_seven_magnitudes_fit_every_kernel(tmp_path):
    model, data = trained(ZOO["norm after conv"])
    stock = klb.dequantize(model)
    spread(stock, np.random.default_rng(5))
    exact = FIVE.replace(plan=(Rule(PowerOfTwo(5, int8_exact=True)),))
    quantized, _ = klb.quantize_model(stock, exact)
    klb.calibrate(quantized, data, verbose=0)
    report = klb.export_litert(quantized, tmp_path / "m.tflite", overflow="error")
    assert report.overflows == {}
    assert "overflow" not in litert.read_metadata(tmp_path / "m.tflite")
    assert klb.verify(quantized, tmp_path / "m.tflite", data).ok
