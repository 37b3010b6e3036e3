"""What the layers take and refuse is the same on the compiled ops and on the fallback."""

import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import ops

RNG = np.random.default_rng(4)
X = RNG.integers(-128, 128, (2, 6, 6, 4)).astype(np.int8)
KERNEL = RNG.integers(-1, 2, (3, 3, 4, 8)).astype(np.int8)
PACKED = ops.pack_ternary(KERNEL)
FLAT = ops.pack_ternary(KERNEL[0, 0])
FACTOR = {"multiplier": 2**30, "shift": 1}
ADDED = {"codes": np.zeros((2, 4, 4, 8), np.int8), "first": (1, 0), "second": (1, 0), "output": (1, 0)}
LAYERS = {
    "convolution": lambda **stage: ops.clustered_ternary_conv2d(X, PACKED, **stage),
    "dense": lambda **stage: ops.ternary_dense(X, FLAT, **stage),
    "depthwise": lambda **stage: ops.int8_depthwise_conv2d(X, KERNEL[..., :2], **stage),
}


@pytest.fixture(params=dict.fromkeys((ops.available_kernels()[0], "tf_fallback")))
def kernel(request):
    """The best kernel, and the fallback."""
    with ops.using_kernel(request.param):
        yield request.param


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (5, r"bias has shape \(\); expected \(8,\)"),
        (np.ones(7, int), r"bias has shape \(7,\); expected \(8,\)"),
        (np.ones((1, 8), int), r"bias has shape \(1, 8\)"),
        (
            np.full(8, 0.7),
            "bias is float64; expected whole numbers, int32: divide it by input scale times weight scale",
        ),
        (np.full(8, 2**31), "bias is 2147483648; expected -2147483648 to 2147483647"),
        (tf.ones(8), "bias is float32"),
        (tf.ones(7, tf.int32), r"bias has shape \(7,\)"),
    ],
)
def test_bias_is_one_whole_number_for_each_channel(kernel, layer, bias, words):
    with pytest.raises(ValueError, match=words):
        LAYERS[layer](bias=bias)


@pytest.mark.parametrize("bias", [[1] * 8, np.ones(8, np.uint8), tf.ones(8, tf.int32)])
def test_every_kind_of_whole_number_will_do(kernel, bias):
    for layer in LAYERS.values():
        np.testing.assert_array_equal(layer(bias=bias), layer() + 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ops.Requantize(2**30, 40), "shift is 40; expected -31 to 31: use quantize_multiplier"),
        (lambda: ops.Requantize(2**30, [1, -32]), "shift is -32"),
        (lambda: ops.Requantize(2**31, 1), "multiplier is 2147483648"),
        (lambda: ops.Requantize(0.7, 1), "multiplier is float64; expected whole numbers"),
        (lambda: ops.Requantize(**FACTOR, zero_point=0.5), "zero_point=0.5, low=-128, high=127; expected int8 codes"),
        (lambda: ops.ResidualAdd(**ADDED | {"output": (1, 40)}), "shift is 40"),
        (lambda: ops.ResidualAdd(**ADDED, zero_point=500), "ResidualAdd got zero_point=500"),
        (lambda: ops.ResidualAdd(**ADDED, low=5, high=4), "low=5, high=4; expected int8 codes, low not above high"),
    ],
)
def test_epilogues_are_refused_where_they_are_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            {"output": ops.Requantize([1] * 3, [1] * 3)},
            r"multiplier has shape \(3,\); expected \(\) or \(1,\) or \(8,\)",
        ),
        ({"output": ops.Requantize(factor=np.ones((8, 1)))}, r"factor has shape \(8, 1\)"),
        ({"output": ops.Rescale(np.ones(4))}, r"scale has shape \(4,\)"),
        (
            {"output": ops.Requantize(**FACTOR), "residual": ops.ResidualAdd(**ADDED | {"codes": np.full(8, 0.7)})},
            "a residual is float64; expected int8 codes",
        ),
    ],
)
def test_epilogues_fit_the_channels(kernel, stage, words):
    for layer in LAYERS.values():
        with pytest.raises(ValueError, match=words):
            layer(**stage)


def test_what_only_running_tells_is_refused_then(kernel):
    tensors = {"multiplier": tf.constant(2**30), "shift": tf.constant(40)}
    with pytest.raises(tf.errors.InvalidArgumentError, match="shift is"):
        LAYERS["convolution"](output=ops.Requantize(**tensors))
    one = ops.ResidualAdd(**ADDED | {"codes": np.zeros((1, 4, 4, 8), np.int8)})
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match=r"the residual has shape .*expected the output's"
    ):
        LAYERS["convolution"](output=ops.Requantize(**FACTOR), residual=one)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("output", [None, ops.Requantize(**FACTOR)])
@pytest.mark.parametrize(
    ("shape", "arguments", "size"),
    [
        ((2, 2, 2, 4), {}, (0, 0)),
        ((2, 2, 6, 4), {"strides": (1, 3)}, (0, 2)),
        ((2, 6, 4, 4), {"dilations": (1, 2)}, (4, 0)),
        ((2, 1, 9, 4), {"padding": ((1, 0), (0, 0))}, (0, 7)),
        ((2, 1, 9, 4), {"padding": ((1, 1), (0, 0))}, (1, 7)),
        ((2, 0, 6, 4), {"padding": ((2, 2), (0, 0))}, (0, 4)),
        ((2, 0, 6, 4), {"padding": "SAME"}, (0, 6)),
        ((0, 2, 2, 4), {}, (0, 0)),
        ((0, 6, 6, 4), {}, (4, 4)),
    ],
)
def test_images_without_room_for_a_window_give_empty_ones(kernel, shape, arguments, size, output, known):
    @tf.function(input_signature=[tf.TensorSpec(shape if known else [None, None, None, 4], tf.int8)], autograph=False)
    def run(images):
        return ops.clustered_ternary_conv2d(images, PACKED, output=output, **arguments)

    images = np.zeros(shape, np.int8)
    assert run(images).shape == (shape[0], *size, 8)
    if known:
        depthwise = ops.int8_depthwise_conv2d(images, KERNEL[..., :2], output=output, **arguments)
        assert depthwise.shape == (shape[0], *size, 8)
