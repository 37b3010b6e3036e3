"""The integer layers as functions: on the compiled ops where they are, else in plain TensorFlow, with equal integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lowbit.ops import call_arguments, epilogue, library, tf_fallback
from keras_lowbit.ops.call_arguments import Padding
from keras_lowbit.ops.epilogue import Epilogue, Requantize, Rescale, ResidualAdd
from keras_lowbit.ops.packing import PackedWeights


def clustered_ternary_conv2d(
    images: Any,
    packed: PackedWeights,
    *,
    input_zero_point: int = 0,
    strides: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    dilations: int | Sequence[int] = 1,
    bias: Any = None,
    output: Epilogue = None,
    residual: ResidualAdd | None = None,
) -> tf.Tensor:
    """`sum (x - input_zero_point) * scale * code` over each window: a convolution on packed ternary weights.

    input_zero_point: the code of real 0 in `images`.   strides, dilations: one number, or (height, width).
    images: int8 [N, H, W, C].   packed: from `pack_ternary` (or `pack_int8`); groups are those it was packed with.
    padding: "SAME", "VALID" or ((top, bottom), (left, right)); padded pixels hold the zero point, real 0.   bias: int32
    [C'], added to the sums.   output: None for int32 sums [N, H', W', C'], `Requantize` for int8, `Rescale` for float32.
    residual: an int8 addition after `Requantize`. No gradient: integers. ValueError (InvalidArgumentError inside a graph)
    for shapes and values that do not fit.
    Returns [N, H', W', C'].

    >>> codes, scales = np.ones((3, 3, 8, 16), "int8"), np.ones((2, 16), "int8")
    >>> x = np.zeros((1, 12, 12, 8), "int8")
    >>> packed = klb.ops.pack_ternary(codes, scales, cluster_size=4)
    >>> klb.ops.clustered_ternary_conv2d(x, packed, input_zero_point=-128, padding="SAME").shape
    TensorShape([1, 12, 12, 16])
    """
    images, packed = _int8(images, 4), call_arguments.packed(packed)
    strides, dilations, padding = call_arguments.sliding(strides, dilations, padding)
    call_arguments.zero_point(input_zero_point)
    epilogue.check(packed.layout.window[3], bias, output, residual)
    channels = packed.layout.window[2] * packed.layout.groups
    _channels(images, channels, packed.layout.kernel_shape)
    found = library.loaded_or_none()
    if found is not None:
        return found.ops.keras_lowbit_packed_conv2d(
            input=images,
            **_packed(packed),
            **_sliding(strides, dilations, padding),
            groups=packed.layout.groups,
            input_zero_point=input_zero_point,
            **_epilogue(bias, output, residual),
        )
    total = tf_fallback.conv2d(images, packed, input_zero_point, strides, padding, dilations)
    return tf_fallback.apply_epilogue(output, tf_fallback.add_bias(total, bias), residual)


def int8_conv2d(images: Any, packed: PackedWeights, **arguments: Any) -> tf.Tensor:
    """As `clustered_ternary_conv2d`, on weights from `pack_int8`.

    images, packed, arguments: as there.
    Returns [N, H', W', C'].

    >>> x, kernel = np.zeros((1, 12, 12, 8), "int8"), klb.ops.pack_int8(np.ones((3, 3, 8, 16), "int8"))
    >>> klb.ops.int8_conv2d(x, kernel, strides=2).shape
    TensorShape([1, 5, 5, 16])
    """
    return clustered_ternary_conv2d(images, packed, **arguments)


def ternary_dense(
    inputs: Any,
    packed: PackedWeights,
    *,
    input_zero_point: int = 0,
    bias: Any = None,
    output: Epilogue = None,
    residual: ResidualAdd | None = None,
) -> tf.Tensor:
    """`sum (x - input_zero_point) * scale * code` over the last axis: a dense layer on packed weights.

    input_zero_point, bias, output, residual: as in `clustered_ternary_conv2d`.
    inputs: int8 [..., C].   packed: from `pack_ternary` or `pack_int8`, kernel [C, C'].   The rest, the result [..., C']
    and the errors as in `clustered_ternary_conv2d`.
    Returns [..., C'].
    Raises ValueError for a kernel of a convolution.

    >>> kernel = klb.ops.pack_ternary(np.array([[1, 0], [-1, 1]], "int8"))
    >>> klb.ops.ternary_dense(np.array([[5, 3]], "int8"), kernel).numpy()
    array([[2, 3]], dtype=int32)
    """
    inputs, packed = _int8(inputs, None), call_arguments.packed(packed)
    call_arguments.zero_point(input_zero_point)
    epilogue.check(packed.layout.window[3], bias, output, residual)
    call_arguments.dense(packed)
    _channels(inputs, packed.layout.window[2], packed.layout.kernel_shape)
    found = library.loaded_or_none()
    if found is not None:
        return found.ops.keras_lowbit_packed_dense(
            input=inputs, **_packed(packed), input_zero_point=input_zero_point, **_epilogue(bias, output, residual)
        )
    total = tf_fallback.add_bias(tf_fallback.dense(inputs, packed, input_zero_point), bias)
    return tf_fallback.apply_epilogue(output, total, residual)


def int8_dense(inputs: Any, packed: PackedWeights, **arguments: Any) -> tf.Tensor:
    """As `ternary_dense`, on weights from `pack_int8`.

    inputs, packed, arguments: as there.
    Returns [..., C'].

    >>> klb.ops.int8_dense(np.full((1, 8), 2, "int8"), klb.ops.pack_int8(np.full((8, 3), 5, "int8"))).numpy()
    array([[80, 80, 80]], dtype=int32)
    """
    return ternary_dense(inputs, packed, **arguments)


def int8_depthwise_conv2d(
    images: Any,
    kernel: Any,
    *,
    input_zero_point: int = 0,
    strides: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    dilations: int | Sequence[int] = 1,
    bias: Any = None,
    output: Epilogue = None,
    residual: ResidualAdd | None = None,
) -> tf.Tensor:
    """Each input channel c with its own M windows; output channel `c * M + m`.

    images: int8 [N, H, W, C].   input_zero_point, strides, padding, dilations, bias, output, residual: as in
    `clustered_ternary_conv2d`.
    kernel: int8 [KH, KW, C, M], not packed. The rest as in `clustered_ternary_conv2d`; the fallback needs a known height
    and width.
    Returns [N, H', W', C * M].

    >>> klb.ops.int8_depthwise_conv2d(np.zeros((1, 12, 12, 8), "int8"), np.ones((3, 3, 8, 1), "int8")).shape
    TensorShape([1, 10, 10, 8])
    """
    images, kernel = _int8(images, 4), _int8(kernel, 4)
    strides, dilations, padding = call_arguments.sliding(strides, dilations, padding)
    call_arguments.zero_point(input_zero_point)
    each = kernel.shape[2:]
    epilogue.check(None if None in each else each[0] * each[1], bias, output, residual)
    _channels(images, kernel.shape[2], tuple(kernel.shape))
    found = library.loaded_or_none()
    if found is not None:
        return found.ops.keras_lowbit_depthwise_conv2d(
            input=images,
            kernel=kernel,
            **_sliding(strides, dilations, padding),
            input_zero_point=input_zero_point,
            **_epilogue(bias, output, residual),
        )
    total = tf_fallback.depthwise_conv2d(images, kernel, input_zero_point, strides, padding, dilations)
    return tf_fallback.apply_epilogue(output, tf_fallback.add_bias(total, bias), residual)


def max_pool2d(
    images: Any,
    window: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    padding_code: int = -128,
    low: int = -128,
    high: int = 127,
) -> tf.Tensor:
    """The largest code of each window, clipped to [low, high].

    images: int8 [N, H, W, C].   padding: as in `clustered_ternary_conv2d`; pixels outside the image count as
    `padding_code`, which never wins as it stands. The fallback needs a known height and width with "SAME".
    """
    images = _int8(images, 4)
    strides, _, padding = call_arguments.sliding(strides, 1, padding)
    rows, columns = call_arguments.sizes(window)
    epilogue.check_codes("max_pool2d", low, high, padding_code=padding_code)
    found = library.loaded_or_none()
    if found is not None:
        return found.ops.keras_lowbit_max_pool2d(
            input=images,
            window=[rows, columns],
            padding_code=padding_code,
            low=low,
            high=high,
            **_sliding(strides, (1, 1), padding),
        )
    return tf_fallback.max_pool2d(images, (rows, columns), strides, padding, padding_code, low, high)


def look_up(codes: Any, table: Any) -> tf.Tensor:
    """`table[code + 128]` for every int8 code; table: int8 [256]. Any shape, the same out."""
    codes = _int8(codes, None)
    found = library.loaded_or_none()
    if found is not None:
        return found.ops.keras_lowbit_look_up(input=codes, table=table)
    return tf.gather(tf.convert_to_tensor(table), tf.cast(codes, tf.int32) + 128)


def look_up_pair(first: Any, second: Any, table: Any) -> tf.Tensor:
    """`table[first + 128, second + 128]` for int8 codes that broadcast; table: int8 [256, 256]."""
    first, second = tf.convert_to_tensor(first), tf.convert_to_tensor(second)
    found = library.loaded_or_none()
    if found is not None:
        shape = tf.broadcast_dynamic_shape(tf.shape(first), tf.shape(second))
        first, second = (x if _same(first, second) else tf.broadcast_to(x, shape) for x in (first, second))
        return found.ops.keras_lowbit_look_up_pair(first=first, second=second, table=table)
    place = (tf.cast(first, tf.int32) + 128) * 256 + (tf.cast(second, tf.int32) + 128)
    return tf.gather(tf.reshape(tf.convert_to_tensor(table), [-1]), place)


def _same(first: tf.Tensor, second: tf.Tensor) -> bool:
    """Whether two shapes are equal but for a batch that only running tells."""
    return (
        bool(first.shape.rank)
        and first.shape[1:].is_fully_defined()
        and first.shape.as_list() == second.shape.as_list()
    )


def _packed(packed: PackedWeights) -> dict[str, Any]:
    layout = packed.layout
    return {
        "codes": packed.data,
        "scales": packed.scales,
        "sums": packed.sums,
        "layout": layout.kind,
        "kernel_shape": list(layout.window),
        "cluster_size": layout.cluster_size,
        "scales_per_tap": layout.per_tap,
    }


def _sliding(strides: tuple[int, int], dilations: tuple[int, int], padding: Padding) -> dict[str, Any]:
    explicit = [] if isinstance(padding, str) else [int(edge) for pair in padding for edge in pair]
    return {
        "strides": list(strides),
        "dilations": list(dilations),
        "padding": padding if isinstance(padding, str) else "EXPLICIT",
        "explicit_paddings": explicit,
    }


def _epilogue(bias: Any, output: Epilogue, residual: ResidualAdd | None) -> dict[str, Any]:
    """Inputs and attributes of an op's epilogue; an array that `out_type` or `has_residual` does not ask for is empty."""
    requantize = output if isinstance(output, Requantize) else None
    rescale = output if isinstance(output, Rescale) else None
    found: dict[str, Any] = {
        "bias": _array(bias, tf.int32),
        "multiplier": _array(requantize and requantize.multiplier, tf.int32),
        "shift": _array(requantize and requantize.shift, tf.int32),
        "factor": _array(requantize and requantize.factor, tf.float64),
        "float_scale": _array(rescale and rescale.scale, tf.float32),
        "residual": tf.zeros([0], tf.int8) if residual is None else tf.convert_to_tensor(residual.codes, tf.int8),
        "out_type": tf.int8 if requantize else tf.float32 if rescale else tf.int32,
    }
    if requantize is not None:
        found |= {"zero_point": requantize.zero_point, "low": requantize.low, "high": requantize.high}
    if rescale is not None:
        found |= {"float_low": rescale.low, "float_high": rescale.high}
    return found if residual is None else found | {"has_residual": True} | call_arguments.residual_numbers(residual)


def _array(value: Any, dtype: tf.DType) -> tf.Tensor:
    if value is None:
        return tf.zeros([0], dtype)
    if _is_plain(value):  # shaped here: a node of the graph costs a microsecond at every call
        return tf.constant(np.asarray(value, dtype.as_numpy_dtype).reshape(-1))
    tensor = tf.convert_to_tensor(value)
    return tensor if tensor.shape.rank == 1 else tf.reshape(tensor, [-1])


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (tf.Tensor, tf.Variable))


def _int8(value: Any, rank: int | None) -> tf.Tensor:
    tensor = tf.convert_to_tensor(value)
    if tensor.dtype != tf.int8:
        raise TypeError(f"got a {tensor.dtype.name} tensor of shape {tensor.shape}; expected int8 codes")
    if tensor.shape.rank is not None and (tensor.shape.rank != rank if rank else tensor.shape.rank < 1):
        raise ValueError(f"got a tensor of shape {tensor.shape}; expected rank {rank or 'at least 1'}")
    return tensor


def _channels(inputs: tf.Tensor, wanted: int, kernel_shape: tuple[int, ...]) -> None:
    if inputs.shape.rank is not None and inputs.shape[-1] not in (None, wanted):
        raise ValueError(f"inputs of shape {inputs.shape} meet a kernel {kernel_shape}; expected {wanted} channels")
