"""The integer layers as functions of JAX arrays: the CPU's kernels, or CUDA's, called by XLA. Equal integers on both.

Names, arguments and errors are those of `keras_lowbit.ops`. There is no fallback: LibraryError where the library was not
built. A call has no gradient.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_lowbit.ops import build_xla, call_arguments, epilogue
from keras_lowbit.ops.call_arguments import Padding
from keras_lowbit.ops.epilogue import FLOAT_LIMIT, Epilogue, Requantize, Rescale, ResidualAdd
from keras_lowbit.ops.library import LibraryError
from keras_lowbit.ops.packing import PackedWeights

CALLS = {
    "Conv2D": "keras_lowbit_conv2d",
    "DepthwiseConv2D": "keras_lowbit_depthwise_conv2d",
    "MaxPool2D": "keras_lowbit_max_pool2d",
    "OutputFactors": "keras_lowbit_output_factors",
}
PLATFORMS = {"Cpu": "cpu", "Gpu": "CUDA"}


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
) -> jax.Array:
    """As `keras_lowbit.ops.clustered_ternary_conv2d`."""
    layout = call_arguments.packed(packed).layout
    rows, columns, inputs, outputs = layout.window
    images = _int8(images, 4, inputs * layout.groups)
    call_arguments.zero_point(input_zero_point)
    epilogue.check(outputs, bias, output, residual)
    size, numbers = _window(images, (rows, columns), strides, padding, dilations)
    numbers |= {"groups": layout.groups, "is_int8": int(layout.kind == "int8"), "out_channels": outputs}
    numbers |= {"cluster_size": layout.cluster_size, "scales_per_tap": int(layout.per_tap)}
    numbers |= {"input_zero_point": input_zero_point}
    given = (images, packed.data, packed.scales, packed.sums)
    return _layer("Conv2D", given, numbers, (images.shape[0], *size, outputs), bias, output, residual)


def int8_conv2d(images: Any, packed: PackedWeights, **arguments: Any) -> jax.Array:
    """As `keras_lowbit.ops.int8_conv2d`."""
    return clustered_ternary_conv2d(images, packed, **arguments)


def ternary_dense(
    inputs: Any,
    packed: PackedWeights,
    *,
    input_zero_point: int = 0,
    bias: Any = None,
    output: Epilogue = None,
    residual: ResidualAdd | None = None,
) -> jax.Array:
    """As `keras_lowbit.ops.ternary_dense`."""
    window = call_arguments.dense(call_arguments.packed(packed)).layout.window
    inputs = _int8(inputs, None, window[2])
    shape = (*inputs.shape[:-1], window[3])
    if residual is not None:
        _same_shape(residual, shape)
        residual = dataclasses.replace(residual, codes=residual.codes.reshape(1, 1, -1, window[3]))
    found = clustered_ternary_conv2d(
        inputs.reshape(1, 1, -1, window[2]),
        packed,
        input_zero_point=input_zero_point,
        bias=bias,
        output=output,
        residual=residual,
    )
    return found.reshape(shape)


def int8_dense(inputs: Any, packed: PackedWeights, **arguments: Any) -> jax.Array:
    """As `keras_lowbit.ops.int8_dense`."""
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
) -> jax.Array:
    """As `keras_lowbit.ops.int8_depthwise_conv2d`."""
    kernel = _int8(kernel, 4, None)
    rows, columns, channels, multiplier = kernel.shape
    images = _int8(images, 4, channels)
    call_arguments.zero_point(input_zero_point)
    epilogue.check(channels * multiplier, bias, output, residual)
    size, numbers = _window(images, (rows, columns), strides, padding, dilations)
    shape = (images.shape[0], *size, channels * multiplier)
    numbers |= {"input_zero_point": input_zero_point}
    return _layer("DepthwiseConv2D", (images, kernel), numbers, shape, bias, output, residual)


def max_pool2d(
    images: Any,
    window: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    padding_code: int = -128,
    low: int = -128,
    high: int = 127,
) -> jax.Array:
    """As `keras_lowbit.ops.functions.max_pool2d`."""
    images = _int8(images, 4, None)
    epilogue.check_codes("max_pool2d", low, high, padding_code=padding_code)
    size, numbers = _window(images, call_arguments.sizes(window), strides, padding, 1)
    numbers |= {"padding_code": padding_code, "low": low, "high": high}
    return _call("MaxPool2D", [images], numbers, {}, (images.shape[0], *size, images.shape[3]), jnp.int8)


def look_up(codes: Any, table: Any) -> jax.Array:
    """As `keras_lowbit.ops.functions.look_up`; plain JAX."""
    return jnp.take(jnp.asarray(table, jnp.int8).reshape(256), jnp.asarray(codes).astype(jnp.int32) + 128)


def look_up_pair(first: Any, second: Any, table: Any) -> jax.Array:
    """As `keras_lowbit.ops.functions.look_up_pair`; plain JAX."""
    first, second = (jnp.asarray(codes).astype(jnp.int32) + 128 for codes in (first, second))
    return jnp.take(jnp.asarray(table, jnp.int8).reshape(65536), first * 256 + second)


def output_factors(scale: Any, bias: Any, input_scale: float, output_scale: float) -> tuple[jax.Array, ...]:
    """Multiplier, shift and int32 bias of int8 outputs, [channels] each, made in float64 whatever JAX is told of it.

    scale: float32 [channels], real size of the integer 1 of the weights.   bias: in reals, or None.   input_scale,
    output_scale: of the codes.
    """
    numbers = {"input_scale": input_scale, "output_scale": output_scale}
    channels = scale.shape[0]
    given = [jnp.asarray(scale, jnp.float32), _each(bias, channels, jnp.float32)]
    return tuple(_call("OutputFactors", given, {}, numbers, (3, channels), jnp.int32))


def load(path: Path) -> ctypes.CDLL:
    """Registers a library's calls with XLA: those of the CPU, and of CUDA where it has them."""
    handle = ctypes.CDLL(str(path))
    for name, target in CALLS.items():
        for device, platform in PLATFORMS.items():
            symbol = f"KerasLowbitXla{name}{device}"
            if device == "Cpu" or hasattr(handle, symbol):
                jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(handle, symbol)), platform=platform)
    return handle


@functools.cache
def _loaded() -> ctypes.CDLL:
    path = build_xla.find()
    if path is None:
        raise LibraryError(f"the layers for XLA are not built; run `{build_xla.COMMAND}` (it needs a C++17 compiler)")
    try:
        return load(path)
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{path} does not load ({error}); run `{build_xla.COMMAND}`") from error


def _layer(
    name: str,
    given: Sequence[Any],
    numbers: dict[str, int],
    shape: tuple[int, ...],
    bias: Any,
    output: Epilogue,
    residual: ResidualAdd | None,
) -> jax.Array:
    """The call of a layer with an epilogue, whose output has that shape."""
    channels, reals = shape[-1], {"float_low": -FLOAT_LIMIT, "float_high": FLOAT_LIMIT}
    kind, values = jnp.int32, dict.fromkeys(("multiplier", "shift", "factor", "scale"))
    numbers |= {"zero_point": 0, "low": -128, "high": 127}
    if isinstance(output, Requantize):
        kind, values = jnp.int8, values | vars(output)
        numbers |= {"zero_point": output.zero_point, "low": output.low, "high": output.high}
    if isinstance(output, Rescale):
        kind, values = jnp.float32, values | vars(output)
        reals = {"float_low": output.low, "float_high": output.high}
    if residual is not None:
        _same_shape(residual, shape)
        numbers |= call_arguments.residual_numbers(residual)
    tail = [
        _each(bias, channels, jnp.int32),
        _each(values["multiplier"], channels, jnp.int32),
        _each(values["shift"], channels, jnp.int32),
        _words(values["factor"], channels),
        _each(values["scale"], channels, jnp.float32),
        jnp.zeros([0], jnp.int8) if residual is None else residual.codes,
    ]
    return _call(name, [*given, *tail], numbers, reals, shape, kind)


def _call(
    name: str,
    given: Sequence[Any],
    numbers: dict[str, int],
    reals: dict[str, float],
    shape: tuple[int, ...],
    kind: Any,
) -> jax.Array:
    _loaded()
    attributes: dict[str, Any] = {key: np.int64(value) for key, value in numbers.items()}
    attributes |= {key: np.float32(value) for key, value in reals.items()}
    return jax.ffi.ffi_call(CALLS[name], jax.ShapeDtypeStruct(shape, kind))(*given, **attributes)


def _same_shape(residual: ResidualAdd, shape: tuple[int, ...]) -> None:
    if tuple(residual.codes.shape) != shape:
        raise ValueError(f"the residual has shape {tuple(residual.codes.shape)}; expected the output's, {shape}")


def _each(value: Any, channels: int, kind: Any) -> jax.Array:
    """One value for each channel; none for None."""
    if value is None:
        return jnp.zeros([0], kind)
    return jnp.broadcast_to(jnp.asarray(value, kind).reshape(-1), [channels])


def _words(value: Any, channels: int) -> jax.Array:
    """The two words of a float64 number for each channel, which a JAX without float64 can hand on; none for None."""
    if value is None:
        return jnp.zeros([0], jnp.uint32)
    if not isinstance(value, jax.Array):
        words: Any = np.asarray(value, np.float64).reshape(-1).view(np.uint32).reshape(-1, 2)
    elif value.dtype == jnp.float64:
        words = jax.lax.bitcast_convert_type(value.reshape(-1), jnp.uint32)
    else:
        raise ValueError(f"Requantize(factor=) is a JAX array of {value.dtype}; expected NumPy's float64 numbers")
    return jnp.broadcast_to(words, [channels, 2])


def _window(
    images: Any, kernel: tuple[int, int], strides: Any, padding: Any, dilations: Any
) -> tuple[list[int], dict[str, int]]:
    """Rows and columns of the output, and the numbers of a window that slides over images."""
    steps, spread, padding = call_arguments.sliding(strides, dilations, padding)
    pads = [_pads(padding, k, images.shape[k + 1], kernel[k], steps[k], spread[k]) for k in (0, 1)]
    size = [
        max((images.shape[k + 1] + sum(pads[k]) - (kernel[k] - 1) * spread[k] - 1) // steps[k] + 1, 0) for k in (0, 1)
    ]
    numbers = {"pad_top": pads[0][0], "pad_bottom": pads[0][1], "pad_left": pads[1][0], "pad_right": pads[1][1]}
    for k, side in enumerate(("height", "width")):
        numbers |= {f"kernel_{side}": kernel[k], f"stride_{side}": steps[k], f"dilation_{side}": spread[k]}
    return size, numbers


def _pads(padding: Any, axis: int, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding in front of and behind an axis, as TensorFlow pads."""
    if not isinstance(padding, str):
        return padding[axis][0], padding[axis][1]
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return (total // 2, total - total // 2) if padding == "SAME" else (0, 0)


def _int8(value: Any, rank: int | None, channels: int | None) -> jax.Array:
    """The codes. TypeError for other types, ValueError for another rank, or another size of the last axis."""
    array = jnp.asarray(value)
    if array.dtype != jnp.int8:
        raise TypeError(f"got an array of {array.dtype} of shape {array.shape}; expected int8 codes")
    if array.ndim != rank if rank else array.ndim < 1:
        raise ValueError(f"got an array of shape {array.shape}; expected rank {rank or 'at least 1'}")
    if channels is not None and array.shape[-1] != channels:
        raise ValueError(f"inputs of shape {array.shape} meet a kernel for {channels} channels")
    return array
