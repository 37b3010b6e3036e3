"""Each operation alone, on ugly inputs: zero elements differ from LiteRT's reference kernels."""

from dataclasses import replace

import numpy as np
import pytest

from keras_lowbit.deploy.graph import GraphBuilder, IntegerGraph, Node, Range
from keras_lowbit.deploy.litert import writer as litert
from keras_lowbit.deploy.reference.interpreter import run_reference, trace
from tests.support.litert_oracle import differing_elements, float_model, run_litert

POINTS = (-128, -1, 0, 127)
SHAPES = ((1, 1, 1), (1, 1, 7), (5, 4, 3), (7, 7, 1))
ALL_CODES = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)


def ugly(shape, seed=0):
    """A batch of five: all -128, all 127, corners at random, small codes, any codes."""
    random = np.random.default_rng(seed)
    return np.stack(
        [
            np.full(shape, -128, np.int8),
            np.full(shape, 127, np.int8),
            random.choice(np.array([-128, 127], np.int8), shape),
            random.integers(-2, 3, shape, np.int8),
            random.integers(-128, 128, shape, np.int8),
        ]
    )


def check(build, shape, grid=None, inputs=None, weights="int8"):
    """`build(builder, x)` gives the output; every tensor must equal LiteRT's."""
    builder = GraphBuilder()
    x = builder.input("x", shape, range=grid or Range(0.037, -5))
    graph = builder.build([build(builder, x)])
    images = ugly(shape) if inputs is None else inputs
    different = differing_elements(graph, {"x": images}, weights)
    assert not any(different.values()), f"{different}\n{graph}"
    return graph, images


def layer(shape, channels, seed=0, low=-127):
    random = np.random.default_rng(seed)
    codes = random.integers(low, -low + 1, shape).astype(np.int8)
    codes.flat[0] = low
    return codes, random.uniform(0.002, 0.02, channels), random.integers(-20000, 20000, channels)


@pytest.mark.parametrize("zero_point", POINTS)
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize(
    ("strides", "dilation", "padding", "groups"),
    [
        ((1, 1), (1, 1), "valid", 1),
        ((2, 3), (1, 1), "same", 1),
        ((1, 1), (2, 1), "same", 3),
        ((2, 2), (2, 2), "same", 6),
        ((2, 1), (1, 2), ((2, 0), (1, 3)), 2),
    ],
)
def test_conv2d(zero_point, activation, strides, dilation, padding, groups):
    codes, scales, bias = layer((3, 2, 6 // groups, 12), 12)
    check(
        lambda b, x: b.conv2d(
            x, codes, scales, bias, Range(0.11, zero_point), "y", strides, padding, dilation, groups, activation
        ),
        (7, 9, 6),
        Range(0.05, zero_point),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_conv2d(shape, multiplier):
    codes, scales, bias = layer((3, 3, shape[-1], multiplier), shape[-1] * multiplier)
    for strides, dilation in (((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))):
        check(
            lambda b, x, s=strides, d=dilation: b.depthwise_conv2d(
                x, codes, scales, bias, Range(0.05, -128), "y", s, "same", d, "relu6"
            ),
            shape,
        )


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 4), (4, 1)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1)])
def test_transpose_conv(padding, kernel, strides):
    codes, scales, bias = layer((*kernel, 3, 5), 3)
    check(lambda b, x: b.transpose_conv(x, codes, scales, bias, Range(0.1, 7), "y", strides, padding), (4, 3, 5))


def test_transpose_conv_of_another_output_size():
    codes, scales, bias = layer((3, 3, 2, 4), 2)
    check(lambda b, x: b.transpose_conv(x, codes, scales, bias, Range(0.1, 7), "y", (2, 2), "same", (7, 9)), (4, 5, 4))


@pytest.mark.parametrize("shape", [(9,), (5, 9), (3, 2, 9)])
@pytest.mark.parametrize("units", [1, 7])
def test_fully_connected(shape, units):
    codes, scales, bias = layer((9, units), units)
    check(lambda b, x: b.fully_connected(x, codes, scales, bias, Range(0.06, 11), "y", "relu"), shape)


def test_layers_without_bias():
    codes, scales, _ = layer((1, 1, 4, 4), 4)
    check(lambda b, x: b.conv2d(x, codes, scales, None, Range(0.06, 11), "y"), (3, 3, 4))


@pytest.mark.parametrize("weights", ["int4", "int2"])
def test_packed_weights_compute_the_same(weights):
    codes, scales, bias = layer((1, 1, 8, 6), 6, low=-1)

    def build(b, x):
        y = b.conv2d(x, codes, scales, bias, Range(0.007, 3), "conv")
        return b.fully_connected(y, codes[0, 0, :6, :5], scales[:5], bias[:5], Range(0.003, -20), "dense")

    check(build, (9, 9, 8), weights=weights)


@pytest.mark.parametrize("scales", [(0.1, 0.1, 0.1), (0.1, 0.0001, 0.05), (0.001, 0.3, 20.0), (0.3, 0.3, 1e-5)])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
@pytest.mark.parametrize("activation", [None, "relu6"])
def test_arithmetic(operation, scales, activation):
    everything = np.repeat(ALL_CODES, 4, axis=0)
    for i, other in enumerate(POINTS):
        constant = np.random.default_rng(i).integers(-128, 128, (16, 1), np.int8)
        check(
            lambda b, x, k=constant, z=other: getattr(b, operation)(
                x, b.constant("k", k, scales[1], z), Range(scales[2], -z - 1), "y", activation
            ),
            (16, 16, 1),
            Range(scales[0], other),
            everything,
        )


@pytest.mark.parametrize("constant", [(1,), (3,), (1, 1, 3), (5, 1, 1), (1, 5, 4, 3), (4, 1)])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_broadcasting(operation, constant):
    codes = np.random.default_rng(1).integers(-128, 128, constant, np.int8)
    check(lambda b, x: getattr(b, operation)(x, b.constant("k", codes, 0.02, 4), Range(0.08, 4), "y"), (5, 4, 3))
    check(lambda b, x: b.sub(b.constant("k", codes, 0.02, 4), x, Range(0.08, 4), "y"), (5, 4, 3))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 2), (5, 4)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_pooling(padding, size, strides):
    check(lambda b, x: b.max_pool2d(x, "y", size, strides, padding, "relu"), (5, 4, 3))
    check(lambda b, x: b.average_pool2d(x, "y", size, strides, padding, "relu6"), (5, 4, 3), Range(0.06, -90))


def test_average_pooling_rounds_halves_away_from_zero():
    """Two codes whose sum is odd: 2.5 gives 3, -2.5 gives -3, whatever the zero point."""
    pair = np.array([[2, 3], [-2, -3], [127, 126], [-128, -127]], np.int8).reshape(4, 1, 2, 1)
    graph, _ = check(lambda b, x: b.average_pool2d(x, "y", (1, 2)), (1, 2, 1), Range(1.0, 50), pair)
    assert run_reference(graph, pair).ravel().tolist() == [3, -3, 127, -128]


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)])
def test_mean(axes, keepdims):
    if len(axes) == 3 and not keepdims:
        keepdims = True
    for scale, zero_point in ((0.037, -5), (0.011, 127), (0.4, -128), (2e-4, 3)):
        check(lambda b, x, s=scale, z=zero_point: b.mean(x, Range(s, z), "y", axes, keepdims), (7, 5, 6))


@pytest.mark.parametrize("zero_point", POINTS)
def test_moving_codes(zero_point):
    grid = Range(0.2, zero_point)
    check(lambda b, x: b.pad(x, "y", [[1, 2], [0, 3], [2, 0]]), (3, 2, 4), grid)
    check(lambda b, x: b.reshape(x, "y", [4, -1]), (3, 2, 4), grid)
    check(lambda b, x: b.transpose(x, "y", [0, 3, 1, 2]), (3, 2, 4), grid)
    check(lambda b, x: b.strided_slice(x, "y", [0, 1, 0], [3, 2, 4], [2, 1, 3]), (3, 2, 4), grid)
    check(lambda b, x: b.concatenation([x, b.pad(x, "p", [[0, 0], [0, 0], [1, 1]]), x], "y", -1), (3, 2, 4), grid)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (10, 8), (13, 31), (300, 2)])
@pytest.mark.parametrize(("half_pixel", "aligned"), [(True, False), (False, False), (False, True)])
def test_resizing(size, half_pixel, aligned):
    check(lambda b, x: b.resize_nearest(x, "y", size, half_pixel, aligned), (5, 4, 3))
    check(lambda b, x: b.resize_bilinear(x, "y", size, half_pixel, aligned), (5, 4, 3))


@pytest.mark.parametrize("zero_point", POINTS)
@pytest.mark.parametrize("scale", [1e-5, 0.003, 0.0625, 0.11, 1.0, 7.3])
@pytest.mark.parametrize("function", ["logistic", "tanh"])
def test_tables(function, scale, zero_point):
    check(lambda b, x: getattr(b, function)(x, "y"), (16, 16, 1), Range(scale, zero_point), ALL_CODES)


@pytest.mark.parametrize("zero_point", POINTS)
@pytest.mark.parametrize("ratio", [1 / 40, 1 / 3, 1.0, 1.0001, 100.0])
def test_rectifiers_and_requantize(ratio, zero_point):
    grid, out = Range(0.04, 127 - abs(zero_point)), Range(0.04 * ratio, zero_point)
    for name in ("relu", "relu6", "hard_swish", "quantize"):
        check(lambda b, x, n=name: getattr(b, n)(x, out, "y"), (16, 16, 1), grid, ALL_CODES)
    for alpha in (0.0, 0.01, 0.3, 1.0, 2.5, -0.25):
        check(lambda b, x, a=alpha: b.leaky_relu(x, out, "y", a), (16, 16, 1), grid, ALL_CODES)


@pytest.mark.parametrize("exponent", range(-26, 14, 3))
def test_hard_swish_at_every_size_of_input(exponent):
    """The gate shifts left for large scales and right for small ones; 16 bits wrap at both ends."""
    scale = 1.37 * 2.0**exponent
    for out in (scale / 100, scale, scale * 300, scale * 2.0**12):
        check(lambda b, x, s=out: b.hard_swish(x, Range(s, -3), "y"), (16, 16, 1), Range(scale, 19), ALL_CODES)


@pytest.mark.parametrize("scale", [1e-6, 0.002, 0.05, 0.11, 0.7, 5.0, 500.0])
@pytest.mark.parametrize("shape", [(1,), (2,), (10,), (1000,), (3, 3, 6)])
def test_softmax(scale, shape):
    images = ugly(shape)
    rest = tuple(range(1, images.ndim))
    sums = np.exp(scale * (images - images.max(axis=-1, keepdims=True).astype(float))).sum(axis=-1, keepdims=True)
    survivable = (sums < 500).all(axis=rest)  # from 512 on, LiteRT's kernel ends the process
    if survivable.any():
        check(lambda b, x: b.softmax(x, "y"), shape, Range(scale, -3), images[survivable])


@pytest.mark.parametrize("classes", [512, 1000, 4097, 20000])
def test_softmax_goes_on_where_litert_ends_the_process(classes):
    builder = GraphBuilder()
    x = builder.input("x", (classes,), range=Range(0.05, 0))
    graph = builder.build([builder.softmax(x, "y")])
    images = ugly((classes,))
    power = np.exp(0.05 * (images - images.max(axis=1, keepdims=True).astype(float)))
    real = 256 * power / power.sum(axis=1, keepdims=True)
    assert np.abs(run_reference(graph, images) + 128.0 - real).max() < 0.75


def test_float_ends_equal_litert(tmp_path):
    """A float input is quantized, and a float output dequantized, as the file's QUANTIZE and DEQUANTIZE do."""
    codes, scales, bias = layer((3, 3, 2, 4), 4)
    builder = GraphBuilder()
    x = builder.input("x", (6, 6, 2), range=Range(0.1, 3))
    graph = builder.build([builder.conv2d(x, codes, scales, bias, Range(0.2, -9), "y")])
    content, _ = litert.to_bytes(graph, io="float32", batch_size=2)
    real = np.random.default_rng(0).normal(0, 8, (2, 6, 6, 2)).astype(np.float32)
    real.flat[:6] = [0.05, 0.15, -0.05, -0.25, 1e9, -1e9]  # halves, and far outside
    real = np.clip(real, -1e6, 1e6)
    theirs, ours = run_litert(content, {"x/float32": real}), trace(graph, real)
    assert np.array_equal(theirs["x"], ours["x"])
    assert np.array_equal(theirs["y"], ours["y"])
    assert np.array_equal(theirs["y/float32"], np.float32(0.2) * (ours["y"].astype(np.float32) + 9))


def test_float_subgraphs_run_in_float():
    def build(b, x):
        (y,) = b.float_subgraph([b.dequantize(x, "real")], float_model("COS", [(1, 2, 3)], (1, 2, 3)), "cos")
        return b.quantize(y, Range(0.008, 0), "y")

    builder = GraphBuilder()
    x = builder.input("x", (2, 3), range=Range(0.05, 0))
    graph = builder.build([build(builder, x)])
    images = ugly((2, 3))
    expected = [differing_elements(graph, {"x": images[i : i + 1]}) for i in range(5)]
    assert not any(any(d.values()) for d in expected)
    one_by_one = np.concatenate([run_reference(graph, images[i : i + 1]) for i in range(5)])
    assert np.array_equal(run_reference(graph, images), one_by_one)  # a float subgraph of batch 1 runs five times


def two_inputs():
    builder = GraphBuilder()
    first = builder.input("first", (3,), range=Range(0.1, 0))
    second = builder.input("second", (3,), range=Range(0.2, 1))
    total = builder.add(first, second, Range(0.3, 0), "total")
    return builder.build([total, builder.relu(first, Range(0.1, 0), "positive")])


def test_several_inputs_and_outputs_by_name_and_in_order():
    graph = two_inputs()
    first, second = ugly((3,), 1), ugly((3,), 2)
    by_name = run_reference(graph, {"second": second, "first": first})
    in_order = run_reference(graph, [first, second])
    assert [a.tolist() for a in by_name] == [a.tolist() for a in in_order]
    assert set(trace(graph, [first, second])) == {"first", "second", "total", "positive"}


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (np.zeros((2, 4), np.int8), ValueError, "the graph has"),
        ({"first": np.zeros((2, 3), np.int8)}, ValueError, r"\['first', 'second'\]"),
        ([np.zeros((2, 4), np.int8), np.zeros((2, 3), np.int8)], ValueError, r"\(2, 4\); expected \(batch, 3\)"),
        ([np.zeros((2, 3), np.int8), np.zeros((1, 3), np.int8)], ValueError, "different batch sizes"),
        ([np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.int8)], TypeError, "uint8; expected int8"),
        ([np.full((2, 3), np.nan), np.zeros((2, 3), np.int8)], ValueError, "6 of 6 values are NaN"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(images, error, words):
    with pytest.raises(error, match=words):
        run_reference(two_inputs(), images)


def test_errors_name_the_node():
    graph = two_inputs()
    broken = IntegerGraph(graph.tensors, (Node("frobnicate", "odd", ("first",), ("total",)),), graph.inputs, ("total",))
    with pytest.raises(ValueError, match="'odd' has the unknown operation 'frobnicate'; the reference knows add, "):
        run_reference(broken, [ugly((3,)), ugly((3,))])


@pytest.mark.parametrize(
    ("op", "scales", "words"),
    [
        ("add", {"y": 1e-8}, "'y': .* is 2\\*\\*19 or more times"),
        ("hard_swish", {"y": 1e-5}, "more than 1/128"),
        ("mul", {"y": 1e-13}, "below 2\\*\\*31"),
        ("softmax", {"x": 1e-8}, "the input scale is 1e-08"),
        ("relu6", {"y": 1e-10}, "6e\\+10 steps"),
    ],
)
def test_grids_that_litert_cannot_run_are_refused_also_where_nobody_validated(op, scales, words):
    builder = GraphBuilder()
    x = builder.input("x", (3,), range=Range(0.1, 0))
    inputs = {"add": (x, x), "mul": (x, x)}.get(op, (x,))
    getattr(builder, op)(*inputs, *(() if op == "softmax" else (Range(0.1, 0),)), "y")
    graph = builder.build(["y"])
    changed = {name: replace(graph.tensors[name], scale=np.float32(scale)) for name, scale in scales.items()}
    graph = IntegerGraph({**graph.tensors, **changed}, graph.nodes, graph.inputs, graph.outputs)
    with pytest.raises(ValueError, match=words):
        run_reference(graph, ugly((3,)))


@pytest.mark.parametrize("shape", [(7,), (3, 1), (2, 3, 9)])
def test_the_largest_codes_and_of_equal_ones_the_first(shape):
    k = min(4, shape[-1])
    graph, images = check(lambda b, x: b.top_k(x, "t", k)[1], shape)
    places = run_reference(graph, images)
    assert (places[0] == np.arange(k)).all()  # all codes are equal there
    for codes, found in zip(images[3].reshape(-1, shape[-1]), places[3].reshape(-1, k), strict=True):
        assert found.tolist() == sorted(range(shape[-1]), key=lambda i: (-int(codes[i]), i))[:k]
