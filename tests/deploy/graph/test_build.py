"""The builder: shapes, and a clear refusal of everything that no back end could run exactly."""

import numpy as np
import pytest

from keras_lowbit.deploy.graph import GraphBuilder, Range

GRID = Range(0.1, -3)
OUT = Range(0.3, 5)


@pytest.fixture
def b():
    builder = GraphBuilder()
    builder.input("x", (7, 9, 8), range=GRID)
    return builder


def kernel(*shape):
    return np.ones(shape, np.int8)


def shape_of(b, name):
    return b.tensor(name).shape[1:]


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (5, 7, 4)),
        ({"padding": "same"}, (7, 9, 4)),
        ({"padding": "same", "strides": (2, 3)}, (4, 3, 4)),
        ({"strides": (2, 3)}, (3, 3, 4)),
        ({"dilation": (2, 3)}, (3, 3, 4)),
        ({"padding": ((1, 0), (2, 1)), "strides": (2, 2)}, (3, 5, 4)),
    ],
)
def test_convolution_shapes(b, arguments, shape):
    name = b.conv2d("x", kernel(3, 3, 8, 4), np.ones(4), None, OUT, "y", **arguments)
    assert shape_of(b, name) == shape


def test_explicit_padding_is_its_own_node(b):
    b.conv2d("x", kernel(3, 3, 8, 4), np.ones(4), None, OUT, "y", padding=((1, 0), (2, 1)))
    graph = b.build(["y"])
    assert [(n.op, n.name) for n in graph.nodes] == [("pad", "y/pad"), ("conv2d", "y")]
    assert graph.nodes[0].attributes["paddings"] == [[1, 0], [2, 1], [0, 0]]
    assert graph.tensors["y/pad"].range == graph.tensors["x"].range


def test_missing_bias_is_zeros_on_the_bias_grid(b):
    b.conv2d("x", kernel(1, 1, 8, 2), np.array([0.5, 0.25]), None, OUT, "y")
    bias = b.tensor("y/bias")
    np.testing.assert_array_equal(bias.data, np.zeros(2, np.int32))
    np.testing.assert_array_equal(bias.scale, np.float32(0.1) * np.array([0.5, 0.25], np.float32))


def test_shapes_of_the_other_operations(b):
    for name, shape in {
        b.depthwise_conv2d("x", kernel(3, 3, 8, 2), np.ones(16), None, OUT, "dw"): (5, 7, 16),
        b.conv2d("x", kernel(3, 3, 4, 6), np.ones(6), None, OUT, "grouped", groups=2): (5, 7, 6),
        b.transpose_conv("x", kernel(3, 2, 5, 8), np.ones(5), None, OUT, "up", (2, 2), "same"): (14, 18, 5),
        b.transpose_conv("x", kernel(3, 2, 5, 8), np.ones(5), None, OUT, "upv", (2, 2)): (15, 18, 5),
        b.transpose_conv("x", kernel(3, 2, 5, 8), np.ones(5), None, OUT, "upo", (2, 2), "same", (13, 17)): (13, 17, 5),
        b.fully_connected("x", kernel(8, 3), np.ones(3), None, OUT, "dense"): (7, 9, 3),
        b.add("x", b.constant("c", kernel(9, 1), 0.1), OUT, "add"): (7, 9, 8),
        b.concatenation(["x", "x"], "cat"): (7, 9, 16),
        b.max_pool2d("x", "max", (2, 3)): (3, 3, 8),
        b.average_pool2d("x", "avg", (2, 2), (3, 3), "same"): (3, 3, 8),
        b.mean("x", OUT, "mean"): (8,),
        b.mean("x", OUT, "kept", (-1,), keepdims=True): (7, 9, 1),
        b.pad("x", "pad", [(1, 2), (0, 0), (3, 0)]): (10, 9, 11),
        b.reshape("x", "reshape", (9, -1)): (9, 56),
        b.transpose("x", "transpose", (0, 3, 1, 2)): (8, 7, 9),
        b.strided_slice("x", "slice", (1, -5, 0), (None, 8, 8), (2, 1, 3)): (3, 4, 3),
        b.resize_bilinear("x", "bilinear", (14, 3)): (14, 3, 8),
        b.softmax("x", "softmax"): (7, 9, 8),
    }.items():
        assert shape_of(b, name) == shape, name


def test_fixed_and_kept_ranges(b):
    assert b.tensor(b.softmax("x", "s")).range == Range(1 / 256, -128)
    assert b.tensor(b.logistic("x", "l")).range == Range(1 / 256, -128)
    assert b.tensor(b.tanh("x", "t")).range == Range(1 / 128, 0)
    assert b.tensor(b.max_pool2d("x", "m")).range == b.tensor("x").range


def conv(b, **change):
    arguments = {"codes": kernel(3, 3, 8, 4), "scales": np.ones(4), "bias": np.zeros(4, np.int32), "out": OUT} | change
    b.conv2d("x", name="y", **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.full((3, 3, 8, 4), -128)}, "kernel has the code -128 .*from -127 to 127"),
        ({"codes": np.full((3, 3, 8, 4), 128)}, "kernel has the code 128"),
        ({"codes": np.full((3, 3, 8, 4), 0.5)}, "kernel has the code 0.5 .*whole numbers"),
        ({"codes": np.full((3, 3, 8, 4), np.nan)}, "kernel has the code nan"),
        ({"codes": kernel(3, 3, 7, 4)}, r"kernel \(3, 3, 7, 4\) with groups=1 does not fit 8 input channels"),
        ({"codes": kernel(3, 3, 8)}, "needs 4 axes"),
        ({"codes": kernel(8, 3, 8, 4)}, "window of 8 .*does not fit into size 7.*use padding 'same'"),
        ({"scales": np.array([1, np.nan, 1, 1])}, "kernel has scale nan in channel 1"),
        ({"scales": np.zeros(4)}, "kernel has scale 0.0 in channel 0 .4 bad of 4."),
        ({"scales": np.ones(3), "bias": np.zeros(3)}, r"4 output channels, weight scales of shape \(3,\)"),
        ({"scales": np.full(4, 5e-38)}, r"bias \(input scale \* weight scale\) has scale"),
        ({"bias": np.full(4, 2.0**31)}, "bias has the code 2147483648.0.*larger weight scale"),
        ({"bias": np.full(4, np.inf)}, "bias has the code inf"),
        ({"bias": np.full(4, 2**31 - 1)}, "int32 sum of channel 0 could reach"),
        ({"out": Range(float("nan"), 0)}, "'y' has scale nan"),
        ({"out": Range(1.0, 300)}, "zero point 300"),
        ({"out": Range(1.0, 0.5)}, "zero point 0.5: expected a whole number"),
        ({"activation": "tanh"}, "activation 'tanh': expected None or 'relu' or 'relu6'"),
        ({"padding": "full"}, "padding 'full'"),
        ({"padding": (1, 1, 1)}, "expected 'same', 'valid' or"),
        ({"groups": 3}, "groups=3 does not fit 8 input channels"),
    ],
)
def test_unsound_convolutions_are_refused_and_leave_no_trace(b, change, message):
    with pytest.raises(ValueError, match=message):
        conv(b, **change)
    conv(b)  # the name is still free
    b.build(["y"])


def test_concatenation_names_both_tensors_when_ranges_differ(b):
    b.input("other", (7, 9, 2), range=Range(0.2, -3))
    with pytest.raises(ValueError, match=r"'other' has scale 0\.2.* and 'cat' has scale 0\.1.*requantize 'other'"):
        b.concatenation(["x", "other"], "cat")
    b.concatenation(["x", b.quantize("other", GRID, "requantized")], "cat")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda b: b.add("x", "missing", OUT, "y"), "no tensor is named 'missing'; known: x"),
        (lambda b: b.add("x", b.constant("c", kernel(3), 0.1), OUT, "y"), "do not broadcast: axes of 8 and 3"),
        (lambda b: b.add("x", b.input("z", (8,), range=GRID), OUT, "y"), "same number of axes"),
        (lambda b: b.add("x", b.constant("c", kernel(2, 7, 9, 8), 0.1), OUT, "y"), "size 1 on the batch axis"),
        (
            lambda b: b.add(b.constant("c", kernel(8), 0.1), b.constant("d", kernel(8), 0.1), OUT, "y"),
            "do not broadcast",
        ),
        (lambda b: b.input("x", (3,), range=GRID), "already named 'x'"),
        (lambda b: b.input("z", (3,)), "int8 needs a range"),
        (lambda b: b.concatenation([], "y"), "at least one"),
        (lambda b: b.concatenation(["x", "x"], "y", 0), "axis 0 .*the batch"),
        (lambda b: b.mean("x", OUT, "y", (0,)), "numbers from 1 to 3"),
        (lambda b: b.pad("x", "y", [(1, 1)]), "3 axes after the batch"),
        (lambda b: b.pad("x", "y", [(1, 1), (0, -1), (0, 0)]), ">= 0"),
        (lambda b: b.reshape("x", "y", (5, 5)), "504 elements"),
        (lambda b: b.reshape("x", "y", (5, -1)), "cannot reshape"),
        (lambda b: b.transpose("x", "y", (1, 0, 2, 3)), "0 .the batch. first"),
        (lambda b: b.strided_slice("x", "y", (0, 0, 0), (1, 1, 1), (1, 1, -1)), "strides of at least 1"),
        (lambda b: b.strided_slice("x", "y", (3, 0, 0), (2, 1, 1)), "0 <= begin < end <= size"),
        (lambda b: b.resize_nearest("x", "y", (0, 3)), "at least 1"),
        (lambda b: b.leaky_relu("x", OUT, "y", float("nan")), "alpha nan"),
        (
            lambda b: b.transpose_conv("x", kernel(3, 3, 5, 8), np.ones(5), None, OUT, "y", (2, 2), "same", (99, 18)),
            "output_shape",
        ),
        (lambda b: b.fully_connected("x", kernel(9, 2), np.ones(2), None, OUT, "y"), "does not fit the last axis"),
        (
            lambda b: b.softmax(b.input("f", (3,), dtype="float32"), "y"),
            "dtype float32: expected int8 or int16; put quantize",
        ),
        (lambda b: b.float_subgraph(["x"], b"not a model at all", "y"), "not a .tflite model"),
        (lambda b: b.float_subgraph(["x"], b"\x1c\x00\x00\x00TFL3 and nothing", "y"), "damaged .tflite model"),
        (lambda b: b.build(["missing"]), "all tensors of the graph"),
        (lambda b: b.build([]), "at least one"),
        (lambda b: b.build(["x", "x"]), "expected at least one, all different"),
    ],
)
def test_refusals_say_what_is_wrong(b, build, message):
    with pytest.raises(ValueError, match=message):
        build(b)


def test_largest_bias_that_fits_is_accepted(b):
    """One weight of 1 and zero point -3 adds at most 130 to the bias code."""
    codes = np.zeros((1, 1, 8, 1), np.int8)
    codes[0, 0, 0, 0] = 1
    b.conv2d("x", codes, np.ones(1), np.array([2**31 - 1 - 130]), OUT, "most")
    with pytest.raises(ValueError, match="could reach 2,147,483,648"):
        b.conv2d("x", codes, np.ones(1), np.array([2**31 - 130]), OUT, "more")


@pytest.mark.parametrize(
    ("scale_in", "scale_out", "build", "message"),
    [
        (1, 1 / 256, lambda b, out: b.conv2d("x", kernel(1, 1, 8, 2), np.ones(2), None, out, "y"), "values below 256"),
        (1, 2.0**-16, lambda b, out: b.mean("x", out, "y"), "values below 65536"),
        (1, 2.0**-19, lambda b, out: b.add("x", "x", out, "y"), "values below 524288"),
        (1, 2.0**-19, lambda b, out: b.sub("x", b.constant("c", kernel(8), 0.1), out, "y"), "values below 524288"),
        (1, 1 / 128, lambda b, out: b.hard_swish("x", out, "y"), "values below 128"),
        (1, 2e-9, lambda b, out: b.relu6("x", out, "y"), "6 / output scale is 3e[+]09"),
        (1, 2e-9, lambda b, out: b.mul("x", "x", out, "y", activation="relu6"), "6 / output scale is 3e[+]09"),
        (2.0**-26, 1, lambda b, out: b.softmax("x", "y"), "scale 1.49e-08: LiteRT needs more"),
    ],
)
def test_ranges_that_end_or_mislead_litert_are_refused(scale_in, scale_out, build, message):
    def builder(scale):
        b = GraphBuilder()
        b.input("x", (7, 9, 8), range=Range(scale, 0))
        return b

    with pytest.raises(ValueError, match=message):
        build(builder(scale_in), Range(scale_out, 0))
    build(builder(scale_in * 2 if scale_in < 1 else scale_in), Range(scale_out * 2, 0))


def test_the_largest_codes_have_places_of_their_own(b):
    assert b.top_k("x", "t", 3) == ("t", "t/output_1")
    values, places = b.tensor("t"), b.tensor("t/output_1")
    assert values.shape == places.shape == (None, 7, 9, 3)
    assert (values.range, values.dtype) == (b.tensor("x").range, "int8")
    assert (places.scale, places.dtype) == (None, "int32")
    with pytest.raises(
        ValueError, match=r"top_k 'u': k 9 does not fit shape .*: expected 1 to the size of the last axis"
    ):
        b.top_k("x", "u", 9)
