"""The integer layers as functions of JAX arrays: the CPU's kernels, or CUDA's, called by XLA. Equal integers on both."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_lowbit.ops import build_xla, epilogue
from keras_lowbit.ops.epilogue import Epilogue, Requantize, Rescale
from keras_lowbit.ops.library import LibraryError
from keras_lowbit.ops.packing import PackedWeights

CALL = "keras_lowbit_conv2d"


def clustered_ternary_conv2d(
    images: Any,
    packed: PackedWeights,
    *,
    input_zero_point: int = 0,
    strides: Sequence[int] = (1, 1),
    padding: Any = "VALID",
    dilations: Sequence[int] = (1, 1),
    bias: Any = None,
    output: Epilogue = None,
) -> jax.Array:
    """As `keras_lowbit.ops.clustered_ternary_conv2d`, without a residual and without `Requantize(factor=)`.

    LibraryError where the library was not built; ValueError for shapes that do not fit.
    """
    rows, columns, inputs, outputs = packed.layout.window
    if images.ndim != 4 or images.dtype != jnp.int8 or images.shape[3] != inputs * packed.layout.groups:
        raise ValueError(
            f"got {images.dtype} of shape {images.shape}; expected int8 [N, H, W, {inputs * packed.layout.groups}]"
        )
    epilogue.check(outputs, bias, output, None)
    pads = [_pads(padding, k, images.shape[k + 1], (rows, columns)[k], strides[k], dilations[k]) for k in (0, 1)]
    size = [
        max((images.shape[k + 1] + sum(pads[k]) - ((rows, columns)[k] - 1) * dilations[k] - 1) // strides[k] + 1, 0)
        for k in (0, 1)
    ]
    numbers = {
        **{"stride_height": strides[0], "stride_width": strides[1]},
        **{"dilation_height": dilations[0], "dilation_width": dilations[1]},
        **{"pad_top": pads[0][0], "pad_bottom": pads[0][1], "pad_left": pads[1][0], "pad_right": pads[1][1]},
        "input_zero_point": input_zero_point,
    }
    return _call(images, packed, (images.shape[0], *size, outputs), numbers, bias, output)


def ternary_dense(
    inputs: Any, packed: PackedWeights, *, input_zero_point: int = 0, bias: Any = None, output: Epilogue = None
) -> jax.Array:
    """As `keras_lowbit.ops.ternary_dense`, within the limits of `clustered_ternary_conv2d` here."""
    rows = inputs.reshape(1, 1, -1, inputs.shape[-1])
    found = clustered_ternary_conv2d(rows, packed, input_zero_point=input_zero_point, bias=bias, output=output)
    return found.reshape(*inputs.shape[:-1], found.shape[-1])


def load(path: Path) -> ctypes.CDLL:
    """Registers a library's calls with XLA: those of the CPU, and of CUDA where it has them."""
    handle = ctypes.CDLL(str(path))
    jax.ffi.register_ffi_target(CALL, jax.ffi.pycapsule(handle.KerasLowbitXlaConv2DCpu), platform="cpu")
    if hasattr(handle, "KerasLowbitXlaConv2DGpu"):
        jax.ffi.register_ffi_target(CALL, jax.ffi.pycapsule(handle.KerasLowbitXlaConv2DGpu), platform="CUDA")
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


def _call(
    images: Any, packed: PackedWeights, shape: tuple[int, ...], numbers: dict[str, int], bias: Any, output: Epilogue
) -> jax.Array:
    _loaded()
    layout, channels = packed.layout, shape[-1]
    requantize = output if isinstance(output, Requantize) else None
    rescale = output if isinstance(output, Rescale) else None
    if requantize is not None and requantize.factor is not None:
        raise ValueError("Requantize(factor=) has no call on JAX; expected multiplier and shift")
    numbers |= {
        **{"kernel_height": layout.window[0], "kernel_width": layout.window[1], "out_channels": channels},
        **{"groups": layout.groups, "is_int8": int(layout.kind == "int8")},
        **{"cluster_size": layout.cluster_size, "scales_per_tap": int(layout.per_tap)},
        "zero_point": requantize.zero_point if requantize else 0,
        "low": requantize.low if requantize else -128,
        "high": requantize.high if requantize else 127,
    }
    kind = jnp.int8 if requantize else jnp.float32 if rescale else jnp.int32
    found = jax.ffi.ffi_call(CALL, jax.ShapeDtypeStruct(shape, kind))(
        *(images, packed.data, packed.scales, packed.sums),
        _each(bias, channels, jnp.int32),
        _each(requantize and requantize.multiplier, channels, jnp.int32),
        _each(requantize and requantize.shift, channels, jnp.int32),
        _each(rescale and rescale.scale, channels, jnp.float32),
        **{name: np.int64(value) for name, value in numbers.items()},
    )
    if rescale is None or (rescale.low, rescale.high) == (-epilogue.FLOAT_LIMIT, epilogue.FLOAT_LIMIT):
        return found
    return jnp.clip(found, rescale.low, rescale.high)


def _each(value: Any, channels: int, kind: Any) -> jax.Array:
    """One value for each channel; none for None."""
    if value is None:
        return jnp.zeros([0], kind)
    return jnp.broadcast_to(jnp.asarray(value, kind).reshape(-1), [channels])


def _pads(padding: Any, axis: int, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding in front of and behind an axis, as TensorFlow pads."""
    if not isinstance(padding, str):
        return padding[axis][0], padding[axis][1]
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return (total // 2, total - total // 2) if padding.upper() == "SAME" else (0, 0)
