"""What the packed layers compute on the JAX backend of Keras: the same numbers as `integer_call`, inside XLA's programs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_lowbit.numerics import requantization
from keras_lowbit.ops import jax_functions
from keras_lowbit.ops.epilogue import Requantize, Rescale
from keras_lowbit.ops.packing import BLOCK_CHANNELS, BLOCK_ORDER, K_BLOCK, PackedWeights

_CODES = np.arange(-128, 128, dtype=np.int8)


def reals(layer: Any, inputs: Any) -> Any:
    """`scale * sums + bias` in float32, before the activation."""
    if layer.input_range is None:
        outputs = layer.linear(inputs.astype(jnp.float32), _real_kernel(layer))
    elif inputs.dtype == jnp.int8:
        outputs = _integer(layer, inputs)
    else:
        outputs = _through(layer, inputs.astype(jnp.float32))
    return outputs if layer.bias is None else outputs + layer.bias.value


def codes(layer: Any, inputs: Any) -> Any:
    """int8 codes of the output range, requantised as LiteRT does; bias rounded to input scale times weight scale."""
    given = inputs if inputs.dtype == jnp.int8 else quantize(inputs.astype(jnp.float32), *layer.input_range)
    (source, _), (target, zero_point) = layer.input_range, layer.output_range
    bias = None if layer.bias is None else layer.bias.value
    multiplier, shift, whole = jax_functions.output_factors(layer.scale.value, bias, source, target)
    low, high = requantization.activation_range(layer.fused_activation, target, zero_point)
    output = Requantize(multiplier, shift, None, zero_point, low, high)
    return layer.integer(given, output, None if bias is None else whole)


def _through(layer: Any, inputs: Any) -> Any:
    """The integer layer on float inputs, with the gradient of the float layer where nothing saturates."""
    scale, zero_point = layer.input_range
    kernel = _real_kernel(layer)

    @jax.custom_vjp
    def run(x: Any) -> Any:
        return _integer(layer, quantize(x, scale, zero_point))

    def forward(x: Any) -> tuple[Any, Any]:
        return run(x), x

    def backward(x: Any, upstream: Any) -> tuple[Any]:
        inside = (x >= scale * (-128 - zero_point)) & (x <= scale * (127 - zero_point))
        (gradient,) = jax.vjp(lambda given: layer.linear(given, kernel), x)[1](upstream)
        return (gradient * inside,)

    run.defvjp(forward, backward)
    return run(inputs)


def quantize(real: Any, scale: float, zero_point: int) -> Any:
    """int8 `round_half_away(x / scale) + zero_point` in float32, saturated; NaN, which no program of XLA can refuse, is 0.

    By looking up: what XLA compiles of casts to int8 may store too many bytes (`ops.tf_fallback.to_int8`).
    """
    steps = jnp.clip(jnp.nan_to_num(real / jnp.float32(scale), nan=0.0), -1e6, 1e6)
    whole = jnp.trunc(steps)
    rounded = whole + jnp.where(jnp.abs(steps - whole) >= 0.5, jnp.sign(steps), 0.0)
    return jnp.take(_CODES, jnp.clip(rounded.astype(jnp.int32) + zero_point, -128, 127) + 128)


def kernel_of(packed: PackedWeights) -> Any:
    """The integer weights `scale * code` in float32, [rows, columns, input channels, output channels]."""
    layout = packed.layout
    by_k = _fields(packed).reshape(layout.k_blocks * K_BLOCK, layout.groups, -1)[..., : layout.group_outputs]
    found = jnp.take(by_k, layout.k_index(), axis=0).reshape(layout.window)
    if not layout.cluster_size:
        return found
    rows, columns, inputs, outputs = layout.window
    taps = [rows, columns] if layout.per_tap else [1, 1]
    scales = packed.scales.reshape(layout.groups, -1, layout.clusters, *taps, BLOCK_CHANNELS)
    scales = scales.transpose(3, 4, 2, 0, 1, 5).reshape(*taps, layout.clusters, layout.groups, -1)
    scales = scales[..., : layout.group_outputs].reshape(*taps, layout.clusters, outputs)
    return found * jnp.take(scales, np.arange(inputs) // layout.cluster, axis=2).astype(jnp.float32)


def _fields(packed: PackedWeights) -> Any:
    """Codes of packed bytes, [k-blocks, 4 steps, blocks, 4 fields, 16 channels]."""
    kind = packed.layout.kind
    shape = [-1, packed.layout.k_blocks, *BLOCK_ORDER[kind]]
    data = jnp.asarray(packed.data)
    if kind == "int8":
        return jax.lax.bitcast_convert_type(data, jnp.int8).reshape(shape).transpose(1, 4, 0, 2, 3).astype(jnp.float32)
    fields = (data[..., None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    return fields.reshape(shape).transpose(1, 3, 0, 4, 2).astype(jnp.float32) - 1


def _integer(layer: Any, given: Any) -> Any:
    return layer.integer(given, Rescale(layer.scale.value * np.float32(layer.input_range[0])))


def _real_kernel(layer: Any) -> Any:
    """`scale * integer weights` [rows, columns, inputs, outputs] in float32."""
    return kernel_of(layer.packed()) * layer.scale.value
