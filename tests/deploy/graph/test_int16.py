"""int16 activations in the integer graph: one type of codes, biases as wide as the sums, what LiteRT cannot run."""

import numpy as np
import pytest

from keras_lowbit.deploy.graph import GraphBuilder, Range

WIDE = Range(2.0**-12, 0, "int16")
ONES = np.ones(4, np.float32)


def kernel(*shape, code=127):
    return np.full(shape, code, np.int8)


@pytest.fixture
def b():
    builder = GraphBuilder()
    builder.input("x", (5, 5, 4), range=WIDE)
    builder.input("narrow", (5, 5, 4), range=Range(0.1, 3))
    return builder


def bias_of(builder, name):
    return builder.tensor(f"{name}/bias").dtype


def test_a_bias_is_int32_where_it_holds_every_sum_and_int64_elsewhere(b):
    out = Range(1.0, 0, "int16")
    b.conv2d("x", kernel(3, 3, 4, 4), ONES, None, out, "small")  # 36 * 127 * 2**15 is below 2**31
    b.conv2d("x", kernel(5, 5, 4, 4), ONES, None, out, "fits")
    b.pad("x", "wide", [(6, 6), (6, 6), (0, 0)])
    b.conv2d("wide", kernel(12, 12, 4, 4), ONES, None, out, "large")  # 576 * 127 * 2**15 is not
    b.conv2d("x", kernel(3, 3, 4, 4), ONES, np.full(4, 2**31), out, "biased")
    b.depthwise_conv2d("x", kernel(3, 3, 4, 1), ONES, None, out, "depthwise")  # LiteRT's takes int64 alone
    b.fully_connected("x", kernel(4, 4), ONES, None, out, "dense")
    assert [bias_of(b, name) for name in ("small", "fits", "dense")] == ["int32"] * 3
    assert [bias_of(b, name) for name in ("large", "biased", "depthwise")] == ["int64"] * 3
    b.fully_connected("narrow", kernel(4, 4), ONES, None, Range(1.0, 0), "int8")
    assert bias_of(b, "int8") == "int32"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda b: b.input("z", (3,), range=Range(0.1, 1, "int16")),
            "zero point 1: expected -128 to 127 for int8, else 0",
        ),
        (lambda b: b.add("x", "narrow", WIDE, "y"), "'narrow' is int8.*put quantize between"),
        (lambda b: b.relu("x", Range(0.1, 0), "y"), "codes of two types"),
        (lambda b: b.concatenation(["x", "narrow"], "y"), "codes of two types"),
        (lambda b: b.hard_swish("x", WIDE, "y"), "'x' of dtype int16: expected int8"),
        (lambda b: b.argmax("x", "y"), "'x' of dtype int16: expected int8"),
        (lambda b: b.table("x", np.zeros(256), WIDE, "y"), r"shape \(256,\): expected .* shape \(65536,\)"),
        (
            lambda b: b.logistic(b.input("z", (3,), range=Range(6.0, 0, "int16")), "y"),
            "input scale is 6: LiteRT takes values",
        ),
        (lambda b: b.add("x", "x", Range(2.0**-27, 0, "int16"), "y"), "below 16384"),
        (lambda b: b.mean(b.input("z", (300, 300, 1), range=WIDE), WIDE, "y"), "number of averaged codes is 90000"),
        (
            lambda b: b.conv2d("x", kernel(3, 3, 4, 4), ONES * 1000, None, Range(0.001, 0, "int16"), "y"),
            "below 128",
        ),
        (
            lambda b: b.fully_connected("x", kernel(4, 4), ONES, np.full(4, 2**47), WIDE, "y"),
            "bias beyond int64 needs a larger weight scale",
        ),
        (
            lambda b: b.fully_connected("x", kernel(4, 4), ONES, np.full(4, 2**47 - 1), WIDE, "y"),
            "the int64 sum of channel 0 could reach",
        ),
    ],
)
def test_refusals_say_what_is_wrong(b, make, message):
    with pytest.raises(ValueError, match=message):
        make(b)


def test_quantize_converts_between_the_types_and_fixed_ranges_follow_them(b):
    assert b.tensor(b.quantize("x", Range(0.5, -7), "to_int8")).range == Range(0.5, -7)
    assert b.tensor(b.quantize("narrow", WIDE, "to_int16")).range == WIDE
    unit = Range(2.0**-15, 0, "int16")
    assert [b.tensor(getattr(b, name)("x", name)).range for name in ("softmax", "logistic", "tanh")] == [unit] * 3
    assert b.tensor(b.max_pool2d("x", "pool")).range == WIDE
