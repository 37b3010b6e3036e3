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
    assert rows["conv"].file_bytes == 216 + 4 * 8  # int8 codes, int32 biases
    assert rows["conv"].macs == 216 * 5 * 6  # output 5 x 6
    assert (rows["norm"].weight_bits, rows["norm"].parameters, rows["norm"].macs) == (32, 4 * 8, 0)
    assert rows["norm"].file_bytes == 0  # in conv's scales and biases
    assert rows["deep"].macs == 3 * 3 * 8 * 3 * 4
    assert rows["deep"].file_bytes == 72 + 4 * 8
    assert rows["up"].macs == 2 * 2 * 4 * 8 * 3 * 4  # each input pixel meets the whole kernel
    assert (rows["head"].weight_bits, rows["head"].parameters, rows["head"].macs) == (32, 4 * 5 + 5, 20)
    assert rows["head"].file_bytes == 4 * rows["head"].parameters  # it runs in float


def test_totals_and_text(found):
    summary = found[1]
    assert summary.parameters == sum(row.parameters for row in summary.layers)
    assert summary.file_bytes == sum(row.file_bytes for row in summary.layers) + summary.overhead_bytes
    assert 0 < summary.overhead_bytes < summary.file_bytes
    assert summary.macs == sum(row.macs for row in summary.layers)
    for words in ("weight bits", "QuantConv2DTranspose", "total", f"{summary.file_bytes:,} bytes"):
        assert words in str(summary)


ARGUMENTS = [
    {},
    *({"weights": kind} for kind in ("int8", "int4", "int2", "auto")),
    {"weights": "int2", "io": "float32", "batch_size": 3},
    {"labels": list("abcdefgh"), "normalization": (127.5, [20.0, 22.0, 24.0, 26.0])},
]


@pytest.fixture(scope="module")
def pointwise():
    return trained(ZOO["conv2d 1x1 ternary"])[0]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_file_size_is_that_of_the_file_with_the_same_arguments(pointwise, arguments, tmp_path):
    report = klb.export_litert(pointwise, tmp_path / "m.tflite", **arguments)
    found = klb.summary(pointwise, **arguments)
    assert found.file_bytes == report.size_bytes == (tmp_path / "m.tflite").stat().st_size
    assert found.layers[0].file_bytes == report.rows[0].weight_bytes + 4 * 8
    assert not found.is_estimate
    assert f"{found.file_bytes:,} bytes, as export_litert(model, path" in str(found)


def test_the_size_with_packed_weights_stands_beside_that_with_int8(pointwise, tmp_path):
    """Who has written an int2 file and asks for a summary finds its size, and under which argument."""
    size = klb.export_litert(pointwise, tmp_path / "m.tflite", weights="int2").size_bytes
    found = klb.summary(pointwise)
    assert found.smaller_files["int2"] == size < found.file_bytes
    assert f", {size:,} with weights='int2'" in str(found)
    assert klb.summary(pointwise, weights="int2").smaller_files == {}


def test_size_is_estimated_before_calibration(tmp_path):
    model = klb.quantize_model(ZOO["conv2d"].make(), "int8")[0]
    before = klb.summary(model)
    assert before.is_estimate
    assert f"about {before.file_bytes:,} bytes, as export_litert(model, path) writes it once it is calibrated" in str(
        before
    )
    klb.calibrate(model, np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32), verbose=0)
    assert before.file_bytes == pytest.approx(klb.export_litert(model, tmp_path / "m.tflite").size_bytes, abs=64)


def test_layers_that_share_their_weights_count_them_once(tmp_path):
    model, _ = trained(ZOO["shared"])
    found = klb.summary(model)
    assert found.file_bytes == klb.export_litert(model, tmp_path / "m.tflite").size_bytes
    assert [row.file_bytes for row in found.layers if row.path == "conv"] == [3 * 3 * 4 * 5 + 2 * 4 * 5]  # two biases


def test_unknown_arguments_are_refused(pointwise):
    with pytest.raises(TypeError, match="batchsize"):
        klb.summary(pointwise, batchsize=3)


def test_float_model_has_no_file_and_says_why():
    summary = klb.summary(ZOO["dense 2-d"].make())
    assert summary.file_bytes is None
    assert "none: 'm' has no quantized layer" in str(summary)
    assert [(row.weight_bits, row.file_bytes) for row in summary.layers] == [(32, None)]


def test_variable_size_has_no_macs_but_parameters():
    model, _ = trained(ZOO["variable size"])
    summary = klb.summary(model)
    assert summary.macs is None
    assert summary.parameters == 3 * 3 * 4 * 4 + 4
    assert klb.summary(model, input_shapes={"x": (8, 6, 4)}).file_bytes > 0
