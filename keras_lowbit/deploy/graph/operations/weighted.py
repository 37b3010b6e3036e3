"""Operations with weights and an int32 bias: convolutions and dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_lowbit.deploy.graph.operations.attributes import PADDING, whole, wholes
from keras_lowbit.deploy.graph.operations.operation import (
    FREE,
    INT32,
    Attributes,
    Builtin,
    Limit,
    Operation,
    Shape,
    Use,
    image_of,
    need_rank,
    only_int16,
    output_scale,
    scales,
)
from keras_lowbit.deploy.graph.operations.windows import litert_window, windows
from keras_lowbit.numerics.kernel_layouts import LAYOUTS


def deconvolved(size: int, kernel: int, stride: int, padding: str) -> int:
    """Output size of a transposed convolution when none is asked for, as Keras has it."""
    return size * stride if padding == "same" else size * stride + max(kernel - stride, 0)


def _window_sizes(attributes: Attributes, image: tuple[int, int], kernel: Shape) -> tuple[int, ...]:
    strides, padding, dilation = (attributes[key] for key in ("strides", "padding", "dilation"))
    return tuple(windows(image[i], kernel[i] or 0, strides[i], padding, dilation[i]) for i in (0, 1))


def _conv2d_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    height, width, channels = image_of(shapes[0], "conv2d input")
    kernel, groups = shapes[1], attributes["groups"]
    need_rank(kernel, 4, "conv2d kernel [KH,KW,IC/groups,OC]")
    if kernel[2] * groups != channels or kernel[3] % groups:
        raise ValueError(
            f"kernel {kernel} with groups={groups} does not fit {channels} input channels: "
            "expected [KH, KW, IC/groups, OC] with OC divisible by groups"
        )
    return (None, *_window_sizes(attributes, (height, width), kernel), kernel[3])


def _depthwise_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    height, width, channels = image_of(shapes[0], "depthwise_conv2d input")
    kernel = shapes[1]
    need_rank(kernel, 4, "depthwise kernel [KH,KW,C,multiplier]")
    if kernel[2] != channels:
        raise ValueError(
            f"depthwise kernel {kernel} does not fit {channels} input channels: expected [KH, KW, C, multiplier]"
        )
    return (None, *_window_sizes(attributes, (height, width), kernel), channels * kernel[3])  # type: ignore[operator]


def _transpose_conv_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    image = image_of(shapes[0], "transpose_conv input")
    kernel = shapes[1]
    need_rank(kernel, 4, "transpose_conv kernel [KH,KW,OC,IC]")
    if kernel[3] != image[2]:
        raise ValueError(f"kernel {kernel} does not fit {image[2]} input channels: expected [KH, KW, OC, IC]")
    strides, padding, size = attributes["strides"], attributes["padding"], attributes["output_shape"]
    for i in (0, 1):
        back = windows(size[i], kernel[i], strides[i], padding)  # type: ignore[arg-type]
        if back != image[i]:
            raise ValueError(
                f"output_shape {tuple(size)} does not fit: a {padding!r} convolution of it with kernel {kernel[:2]} and "
                f"strides {tuple(strides)} has size {back} on axis {i + 1}, the input has {image[i]}"
            )
    return (None, size[0], size[1], kernel[2])


def _fully_connected_shape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    need_rank(shapes[1], 2, "fully_connected kernel [IC,OC]")
    if len(shapes[0]) < 2 or shapes[0][-1] != shapes[1][0]:
        raise ValueError(f"kernel {shapes[1]} does not fit the last axis of input {shapes[0]}: expected [IC, OC]")
    return (*shapes[0][:-1], shapes[1][1])


def _conv2d_builtin(use: Use) -> Builtin:
    version = _INT4_CONVOLUTION if use.weight_type == "int4" else 6 if use.attributes["groups"] > 1 else 3
    window, (version, sums) = litert_window(use.attributes), _int32_sums(use, version, 8)
    return Builtin("CONV_2D", version, "Conv2DOptions", window | sums)


def _int32_sums(use: Use, version: int, least: int) -> tuple[int, dict[str, Any]]:
    """Version and options of an operator. It sums int16 codes in int64, from version `least` on also in int32 on request."""
    if use.codes == "int8" or use.inputs[2].dtype != "int32":
        return version, {}
    return max(version, least), {"quantizedBiasType": INT32}


def _depthwise_builtin(use: Use) -> Builtin:
    fields = {"depthMultiplier": use.inputs[1].shape[3], **litert_window(use.attributes)}
    version = _INT4_DEPTHWISE if use.weight_type == "int4" else 3
    return Builtin("DEPTHWISE_CONV_2D", version, "DepthwiseConv2DOptions", fields)


def _transpose_conv_builtin(use: Use) -> Builtin | list[Builtin]:
    size = use.outputs[0].static_shape(use.batch_size or 1)
    version, sums = _int32_sums(use, 4 if use.attributes["activation"] else 3, 5)
    written = Builtin(
        "TRANSPOSE_CONV",
        version,
        "TransposeConvOptions",
        litert_window(use.attributes) | sums,
        {"output_shape": size},
        ("output_shape", 1, 0, 2),
    )
    if use.batch_size is not None:
        return written
    return [  # the output's shape, from that of the input
        Builtin("SHAPE", 1, "ShapeOptions", {"outType": INT32}, operands=(0,), result="shape", result_shape=(4,)),
        Builtin(
            "STRIDED_SLICE",
            1,
            "StridedSliceOptions",
            constants={"begin": [0], "end": [1], "strides": [1]},
            operands=("shape", "begin", "end", "strides"),
            result="batch",
            result_shape=(1,),
        ),
        Builtin(
            "CONCATENATION",
            1,
            "ConcatenationOptions",
            {"axis": 0},
            {"image": size[1:]},
            ("batch", "image"),
            result="output_shape",
            result_shape=(4,),
        ),
        written._replace(constants={}),
    ]


def _fully_connected_builtin(use: Use) -> Builtin:
    version, sums = _int32_sums(use, _DENSE_VERSION[use.weight_type], 11)
    return Builtin("FULLY_CONNECTED", version, "FullyConnectedOptions", {"keepNumDims": True} | sums)


_DENSE_VERSION = {"int8": 5, "int4": 10, "int2": 14}
_INT4_CONVOLUTION = 7
# 7 too by LiteRT's list, but its reference kernels are registered up to 6. A runtime of 6 that has no INT4 refuses the filter.
_INT4_DEPTHWISE = 6
# Beyond it the XNNPACK delegate fails to load the file.
_FACTOR = Limit(
    "input scale * weight scale / output scale", lambda use: scales(use)[0] * scales(use)[1] / output_scale(use), 256.0
)
# The factor of int64 sums is shifted by 7 bits at most.
_FACTOR_16 = only_int16(_FACTOR._replace(below=128.0))
_WEIGHTED: dict[str, Any] = {
    "inputs": 3,
    "range": FREE,
    "fuses_activation": True,
    "limits": (_FACTOR, _FACTOR_16),
}

_WINDOW = {"strides": wholes(1, 2), "padding": PADDING}
_DILATED = {**_WINDOW, "dilation": wholes(1, 2)}

CONV2D = Operation(
    "conv2d",
    _conv2d_shape,
    _conv2d_builtin,
    takes={**_DILATED, "groups": whole(1)},
    int16=4,
    kernel=LAYOUTS["Conv2D"],
    **_WEIGHTED,
)
DEPTHWISE_CONV2D = Operation(
    "depthwise_conv2d",
    _depthwise_shape,
    _depthwise_builtin,
    takes=_DILATED,
    int16=5,
    int16_biases=("int64",),
    kernel=LAYOUTS["DepthwiseConv2D"],
    **_WEIGHTED,
)
TRANSPOSE_CONV = Operation(
    "transpose_conv",
    _transpose_conv_shape,
    _transpose_conv_builtin,
    takes={**_WINDOW, "output_shape": wholes(1, 2)},
    int16=4,
    kernel=LAYOUTS["Conv2DTranspose"],
    **_WEIGHTED,
)
FULLY_CONNECTED = Operation(
    "fully_connected",
    _fully_connected_shape,
    _fully_connected_builtin,
    int16=9,
    kernel=LAYOUTS["Dense"],
    **_WEIGHTED,
)
