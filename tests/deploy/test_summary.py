"""`klb.summary`: figures that can be worked out by hand, and the size of a file that is really written."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from tests.support.lowering_zoo import ZOO, case, trained

kl = keras.layers

SMALL = case(
    lambda: kl.Conv2D(8, 3, padding="same", strides=2, use_bias=False, name="conv"),
    lambda: kl.BatchNormalization(name="norm"),
    lambda: kl.ReLU(),
    lambda: kl.DepthwiseConv2D(3, name="deep"),
    lambda: kl.Conv2DTranspose(4, 2, strides=2, name="up"),
    lambda: kl.GlobalAveragePooling2D(),
    lambda: kl.Dense(5, name="head"),
    recipe=klb.recipes.Recipe(
        "mixed",
        (klb.recipes.Rule(klb.quantizers.Binary(), layers="conv"), klb.recipes.Rule(klb.quantizers.Uniform(8))),
        klb.quantizers.ActivationRange(),
    ),
    shape=(10, 12, 3),
    arguments={"overrides": {"head": None}},
)


@pytest.fixture(scope="module")
def found():
    keras.utils.set_random_seed(0)
    model, _ = trained(SMALL)
    return model, klb.summary(model)


def test_bits_parameters_bytes_and_macs_by_hand(found):
    rows = {row.path: row for row in found[1].layers}
    assert list(rows) == ["conv", "norm", "deep", "up", "head"]
    assert (rows["conv"].weight_bits, rows["conv"].activation_bits) == (1, 8)
    assert rows["conv"].parameters == 3 * 3 * 3 * 8
    assert rows["conv"].kilobytes == pytest.approx(216 / 8 / 1000)
    assert rows["conv"].macs == 216 * 5 * 6  # output 5 x 6
    assert (rows["norm"].weight_bits, rows["norm"].parameters, rows["norm"].macs) == (32, 4 * 8, 0)
    assert rows["deep"].macs == 3 * 3 * 8 * 3 * 4
    assert rows["deep"].kilobytes == pytest.approx((72 + 4 * 8) / 1000)
    assert rows["up"].macs == 2 * 2 * 4 * 8 * 3 * 4  # each input pixel meets the whole kernel
    assert (rows["head"].weight_bits, rows["head"].parameters, rows["head"].macs) == (32, 4 * 5 + 5, 20)


def test_totals_and_text(found):
    summary = found[1]
    assert summary.parameters == sum(row.parameters for row in summary.layers)
    assert summary.kilobytes == pytest.approx(sum(row.kilobytes for row in summary.layers))
    assert summary.macs == sum(row.macs for row in summary.layers)
    for words in ("weight bits", "QuantConv2DTranspose", "total", f"{summary.file_bytes:,} bytes"):
        assert words in str(summary)


@pytest.mark.parametrize("weights", ["int8", "int4", "int2", "auto"])
def test_file_size_is_that_of_the_file(weights, tmp_path):
    model, _ = trained(ZOO["conv2d 1x1 ternary"])
    report = klb.export_litert(model, tmp_path / "m.tflite", weights=weights)
    assert klb.summary(model, weights=weights).file_bytes == report.size_bytes == (tmp_path / "m.tflite").stat().st_size


def test_size_is_known_before_calibration(tmp_path):
    model = klb.quantize_model(ZOO["conv2d"].make(), "int8")[0]
    before = klb.summary(model).file_bytes
    klb.calibrate(model, np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32), verbose=0)
    assert before == pytest.approx(klb.export_litert(model, tmp_path / "m.tflite").size_bytes, abs=64)


def test_float_model_has_no_file_and_says_why():
    summary = klb.summary(ZOO["dense 2-d"].make())
    assert summary.file_bytes is None
    assert "none: 'm' has no quantized layer" in str(summary)
    assert [row.weight_bits for row in summary.layers] == [32]


def test_variable_size_has_no_macs_but_parameters():
    model, _ = trained(ZOO["variable size"])
    summary = klb.summary(model)
    assert summary.macs is None
    assert summary.parameters == 3 * 3 * 4 * 4 + 4
    assert klb.summary(model, input_shapes={"x": (8, 6, 4)}).file_bytes > 0
