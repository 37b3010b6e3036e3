"""Layers on volumes [depth, height, width, channels] as layers on images, and pools to a given size as pools of a window.

Along depth and height a volume is an image with as many channels as width times channels; along width it is one of depth times
height rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_lowbit.convert.expansion.registry import Compose, Parts, Values, array, expands, sizes_of
from keras_lowbit.convert.expansion.signals import MOST_STEPS
from keras_lowbit.keras_graph.calls import Call
from keras_lowbit.keras_graph.copies import live_config

_Plane = Callable[..., Any]  # makes the layer of images; takes name and dtype
_PADS = {"ZeroPadding3D": ("padding", keras.layers.ZeroPadding2D), "Cropping3D": ("cropping", keras.layers.Cropping2D)}
_GLOBAL = {"GlobalMaxPooling3D": "GlobalMaxPooling2D", "GlobalAveragePooling3D": "GlobalAveragePooling2D"}


@expands("MaxPooling3D", "AveragePooling3D")
def pool(call: Call) -> Compose | None:
    """A pool of windows is one of their columns, and then one of rows of what that makes."""
    layer = call.operation
    return _of_volume(call, _pools(call.kind, layer.pool_size, layer.strides, layer.padding))


@expands("AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D")
def adaptive_average(call: Call) -> Compose | None:
    """A pool of the windows that give so many means."""
    return _adaptive(call, "AveragePooling")


@expands("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D")
def adaptive_maximum(call: Call) -> Compose | None:
    """A pool of the windows that give so many largest values."""
    return _adaptive(call, "MaxPooling")


@expands(*_PADS)
def pad_or_crop(call: Call) -> Compose | None:
    """What stands before and behind each axis, of two of them at a time."""
    name, layer = _PADS[call.kind]
    *two, third = getattr(call.operation, name)
    return _of_volume(call, _of_axes(layer, name, tuple(two), ((0, 0), third), (0, 0)))


@expands("UpSampling3D")
def repeat(call: Call) -> Compose | None:
    """Each pixel several times."""
    *two, third = call.operation.size
    return _of_volume(call, _of_axes(keras.layers.UpSampling2D, "size", tuple(two), (1, third), 1))


@expands(*_GLOBAL)
def of_whole_volume(call: Call) -> Compose | None:
    """The pool of an image of all rows."""
    sizes = sizes_of(call.tensors[0])
    if sizes is None or call.operation.data_format != "channels_last":
        return None
    depth, height, width, channels = sizes
    made, keeps = getattr(keras.layers, _GLOBAL[call.kind]), call.operation.keepdims

    def compose(parts: Parts, values: Values) -> Any:
        rows = parts.named(ops.reshape(values[call.inputs[0]], (-1, depth * height, width, channels)), "rows")
        pooled = parts.layer("all" if keeps else "", made)(rows)
        return parts.named(ops.reshape(pooled, (-1, 1, 1, 1, channels))) if keeps else pooled

    return compose


@expands("Conv3D")
def convolution(call: Call) -> Compose | None:
    """At each depth the same convolution of an image: of all channels of the slices that the kernel covers."""
    layer, sizes = call.operation, sizes_of(call.tensors[0])
    plain = layer.data_format == "channels_last" and not getattr(layer, "lora_enabled", False)
    if sizes is None or not plain or call.results[0].shape[1] > MOST_STEPS:
        return None
    (depth, _, _, channels), groups = sizes, layer.groups
    many, step = call.results[0].shape[1], layer.strides[0]
    taps = [place * layer.dilation_rate[0] for place in range(layer.kernel_size[0])]
    missing = max((many - 1) * step + taps[-1] + 1 - depth, 0) if layer.padding == "same" else 0
    config = _of_planes(layer, ("kernel_size", "strides", "dilation_rate"))
    kernel = array(layer.kernel).transpose(1, 2, 0, 3, 4)
    weights = {"kernel": kernel.reshape(*kernel.shape[:2], -1, kernel.shape[-1])}
    weights |= {} if layer.bias is None else {"bias": array(layer.bias)}

    def compose(parts: Parts, values: Values) -> Any:
        x = _in_slices(parts, values[call.inputs[0]], sizes, (missing // 2, missing - missing // 2))
        run = parts.layer("slice", lambda **options: keras.layers.Conv2D(**config, **options), weights)
        covered = [[(k * step + tap) * groups + group for group in range(groups) for tap in taps] for k in range(many)]
        images = [run(_slices(parts, x, places, channels // groups, f"at_{k}")) for k, places in enumerate(covered)]
        return parts.named(ops.stack(images, axis=1))

    return compose


@expands("Conv3DTranspose")
def transposed_convolution(call: Call) -> Compose | None:
    """At each depth a transposed convolution of an image, of all channels of the slices that reach it."""
    layer, sizes = call.operation, sizes_of(call.tensors[0])
    plain = layer.data_format == "channels_last" and (set(layer.dilation_rate) == {1} or set(layer.strides) == {1})
    if sizes is None or not plain or call.results[0].shape[1] > MOST_STEPS:
        return None
    config = _of_planes(layer, ("kernel_size", "strides", "dilation_rate", "output_padding"))
    reaching = _reaching(layer, sizes[0], call.results[0].shape[1])
    if not all(one.taps for one in reaching):
        return None
    slices = [place for one in reaching for place in one.slices]
    before, behind = max(0, -min(slices)), max(0, max(slices) + 1 - sizes[0])
    bias = {} if layer.bias is None else {"bias": array(layer.bias)}

    def compose(parts: Parts, values: Values) -> Any:
        x = _in_slices(parts, values[call.inputs[0]], sizes, (before, behind))
        images = []
        for k, (taps, places) in enumerate(reaching):
            kernel = array(layer.kernel)[taps].transpose(1, 2, 3, 0, 4)
            weights = {"kernel": kernel.reshape(*kernel.shape[:3], -1)} | bias
            run = parts.layer(
                f"planes_{taps[-1]}", lambda **options: keras.layers.Conv2DTranspose(**config, **options), weights
            )
            images.append(run(_slices(parts, x, [place + before for place in places], sizes[-1], f"at_{k}")))
        return parts.named(ops.stack(images, axis=1))

    return compose


class _Reach(NamedTuple):
    """The slices that reach a depth of the result, below 0 those before the volume. taps: the plane of the kernel of each."""

    taps: list[int]
    slices: list[int]


def _reaching(layer: Any, depth: int, many: int) -> list[_Reach]:
    """For each depth of the result of a transposed convolution of so many slices, the last plane of the kernel first."""
    stride, apart, planes = layer.strides[0], layer.dilation_rate[0], layer.kernel_size[0]
    reach = (planes - 1) * apart + 1
    cut = max((depth - 1) * stride + reach - many, 0) // 2 if layer.padding == "same" else 0
    found = []
    for place in range(cut, cut + many):
        taps = [tap for tap in reversed(range(planes)) if (place - tap * apart) % stride == 0]
        found.append(_Reach(taps, [(place - tap * apart) // stride for tap in taps]))
    return found


def _in_slices(parts: Parts, x: Any, sizes: tuple[int, ...], ends: tuple[int, int]) -> Any:
    """A volume as an image of the channels of all slices. ends: how many slices of zeros stand before and behind them."""
    depth, height, width, channels = sizes
    turned = parts.named(ops.transpose(x, (0, 2, 3, 1, 4)), "depth_last")
    x = parts.named(ops.reshape(turned, (-1, height, width, depth * channels)), "slices")
    if not any(ends):
        return x
    widths = tuple(slices * channels for slices in ends)
    return parts.named(ops.pad(x, ((0, 0), (0, 0), (0, 0), widths)), "padded")


def _of_planes(layer: Any, along: tuple[str, ...]) -> dict[str, Any]:
    """The configuration of a layer of volumes for one of images. along: what has an entry for each axis."""
    config = {key: value for key, value in live_config(layer).items() if key not in ("name", "dtype")}
    return config | {key: tuple(config[key])[1:] for key in along if config[key] is not None}


def _slices(parts: Parts, x: Any, places: list[int], channels: int, part: str) -> Any:
    """The channels of some slices, one behind the other. places: of slices, or of their groups, of so many channels each."""
    if places == list(range(places[0], places[-1] + 1)):
        return parts.named(x[..., places[0] * channels : (places[-1] + 1) * channels], part)
    picked = [x[..., place * channels : (place + 1) * channels] for place in places]
    named = [parts.named(one, f"{part}_slice_{place}") for one, place in zip(picked, places, strict=True)]
    return parts.named(ops.concatenate(named, axis=-1), part)


def _adaptive(call: Call, kind: str) -> Compose | None:
    """A pool of equal windows; where they differ, one axis after the other, each window by itself."""
    sizes, layer = sizes_of(call.tensors[0]), call.operation
    if sizes is None or layer.data_format != "channels_last":
        return None
    wanted = call.results[0].shape[1:-1]
    if any(size % many for size, many in zip(sizes, wanted, strict=False)):
        few = sum(many for size, many in zip(sizes, wanted, strict=False) if size != many) <= MOST_STEPS
        return _by_windows(call, ops.mean if kind == "AveragePooling" else ops.max, sizes, wanted) if few else None
    window = tuple(size // many for size, many in zip(sizes, wanted, strict=False))
    if len(window) == 3:
        return _of_volume(call, _pools(f"{kind}3D", window, window, "valid"))
    made = getattr(keras.layers, f"{kind}{len(window)}D")
    return lambda parts, values: parts.layer("", lambda **options: made(window, **options))(values[call.inputs[0]])


def _by_windows(call: Call, reduce: Any, sizes: tuple[int, ...], wanted: tuple[int, ...]) -> Compose:
    def compose(parts: Parts, values: Values) -> Any:
        x, found = values[call.inputs[0]], list(sizes)
        for axis, (size, many) in enumerate(zip(sizes, wanted, strict=False)):
            if size == many:
                continue
            shape = (-1, math.prod(found[:axis]), size, math.prod(found[axis + 1 :]))
            rows = parts.named(ops.reshape(x, shape), f"axis_{axis}")
            windows = [rows[:, :, k * size // many : -(-(k + 1) * size // many)] for k in range(many)]
            made = [
                parts.named(
                    reduce(parts.named(window, f"axis_{axis}_at_{k}"), axis=2, keepdims=True), f"axis_{axis}_of_{k}"
                )
                for k, window in enumerate(windows)
            ]
            x, found[axis] = parts.named(ops.concatenate(made, axis=2), f"axis_{axis}_pooled"), many
        return parts.named(ops.reshape(x, (-1, *found)))

    return compose


def _pools(kind: str, window: tuple[int, ...], strides: tuple[int, ...], padding: str) -> list[_Plane | None]:
    """The pools of depth and height, and of width; None for one of single pixels."""
    made = getattr(keras.layers, kind.replace("3D", "2D"))

    def of(size: tuple[int, ...], step: tuple[int, ...]) -> _Plane | None:
        whole = math.prod(size) * math.prod(step) == 1
        return None if whole else lambda **options: made(size, step, padding, **options)

    return [of(window[:2], strides[:2]), of((1, window[2]), (1, strides[2]))]


def _of_axes(layer: Any, name: str, two: Any, third: Any, nothing: Any) -> list[_Plane | None]:
    """The layers of depth and height, and of width. nothing: what leaves an axis as it is."""
    return [
        None if set(given) == {nothing} else lambda given=given, **options: layer(**{name: given}, **options)
        for given in (two, third)
    ]


def _of_volume(call: Call, planes: list[_Plane | None]) -> Compose | None:
    """The layer of depth and height, and then that of width."""
    sizes = sizes_of(call.tensors[0])
    if sizes is None or call.operation.data_format != "channels_last" or not any(planes):
        return None
    of_two, of_width = planes

    def compose(parts: Parts, values: Values) -> Any:
        x, (depth, height, width, channels) = values[call.inputs[0]], sizes
        if of_two is not None:
            x = parts.named(ops.reshape(x, (-1, depth, height, width * channels)), "planes")
            x = parts.layer("of_planes", of_two)(x)
            depth, height = x.shape[1:3]
        if of_width is not None:
            x = parts.named(ops.reshape(x, (-1, depth * height, width, channels)), "rows")
            x = parts.layer("of_rows", of_width)(x)
            width = x.shape[2]
        return parts.named(ops.reshape(x, (-1, depth, height, width, channels)))

    return compose
