"""Layers on signals [length, channels] as layers on images of one row, and layers that run at every time step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of
from keras_lowbit.keras_graph.calls import Call, is_graph_model
from keras_lowbit.keras_graph.copies import live_config, unbuilt_copy

MOST_STEPS = 64  # of a layer that runs at every step
_OF_IMAGES = {
    "SeparableConv1D": keras.layers.SeparableConv2D,
    "DepthwiseConv1D": keras.layers.DepthwiseConv2D,
    "Conv1DTranspose": keras.layers.Conv2DTranspose,
}
_ALONG = ("kernel_size", "strides", "dilation_rate", "output_padding")


@expands(*_OF_IMAGES)
def as_image(call: Call) -> Compose | None:
    """The layer of images with kernels of one row."""
    layer, sizes = call.operation, sizes_of(call.tensors[0])
    if sizes is None or sizes_of(call.results[0]) is None or layer.data_format != "channels_last":
        return None
    config = {key: value for key, value in live_config(layer).items() if key not in ("name", "dtype")}
    square = not isinstance(layer, keras.layers.Conv1DTranspose)  # depthwise strides are the same both ways
    for key in _ALONG:
        if config.get(key) is not None:
            along = config[key] if isinstance(config[key], int) else config[key][0]
            config[key] = (
                (along, along) if key == "strides" and square else (0 if key == "output_padding" else 1, along)
            )
    weights = {name: array(getattr(layer, name))[None] for name in _kernels(layer)}
    if layer.bias is not None:
        weights["bias"] = array(layer.bias)

    def compose(parts: Parts, values: Values) -> Any:
        image = parts.named(ops.expand_dims(values[call.inputs[0]], 1), "image")
        made = parts.layer("row", lambda **options: _OF_IMAGES[call.kind](**config, **options), weights)(image)
        return parts.named(ops.squeeze(made, 1))

    return compose


def _kernels(layer: Any) -> tuple[str, ...]:
    if hasattr(layer, "pointwise_kernel"):
        return "depthwise_kernel", "pointwise_kernel"
    return ("kernel",)


@expands("TimeDistributed")
def at_every_step(call: Call) -> Compose | None:
    """A layer without state, or a model, at each step of [steps, ...]: once for all where it works on the last axis alone."""
    layer, sizes = call.operation.layer, sizes_of(call.tensors[0])
    plain = type(layer).__module__.startswith("keras.") and len(call.inputs) == 1
    if sizes is None or not plain or sizes[0] > MOST_STEPS or call.arguments.kwargs.get("mask") is not None:
        return None
    if is_graph_model(layer):
        return _steps(call, sizes[0], lambda parts: parts.nested(layer))
    weights = {
        name: array(getattr(layer, name)) for name in ("kernel", "bias") if getattr(layer, name, None) is not None
    }
    if len(weights) != len(layer.variables):
        return None

    def make(**options: Any) -> Any:
        copy = unbuilt_copy(layer)
        copy.name = options["name"]
        return copy

    if isinstance(layer, keras.layers.Dense):
        return lambda parts, values: parts.layer("", make, weights)(values[call.inputs[0]])
    return _steps(call, sizes[0], lambda parts: parts.layer("step", make, weights))


def _steps(call: Call, count: int, runs: Callable[[Parts], Any]) -> Compose:
    """What runs at each of some steps, one after the other."""

    def compose(parts: Parts, values: Values) -> Any:
        x, run = values[call.inputs[0]], runs(parts)
        sizes = [int(size) for size in x.shape[2:]]
        flat = len(sizes) > 2  # microcontrollers cut tensors of up to four axes
        if flat:
            x = parts.named(ops.reshape(x, (-1, count, math.prod(sizes))), "rows")
        cut = [parts.named(x[:, step], f"at_{step}") for step in range(count)]
        if flat:
            cut = [parts.named(ops.reshape(one, (-1, *sizes)), f"step_{step}") for step, one in enumerate(cut)]
        steps = [run(one) for one in cut]
        return parts.named(ops.stack(steps, axis=1))

    return compose
