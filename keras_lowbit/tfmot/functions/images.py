"""TensorFlow's functions of images, by `keras.ops`: convolutions with constant kernels, pools, resizing."""

from typing import Any

import numpy as np
from keras import ops

from keras_lowbit.tfmot.functions.registry import array_of, require_default, stands_for


@stands_for("image.resize")
def _resize(images: Any, size: Any, method: Any = "bilinear", **others: Any) -> Any:
    require_default(others, "image.resize")
    return ops.image.resize(images, tuple(int(side) for side in size), str(method), data_format="channels_last")


@stands_for("nn.avg_pool2d", "nn.avg_pool")
def _average_pool(input: Any = None, ksize: Any = 2, strides: Any = None, padding: str = "VALID", **others: Any) -> Any:
    value = others.pop("value", input)
    require_default(others, "nn.avg_pool2d", data_format="NHWC")
    return ops.average_pool(value, _window(ksize), _window(strides), padding.lower(), "channels_last")


@stands_for("nn.max_pool2d", "nn.max_pool")
def _max_pool(input: Any = None, ksize: Any = 2, strides: Any = None, padding: str = "VALID", **others: Any) -> Any:
    value = others.pop("value", input)
    require_default(others, "nn.max_pool2d", data_format="NHWC")
    return ops.max_pool(value, _window(ksize), _window(strides), padding.lower(), "channels_last")


def _window(sizes: Any) -> tuple[int, int]:
    """Height and width of a window or stride, as TensorFlow writes it: one number, two, or four with batch and channels."""
    found = [int(size) for size in np.atleast_1d(sizes)]
    height, width = found * 2 if len(found) == 1 else found[1:3] if len(found) == 4 else found
    return height, width


@stands_for("nn.depth_to_space")
def _depth_to_space(input: Any, block_size: int, data_format: str = "NHWC", name: Any = None) -> Any:
    require_default({"data_format": data_format}, "nn.depth_to_space", data_format="NHWC")
    _, height, width, channels = input.shape
    parts = ops.reshape(input, (-1, height, width, block_size, block_size, channels // block_size**2))
    return ops.reshape(
        ops.transpose(parts, (0, 1, 3, 2, 4, 5)),
        (-1, height * block_size, width * block_size, channels // block_size**2),
    )


@stands_for("nn.space_to_depth")
def _space_to_depth(input: Any, block_size: int, data_format: str = "NHWC", name: Any = None) -> Any:
    require_default({"data_format": data_format}, "nn.space_to_depth", data_format="NHWC")
    _, height, width, channels = input.shape
    parts = ops.reshape(input, (-1, height // block_size, block_size, width // block_size, block_size, channels))
    return ops.reshape(
        ops.transpose(parts, (0, 1, 3, 2, 4, 5)),
        (-1, height // block_size, width // block_size, channels * block_size**2),
    )


@stands_for("nn.conv2d")
def _conv2d(input: Any, filter: Any = None, strides: Any = 1, padding: str = "SAME", **others: Any) -> Any:
    kernel = array_of(others.pop("filters", filter), input)
    dilations = others.pop("dilations", None) or 1
    require_default(others, "nn.conv2d", data_format="NHWC", use_cudnn_on_gpu=True)
    return ops.conv(input, kernel, _window(strides), padding.lower(), "channels_last", _window(dilations))


@stands_for("nn.depthwise_conv2d")
def _depthwise_conv2d(input: Any, filter: Any, strides: Any, padding: str, **others: Any) -> Any:
    dilations = others.pop("rate", None) or others.pop("dilations", None) or 1
    require_default(others, "nn.depthwise_conv2d", data_format="NHWC")
    return ops.depthwise_conv(
        input, array_of(filter, input), _window(strides), padding.lower(), "channels_last", _window(dilations)
    )


@stands_for("nn.local_response_normalization", "nn.lrn")
def _local_response_normalization(
    input: Any, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5, name: Any = None
) -> Any:
    radius, channels = int(depth_radius), input.shape[-1]
    padded = ops.pad(ops.square(input), ((0, 0),) * (len(input.shape) - 1) + ((radius, radius),))
    around = padded[..., :channels]
    for first in range(1, 2 * radius + 1):
        around = ops.add(around, padded[..., first : first + channels])
    return ops.divide(input, ops.power(ops.add(ops.multiply(around, alpha), bias), beta))


@stands_for("image.per_image_standardization")
def _per_image_standardization(image: Any) -> Any:
    axes = (-3, -2, -1)
    smallest = 1.0 / np.sqrt(np.prod([image.shape[axis] for axis in axes]))
    deviation = ops.maximum(ops.std(image, axes, keepdims=True), float(smallest))
    return ops.divide(ops.subtract(image, ops.mean(image, axes, keepdims=True)), deviation)
