"""max_pool2d against NumPy, compiled and in plain TensorFlow; pads that the runtime folds into the layer behind them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import convert, deploy, ops
from keras_lowbit.deploy.runtime.fusion import fuse
from keras_lowbit.ops import functions
from tests.support.integer_layers import pool

KERNELS = ops.available_kernels()


@pytest.mark.parametrize("kernel", dict.fromkeys((KERNELS[0], ops.library.TF_FALLBACK)))
@pytest.mark.parametrize("channels", [1, 16, 37])
@pytest.mark.parametrize(
    ("window", "strides", "edges", "code"),
    [
        ((3, 3), (2, 2), ((1, 1), (1, 1)), -7),
        ((2, 3), (1, 2), ((0, 0), (0, 0)), -128),
        ((5, 1), (3, 1), ((4, 0), (0, 2)), 127),
        ((9, 9), (9, 9), ((4, 4), (4, 4)), -128),
    ],
)
def test_pool_is_the_largest_code(kernel, channels, window, strides, edges, code):
    x = np.random.default_rng(channels).integers(-128, 128, (2, 9, 7, channels)).astype(np.int8)
    arguments = {"strides": strides, "padding_code": code, "low": -90, "high": 100}
    with ops.using_kernel(kernel):
        got = functions.max_pool2d(x, window, padding=edges, **arguments)
    np.testing.assert_array_equal(got, pool(x, window, strides, edges, code, -90, 100))


@pytest.mark.parametrize("kernel", dict.fromkeys((KERNELS[0], ops.library.TF_FALLBACK)))
def test_same_padding_never_wins(kernel):
    x = np.random.default_rng(0).integers(-128, -100, (1, 8, 5, 3)).astype(np.int8)
    with ops.using_kernel(kernel):
        got = functions.max_pool2d(x, (3, 3), strides=2, padding="SAME")
    np.testing.assert_array_equal(got, tf.nn.max_pool2d(x, 3, 2, "SAME"))


@pytest.mark.skipif(KERNELS[0] == ops.library.TF_FALLBACK, reason="no compiled library")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"window": [3]}, "window has 1 numbers; expected 2"),
        ({"low": 5, "high": 4}, "the lower code first"),
        ({"padding_code": 128}, "padding or clamp is 128"),
        ({"dilations": [2, 2]}, "dilations"),
    ],
)
def test_attributes_that_do_not_fit_are_errors(changed, words):
    arguments = {"window": [3, 3], "padding": "VALID", "strides": [1, 1], "dilations": [1, 1]} | changed
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
        ops.library.loaded_or_none().ops.keras_lowbit_max_pool2d(input=tf.zeros((1, 4, 4, 2), tf.int8), **arguments)


@pytest.mark.parametrize("kernel", dict.fromkeys((KERNELS[0], ops.library.TF_FALLBACK)))
@pytest.mark.parametrize(
    ("window", "arguments", "size"),
    [
        ((9, 9), {}, (0, 0)),
        ((2, 9), {"strides": 3}, (1, 0)),
        ((9, 2), {"padding": ((3, 2), (0, 0))}, (1, 3)),
        ((9, 9), {"padding": "SAME"}, (4, 4)),
    ],
)
def test_a_window_that_does_not_fit_gives_an_empty_image(kernel, window, arguments, size):
    with ops.using_kernel(kernel):
        assert functions.max_pool2d(np.zeros((1, 4, 4, 2), np.int8), window, **arguments).shape == (1, *size, 2)


@pytest.mark.parametrize("kernel", dict.fromkeys((KERNELS[0], ops.library.TF_FALLBACK)))
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window": (0, 2)}, r"window is \(0, 2\)"),
        ({"padding_code": 128}, "padding_code=128"),
        ({"low": 5, "high": 4}, "low=5, high=4; expected int8 codes, low not above high"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(kernel, arguments, words):
    with ops.using_kernel(kernel), pytest.raises(ValueError, match=words):
        functions.max_pool2d(np.zeros((1, 4, 4, 2), np.int8), **({"window": (2, 2)} | arguments))


def test_pads_are_folded_and_change_nothing():
    keras.utils.set_random_seed(1)
    x = keras.Input((9, 11, 3))
    y = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(keras.layers.ZeroPadding2D(((2, 1), (0, 3)))(x))
    y = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(y))
    both = keras.layers.ZeroPadding2D(1)(y)  # read twice: stays
    y = keras.layers.Add()([keras.layers.Conv2D(4, 3)(both), keras.layers.DepthwiseConv2D(3)(both)[..., :4]])
    model = keras.Model(x, keras.layers.GlobalAveragePooling2D(keepdims=True)(y))
    images = np.random.default_rng(0).uniform(-1, 1, (6, 9, 11, 3)).astype(np.float32)
    quantized, _ = convert.quantize_model(model, "twn")
    convert.calibrate(quantized, images, batch_size=6)
    graph = deploy.lower(quantized)
    run = deploy.Runtime(graph)
    codes = np.random.default_rng(1).integers(-128, 128, (6, 9, 11, 3)).astype(np.int8)
    np.testing.assert_array_equal(run(codes), deploy.run_reference(graph, codes))
    kept = [node.op for node in fuse(graph).nodes].count("pad")
    assert (kept, [node.op for node in graph.nodes].count("pad")) == (1, 3)
