"""Every operation and every weight container, as LiteRT runs them."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import OpResolverType

from keras_lowbit.deploy.litert.format_choice import plan_formats
from keras_lowbit.deploy.litert.weight_formats import WeightFormat, as_written, pack_codes
from keras_lowbit.deploy.litert.writer import to_bytes
from keras_lowbit.deploy.reference.interpreter import run_reference
from tests.support.litert_cases import OPERATIONS, OUT, RESOLVERS, SHAPE, biases, codes, graph_of, model_of, run, scales


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_operation_equals_the_numpy_reference(name, batch_size):
    graph = graph_of(OPERATIONS[name])
    inputs = {
        n: codes(*graph.tensors[n].static_shape(batch_size), low=-128, seed=i) for i, n in enumerate(graph.inputs)
    }
    content, _ = to_bytes(graph, batch_size=batch_size)
    expected = run_reference(graph, inputs)
    [got], _ = run(content, inputs.values())
    np.testing.assert_array_equal(got, expected)
    [delegated], _ = run(content, inputs.values(), OpResolverType.AUTO)
    # XNNPACK rounds a few operations otherwise than the reference: one step (of the output's scale), never more.
    step = 0.05 if name == "dequantize" else 1
    assert np.abs(delegated.astype(float) - expected).max() <= step


# "gaps": a stride larger than the kernel.
NOT_DELEGATED = {
    "transpose_conv gaps",
    "average_pool2d",
    "average_pool2d same",
    "strided_slice",
    "softmax",
    "relu",
    "relu6",
    "hard_swish",
    *(n for n in OPERATIONS if n.startswith(("resize_nearest", "maximum", "minimum"))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_delegate_takes_what_it_can(name):
    """The list of what stays off the delegate is exact: a new LiteRT that takes more should be noticed."""
    graph = graph_of(OPERATIONS[name])
    inputs = [codes(*graph.tensors[n].static_shape(1)) for n in graph.inputs]
    _, interpreter = run(to_bytes(graph)[0], inputs, OpResolverType.AUTO)
    delegated = any("DELEGATE" in op["op_name"] for op in interpreter._get_ops_details())
    assert delegated == (name not in NOT_DELEGATED)


def pointwise(b, kernel):
    n = kernel.shape[1]
    return b.conv2d("x", kernel[None, None], scales(n) * 50, biases(n), OUT, "y", padding="same", activation="relu")


def dense(b, kernel, bias=None):
    return b.fully_connected("x", kernel, scales(kernel.shape[1]) * 50, bias, OUT, "y")


LAYERS = {
    "pointwise": ((5, 6, 16), pointwise),
    "dense": ((16,), lambda b, k: dense(b, k, biases(k.shape[1]))),
    "dense 3-d": ((5, 16), dense),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("channels", [1, 3, 33])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_packed_weights_give_the_bits_of_int8(layer, channels, batch_size):
    shape, make = LAYERS[layer]
    kernel = codes(16, channels, low=-2, high=1)
    graph = graph_of(lambda b: make(b, kernel), shape)
    inputs = [codes(batch_size, *shape, low=-128)]
    files = {w: to_bytes(graph, weights=w, batch_size=batch_size) for w in ("int8", "int4", "int2")}
    for kind, bits in (("int4", 4), ("int2", 2)):
        content, [row] = files[kind]
        assert row[:4] == ("y", "FULLY_CONNECTED", kind, 16 * channels * bits // 8)
        for resolver in ("xnnpack", "builtin"):
            [expected], _ = run(files["int8"][0], inputs, RESOLVERS[resolver])
            [got], _ = run(content, inputs, RESOLVERS[resolver])
            np.testing.assert_array_equal(got, expected)
        [got], _ = run(content, inputs)  # the reference kernels round a dense layer once and a convolution twice
        np.testing.assert_array_equal(got, run_reference(as_written(graph, plan_formats(graph, kind)), inputs[0]))
        _, interpreter = run(content, inputs, OpResolverType.AUTO)
        assert any("DELEGATE" in op["op_name"] for op in interpreter._get_ops_details())


# Windows, strides, dilations, groups and channels of which LiteRT unpacks INT4 in other ways; an odd number of codes.
CONVOLUTIONS = {
    "3x3": ((3, 3, 8, 4), {}),
    "3x3 same relu": ((3, 3, 8, 5), {"padding": "same", "activation": "relu"}),
    "5x2 strides": ((5, 2, 8, 6), {"strides": (2, 1), "padding": "same"}),
    "dilation": ((3, 3, 8, 4), {"dilation": (2, 3)}),
    "explicit": ((3, 3, 8, 4), {"strides": (2, 2), "padding": ((1, 0), (2, 1))}),
    "groups": ((3, 3, 4, 6), {"groups": 2, "activation": "relu6"}),
    "groups of one": ((3, 3, 1, 8), {"groups": 8}),
    "1x1 strides": ((1, 1, 8, 3), {"strides": (2, 2)}),
    "odd": ((3, 3, 7, 3), {}),
    "1x1 odd": ((1, 1, 7, 4), {"padding": "same"}),
    "one channel": ((3, 3, 1, 1), {}),
}
DEPTHWISE = {
    "3x3": ((3, 3, 8, 1), {"padding": "same", "activation": "relu6"}),
    "multiplier": ((3, 3, 8, 3), {"strides": (2, 2)}),
    "dilation": ((3, 3, 8, 1), {"dilation": (2, 2)}),
    "odd": ((3, 3, 7, 1), {}),
    "1x1": ((1, 1, 8, 1), {}),
}


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize(
    ("op", "shape", "arguments"),
    [("conv2d", *case) for case in CONVOLUTIONS.values()]
    + [("depthwise_conv2d", *case) for case in DEPTHWISE.values()],
    ids=[*(f"conv2d {name}" for name in CONVOLUTIONS), *(f"depthwise {name}" for name in DEPTHWISE)],
)
def test_int4_convolutions_have_the_codes_of_the_reference(op, shape, arguments, batch_size):
    kernel, image = codes(*shape, low=-8, high=7), (7, 9, shape[2] * arguments.get("groups", 1))
    channels = shape[3] * (shape[2] if op == "depthwise_conv2d" else 1)
    graph = graph_of(
        lambda b: getattr(b, op)("x", kernel, scales(channels) * 10, biases(channels), OUT, "y", **arguments), image
    )
    inputs = [codes(batch_size or 1, *image, low=-128)]
    content, [row] = to_bytes(graph, weights="int4", batch_size=batch_size)
    assert row[1:4] == (op.upper().replace("CONV2D", "CONV_2D"), "int4", (kernel.size + 1) // 2)
    versions = {3: 7, 4: 6}  # CONV_2D, DEPTHWISE_CONV_2D: the first with INT4 that every resolver has
    codes_of = model_of(content).operatorCodes
    assert [code.version for code in codes_of if code.builtinCode in versions] == [versions[3 if op == "conv2d" else 4]]
    [got], _ = run(content, inputs)
    np.testing.assert_array_equal(got, run_reference(graph, inputs[0]))
    [expected], _ = run(to_bytes(graph, batch_size=batch_size)[0], inputs, RESOLVERS["builtin"])
    assert np.abs(expected.astype(int) - got).max() <= 1  # the built-in kernels round once
    for resolver in ("builtin", "xnnpack"):  # XNNPACK leaves the layer to the built-in kernel
        np.testing.assert_array_equal(run(content, inputs, RESOLVERS[resolver])[0][0], expected)


@pytest.mark.parametrize(
    ("op", "shape", "kind"),
    [
        ("conv2d", (3, 3, 8, 4), "int2"),
        ("depthwise_conv2d", (3, 3, 8, 1), "int2"),
        ("transpose_conv", (3, 3, 4, 8), "int4"),
        ("transpose_conv", (3, 3, 4, 8), "int2"),
    ],
)
@pytest.mark.parametrize("resolver", RESOLVERS)
def test_litert_refuses_the_containers_that_are_never_chosen(op, shape, kind, resolver):
    """The list of them is exact: a LiteRT that takes more should be noticed."""
    channels = 8 if op == "depthwise_conv2d" else 4
    kernel = codes(*shape, low=-1, high=1)
    graph = graph_of(lambda b: getattr(b, op)("x", kernel, scales(channels), None, OUT, "y"))
    content, _ = to_bytes(graph, weights={"y": WeightFormat(kind, False, "forced")})
    with pytest.raises((ValueError, RuntimeError), match=r"Node number 0 \(\w+\) failed to prepare"):
        run(content, [codes(1, *SHAPE)], RESOLVERS[resolver])


def test_only_pointwise_convolutions_are_written_as_dense_layers():
    graph = graph_of(lambda b: b.conv2d("x", codes(3, 3, 8, 4), scales(4), None, OUT, "y"), (6, 6, 8))
    with pytest.raises(ValueError, match=r"'y' is no dense layer \(3x3 convolution\): expected a 1x1"):
        as_written(graph, {"y": WeightFormat("int4", True, "asked for")})


def test_int4_takes_every_code():
    kernel = np.tile(np.arange(-8, 8), (16, 1)).astype(np.int8)
    graph = graph_of(lambda b: b.fully_connected("x", kernel, scales(16) * 10, None, OUT, "y"), (16,))
    inputs = [codes(1, 16, low=-128)]
    [got], _ = run(to_bytes(graph, weights="int4")[0], inputs, OpResolverType.AUTO)
    [expected], _ = run(to_bytes(graph)[0], inputs, OpResolverType.AUTO)
    np.testing.assert_array_equal(got, expected)


def narrow(kernel, **arguments):
    """A convolution of an 8-channel input."""
    return lambda b: b.conv2d("x", kernel, scales(4), None, OUT, "y", **arguments)


def ragged(channels):
    """A ternary dense layer of so many input channels."""
    return lambda b: b.fully_connected(
        b.strided_slice("x", "s", (0, 0, 0), (7, 9, channels)),
        codes(channels, 4, low=-1, high=1),
        scales(4),
        None,
        OUT,
        "y",
    )


def transposed(b):
    return b.transpose_conv("x", codes(3, 3, 4, 8, low=-1, high=1), scales(4), None, OUT, "y", (2, 2), "same")


TERNARY = codes(1, 1, 8, 4, low=-1, high=1)


@pytest.mark.parametrize(
    ("make", "wanted", "kind", "why"),
    [
        (narrow(TERNARY), "int2", "int2", "asked for"),
        (narrow(TERNARY), "int8", "int8", "asked for"),
        (narrow(codes(1, 1, 8, 4, low=-8, high=7)), "int2", "int4", "not int2: codes from -8 to 7 exceed -2..1"),
        (narrow(codes(1, 1, 8, 4)), "int2", "int8", "not int4: codes from"),
        (narrow(codes(1, 1, 8, 4)), "int4", "int8", "exceed -8..7"),
        (
            narrow(np.tile(TERNARY, (3, 3, 1, 1))),
            "int2",
            "int4",
            "not int2: 3x3 convolution: int2 weights are taken in FULL",
        ),
        (
            narrow(np.tile(TERNARY, (3, 3, 1, 1))),
            "int4",
            "int4",
            "times the time of int8 (XNNPACK leaves it to the built-in",
        ),
        (narrow(codes(3, 3, 8, 4)), "int4", "int8", "exceed -8..7"),
        (narrow(TERNARY, strides=(2, 2)), "int2", "int4", "convolution of strides (2, 2)"),
        (narrow(TERNARY[:, :, :4], groups=2), "int2", "int4", "convolution of 2 groups"),
        (lambda b: b.depthwise_conv2d("x", TERNARY[..., :1], scales(8), None, OUT, "y"), "int2", "int4", "depthwise"),
        (transposed, "int4", "int8", "int4 weights are taken in FULLY_CONNECTED, CONV_2D, DEPTHWISE_CONV_2D only"),
        (ragged(6), "int2", "int4", "6 input channels do not divide by 4"),
        (ragged(7), "int2", "int8", "not int4: 7 input channels do not divide by 2"),
    ],
)
def test_container_falls_back_and_says_why(make, wanted, kind, why):
    _, [row] = to_bytes(graph_of(make), weights=wanted)
    assert row.weight_type == kind
    assert why in row.why


@pytest.mark.parametrize(
    ("bits", "values", "packed"),
    [
        (4, [1, -8, 7], [0x81, 0x07]),
        (2, [1, -2, -1, 0, 1], [0b00_11_10_01, 0b01]),
        (8, [-127, 127], [0x81, 0x7F]),
    ],
)
def test_packing_puts_the_first_code_lowest(bits, values, packed):
    assert list(pack_codes(np.array(values, np.int8), bits)) == packed


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"codes from -1 to 2 do not fit 2 bits: expected -2 to 1"):
        pack_codes(np.array([-1, 2], np.int8), 2)
