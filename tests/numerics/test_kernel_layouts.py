"""Which axis of a kernel means what, against plain loops and the layers of Keras."""

import keras
import numpy as np
import pytest

from keras_lowbit.numerics.kernel_layouts import LAYOUTS

RNG = np.random.default_rng(3)
SHAPES = {
    "Conv1D": (3, 4, 6),
    "Conv2D": (3, 2, 4, 6),
    "DepthwiseConv2D": (3, 2, 4, 2),
    "Conv2DTranspose": (3, 2, 6, 4),
    "Dense": (4, 6),
}
MAKE = {
    "Conv1D": lambda: keras.layers.Conv1D(6, 3),
    "Conv2D": lambda: keras.layers.Conv2D(6, (3, 2)),
    "DepthwiseConv2D": lambda: keras.layers.DepthwiseConv2D((3, 2), depth_multiplier=2),
    "Conv2DTranspose": lambda: keras.layers.Conv2DTranspose(6, (3, 2)),
    "Dense": lambda: keras.layers.Dense(6),
}
# The channels of one weight, [output channel, input channel], written out.
CHANNELS = {
    "Conv1D": lambda index: (index[2], index[1]),
    "Conv2D": lambda index: (index[3], index[2]),
    "DepthwiseConv2D": lambda index: (index[2] * 2 + index[3], index[2]),
    "Conv2DTranspose": lambda index: (index[2], index[3]),
    "Dense": lambda index: (index[1], index[0]),
}


@pytest.fixture(params=LAYOUTS)
def kind(request):
    return request.param


def channel_maps(kind):
    """For every weight its output channel and its input channel."""
    found = np.empty((2, *SHAPES[kind]), int)
    for index in np.ndindex(SHAPES[kind]):
        found[(slice(None), *index)] = CHANNELS[kind](index)
    return found


def run(kind, kernel, inputs):
    layer = MAKE[kind]()
    layer.build(inputs.shape)
    layer.kernel.assign(kernel)
    return keras.ops.convert_to_numpy(layer(inputs))


def inputs_for(kind):
    sizes = {"Conv1D": (7,), "Dense": ()}.get(kind, (7, 6))
    return RNG.normal(size=(2, *sizes, 4)).astype(np.float32)


def test_factors_of_output_channels_scale_the_outputs(kind):
    layout, kernel, inputs = LAYOUTS[kind], RNG.normal(size=SHAPES[kind]).astype(np.float32), inputs_for(kind)
    outputs = run(kind, kernel, inputs)
    factors = 2.0 ** RNG.integers(-3, 4, outputs.shape[-1]).astype(np.float32)  # exact
    assert layout.output_channels(kernel.shape) == outputs.shape[-1]
    scaled = run(kind, kernel * layout.per_output(factors, kernel.shape), inputs)
    np.testing.assert_allclose(scaled, outputs * factors, rtol=1e-5, atol=1e-5)


def test_factors_of_input_channels_undo_those_of_the_inputs(kind):
    layout, kernel, inputs = LAYOUTS[kind], RNG.normal(size=SHAPES[kind]).astype(np.float32), inputs_for(kind)
    factors = 2.0 ** RNG.integers(-3, 4, 4).astype(np.float32)
    scaled = run(kind, kernel * layout.per_input(factors, kernel.shape), inputs / factors)
    np.testing.assert_allclose(scaled, run(kind, kernel, inputs), rtol=1e-5, atol=1e-5)


def test_maxima_and_filters_against_loops(kind):
    layout, kernel = LAYOUTS[kind], RNG.normal(size=SHAPES[kind])
    outputs, inputs = channel_maps(kind)
    magnitude, by_output = np.abs(kernel), layout.by_output(kernel)
    for channel in range(outputs.max() + 1):
        assert layout.output_maxima(kernel)[channel] == magnitude[outputs == channel].max()
        np.testing.assert_array_equal(by_output[channel], kernel[outputs == channel])
    for channel in range(4):
        assert layout.input_maxima(kernel)[channel] == magnitude[inputs == channel].max()


def test_matrices_hold_each_filter_as_a_column_and_go_back(kind):
    layout, kernel = LAYOUTS[kind], RNG.normal(size=SHAPES[kind])
    matrices = layout.grouped(kernel)
    np.testing.assert_array_equal(layout.ungrouped(matrices, kernel.shape), kernel)
    columns = matrices.transpose(0, 2, 1).reshape(layout.output_channels(kernel.shape), -1)
    np.testing.assert_array_equal(columns, layout.by_output(kernel))


@pytest.mark.parametrize("kind", ["Conv1D", "Conv2D"])
def test_each_group_of_outputs_has_its_own_input_channels(kind):
    shape, groups = SHAPES[kind], 3
    found = np.broadcast_to(LAYOUTS[kind].per_input(np.arange(12), shape, groups), shape)
    for index in np.ndindex(shape):
        assert found[index] == index[-2] + 4 * (index[-1] // 2)


def test_litert_has_output_channels_first_but_for_depthwise_kernels():
    orders = {kind: layout.litert_axes for kind, layout in LAYOUTS.items()}
    assert orders == {
        "Conv1D": (2, 0, 1),
        "Conv2D": (3, 0, 1, 2),
        "DepthwiseConv2D": (0, 1, 2, 3),
        "Conv2DTranspose": (2, 0, 1, 3),
        "Dense": (1, 0),
    }
