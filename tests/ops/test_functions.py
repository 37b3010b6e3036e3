"""The integer layers against plain loops in NumPy, on every ISA target of this machine and on the fallback."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_lowbit import ops
from keras_lowbit.numerics import requantization as fp
from keras_lowbit.ops import tf_fallback
from tests.support.integer_layers import convolve


@pytest.fixture(params=ops.available_kernels())
def kernel(request):
    """Each ISA target and the fallback in turn."""
    with ops.using_kernel(request.param):
        assert ops.active_kernel() == request.param
        yield request.param


def codes(rng, shape, fill="random"):
    fills = {"low": -128, "high": 127, "alternating": np.where(np.arange(np.prod(shape)) % 2, -128, 127).reshape(shape)}
    return np.broadcast_to(fills[fill] if fill in fills else rng.integers(-128, 128, shape), shape).astype(np.int8)


CASES = [
    # images, window and channels, outputs, strides, padding, dilations, groups
    ((1, 5, 6, 4), (3, 3), 8, (1, 1), "SAME", (1, 1), 1),
    ((2, 7, 5, 3), (3, 3), 65, (2, 2), "SAME", (1, 1), 1),
    ((1, 9, 9, 5), (2, 4), 64, (1, 2), "VALID", (2, 1), 1),
    ((1, 4, 4, 64), (1, 1), 63, (1, 1), "VALID", (1, 1), 1),
    ((1, 4, 4, 65), (1, 1), 129, (2, 1), "VALID", (1, 1), 1),
    ((1, 6, 6, 6), (3, 3), 9, (1, 1), ((2, 0), (1, 3)), (1, 1), 3),
    ((3, 1, 1, 17), (1, 1), 16, (1, 1), "SAME", (1, 1), 1),
    ((0, 5, 6, 4), (3, 3), 8, (1, 1), "SAME", (1, 1), 1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}x{case[2]}")
@pytest.mark.parametrize("fill", ["random", "low", "high", "alternating"])
@pytest.mark.parametrize("size", [None, 4, 5])
def test_ternary_convolution_equals_loops(kernel, case, fill, size):
    shape, window, outputs, strides, padding, dilations, groups = case
    rng = np.random.default_rng(len(fill) + outputs)
    inputs = shape[3] // groups
    ternary = rng.integers(-1, 2, (*window, inputs, outputs)).astype(np.int8)
    ternary[..., -1] = 0
    clusters = -(-inputs // min(size or inputs, inputs))
    scales = None if size is None else rng.integers(0, 128, (clusters, outputs))
    packed = ops.pack_ternary(ternary, scales, size, groups)
    images = codes(rng, shape, fill)
    got = ops.clustered_ternary_conv2d(
        images, packed, input_zero_point=-128, strides=strides, padding=padding, dilations=dilations
    )
    assert got.dtype == tf.int32
    expected = convolve(images, ops.unpack(packed), -128, strides, padding, dilations, groups)
    np.testing.assert_array_equal(got, expected)


def test_snippet(kernel):
    rng = np.random.default_rng(0)
    x_int8 = rng.integers(-128, 128, (1, 8, 8, 16)).astype(np.int8)
    weights, scales = rng.integers(-1, 2, (3, 3, 16, 32)), rng.integers(1, 128, (4, 32))
    packed = ops.pack_ternary(weights, scales, cluster_size=4)
    y = ops.clustered_ternary_conv2d(x_int8, packed, input_zero_point=-128, strides=1, padding="SAME")
    np.testing.assert_array_equal(y, convolve(x_int8, ops.unpack(packed), -128, padding="SAME"))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 63), (64, 64), (65, 65), (300, 10)])
@pytest.mark.parametrize("kind", ["ternary", "int8", "clustered"])
def test_dense_equals_a_product(kernel, inputs, outputs, kind):
    rng = np.random.default_rng(inputs)
    weights = rng.integers(-1, 2, (inputs, outputs))
    packed = {
        "ternary": lambda: ops.pack_ternary(weights),
        "int8": lambda: ops.pack_int8(rng.integers(-127, 128, (inputs, outputs))),
        "clustered": lambda: ops.pack_ternary(weights, rng.integers(0, 128, (-(-inputs // 16), outputs)), 16),
    }[kind]()
    for shape in ((inputs,), (1, inputs), (5, inputs), (2, 3, inputs)):
        x = rng.integers(-128, 128, shape).astype(np.int8)
        expected = (x.astype(np.int64) - 3) @ ops.unpack(packed).astype(np.int64)
        np.testing.assert_array_equal(ops.ternary_dense(x, packed, input_zero_point=3), expected)


@pytest.mark.parametrize("zero_point", [-128, 0, 127])
def test_wide_dense_layers_sum_to_the_end_of_int32(kernel, zero_point):
    """70,000 inputs, every code at its furthest; what is added and taken off on the way may be more than int32 holds."""
    weights = np.random.default_rng(2).integers(-127, 128, (70_000, 2))
    weights[:, 0] = np.where(np.arange(70_000) < 66_311, 127, -127)
    x = np.concatenate([np.where(up, 127, -128) for up in (weights.T > 0, weights.T < 0)]).astype(np.int8)
    expected = (x.astype(np.int64) - zero_point) @ weights
    assert 2**29 < np.abs(expected).max() < 2**31
    np.testing.assert_array_equal(ops.ternary_dense(x, ops.pack_int8(weights), input_zero_point=zero_point), expected)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (0, 2))])
@pytest.mark.parametrize(("channels", "multiplier"), [(5, 1), (16, 1), (33, 2)])
def test_depthwise_equals_loops(kernel, strides, padding, channels, multiplier):
    rng = np.random.default_rng(channels)
    weights = rng.integers(-127, 128, (3, 2, channels, multiplier)).astype(np.int8)
    images = rng.integers(-128, 128, (2, 7, 6, channels)).astype(np.int8)
    got = ops.int8_depthwise_conv2d(
        images, weights, input_zero_point=7, strides=strides, padding=padding, dilations=(1, 2)
    )
    grouped = weights.reshape(3, 2, 1, channels * multiplier)
    expected = convolve(images, grouped, 7, strides, padding, (1, 2), groups=channels)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("rounding", ["twice", "once"])
def test_requantization_equals_the_fixed_point_reference(kernel, rounding):
    rng = np.random.default_rng(5)
    packed = ops.pack_ternary(rng.integers(-1, 2, (24, 70)))
    x = rng.integers(-128, 128, (40, 24)).astype(np.int8)
    bias = rng.integers(-500, 500, 70).astype(np.int32)
    real = 2.0 ** rng.uniform(-12, 2, 70)
    factor = fp.quantize_multiplier(real)
    total = (x.astype(np.int64) + 3) @ ops.unpack(packed).astype(np.int64) + bias
    if rounding == "twice":
        output = ops.Requantize(factor.multiplier, factor.shift, zero_point=-3, low=-100, high=90)
        expected = fp.requantize(total, factor, -3, (-100, 90))
    else:
        output = ops.Requantize(factor=real, zero_point=-3, low=-100, high=90)
        expected = np.clip(fp.round_half_away(total * real) - 3, -100, 90)
    got = ops.ternary_dense(x, packed, input_zero_point=-3, bias=bias, output=output)
    assert got.dtype == tf.int8
    np.testing.assert_array_equal(got, expected)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_every_int32_is_requantized_as_the_reference_does(totals, seed):
    rng = np.random.default_rng(seed)
    totals = np.repeat(np.array([*totals, -(2**31), 2**31 - 1, 0, 1, -1])[:, None], 6, axis=1)
    factor = fp.quantize_multiplier(2.0 ** rng.uniform(-31, 30, 6))
    got = tf_fallback.apply_epilogue(
        ops.Requantize(factor.multiplier, factor.shift, zero_point=5), tf.constant(totals, tf.int32)
    )
    np.testing.assert_array_equal(got, fp.requantize(totals, factor, 5))


def test_float_output_is_one_product(kernel):
    rng = np.random.default_rng(6)
    packed = ops.pack_ternary(rng.integers(-1, 2, (1, 1, 24, 70)))
    x = rng.integers(-128, 128, (1, 3, 3, 24)).astype(np.int8)
    scale = rng.uniform(0.001, 0.1, 70).astype(np.float32)
    got = ops.clustered_ternary_conv2d(x, packed, output=ops.Rescale(scale, low=-0.5, high=2.0))
    expected = np.clip(convolve(x, ops.unpack(packed), 0).astype(np.float32) * scale, np.float32(-0.5), np.float32(2))
    np.testing.assert_array_equal(got, expected)


def test_residual_addition_is_litert_add(kernel):
    from keras_lowbit.deploy.graph import GraphBuilder, Range
    from keras_lowbit.deploy.reference.interpreter import run_reference

    rng = np.random.default_rng(8)
    builder = GraphBuilder()
    a, b = (builder.input(name, (3, 3, 70), range=r) for name, r in (("a", Range(0.11, 5)), ("b", Range(0.07, -9))))
    graph = builder.build([builder.add(a, b, Range(0.2, 4), "y", "relu")])
    x = rng.integers(-128, 128, (1, 3, 3, 24)).astype(np.int8)
    other = rng.integers(-128, 128, (1, 3, 3, 70)).astype(np.int8)
    packed = ops.pack_ternary(rng.integers(-1, 2, (1, 1, 24, 70)))
    output = ops.Requantize(*fp.quantize_multiplier(0.05), zero_point=5)
    codes_ = ops.clustered_ternary_conv2d(x, packed, output=output)
    expected = run_reference(graph, {"a": np.array(codes_), "b": other})
    grid = 2 * np.float64(np.float32(0.11))
    pairs = [
        tuple(int(v) for v in fp.quantize_multiplier(real))
        for real in (0.5, np.float64(np.float32(0.07)) / grid, grid / (2.0**20 * np.float64(np.float32(0.2))))
    ]
    residual = ops.ResidualAdd(other, *pairs, zero_point=-9, output_zero_point=4, low=4)
    got = ops.clustered_ternary_conv2d(x, packed, output=output, residual=residual)
    np.testing.assert_array_equal(got, expected)


def test_works_inside_a_function_of_unknown_sizes(kernel):
    packed = ops.pack_ternary(np.random.default_rng(0).integers(-1, 2, (3, 3, 4, 8)))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4], tf.int8)])
    def run(x):
        return ops.clustered_ternary_conv2d(x, packed, input_zero_point=9, strides=2, padding="SAME")

    for size in ((1, 5, 6, 4), (2, 8, 3, 4)):
        x = np.random.default_rng(1).integers(-128, 128, size).astype(np.int8)
        np.testing.assert_array_equal(run(x), convolve(x, ops.unpack(packed), 9, (2, 2), "SAME"))


X = np.zeros((1, 4, 4, 4), np.int8)
PACKED = ops.pack_ternary(np.ones((3, 3, 4, 4), np.int8))


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, "expected int8 codes", {"images": X.astype(np.float32)}),
        (ValueError, "expected rank 4", {"images": X[0]}),
        (ValueError, "expected 4 channels", {"images": X[..., :3]}),
        (TypeError, "expected the result of pack_ternary", {"packed": np.ones((3, 3, 4, 4))}),
        (ValueError, "from -128 to 127", {"input_zero_point": 128}),
        (ValueError, "from -128 to 127", {"input_zero_point": 0.5}),
        (ValueError, "strides is 0", {"strides": 0}),
        (ValueError, "dilations is", {"dilations": (1, 0)}),
        (ValueError, "'SAME', 'VALID' or", {"padding": "CAUSAL"}),
        (ValueError, "'SAME', 'VALID' or", {"padding": ((-1, 0), (0, 0))}),
        (TypeError, "expected None", {"output": "int8"}),
        (ValueError, "give output=Requantize", {"residual": ops.ResidualAdd(X, (1, 0), (1, 0), (1, 0))}),
    ],
)
def test_wrong_arguments_are_refused_in_words(error, words, arguments):
    given_ = {"images": X, "packed": PACKED} | arguments
    with pytest.raises(error, match=words):
        ops.clustered_ternary_conv2d(**given_)
