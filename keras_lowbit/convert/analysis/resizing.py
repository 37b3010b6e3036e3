"""Which images of other sizes the integer pipeline makes."""

from typing import Any

from keras_lowbit.keras_graph.calls import Call

_MOST_WEIGHTS = 2**16  # of an axis that is resized by a product
_POSITIONS = 1024  # LiteRT's int8 bilinear resizing counts positions in such parts of a pixel


def upsample(call: Call) -> str | None:
    """Why an `UpSampling2D` has no integer form."""
    layer = call.operation
    if layer.interpolation == "nearest":
        return None
    if layer.interpolation != "bilinear":
        return f"its interpolation is {layer.interpolation!r}"
    image, odd = call.tensors[0].shape[1:3], all(factor % 2 for factor in layer.size)
    whole = all(size is None and _POSITIONS % factor == 0 for size, factor in zip(image, layer.size, strict=True))
    if whole or (odd and None not in image):
        return None
    if None in image:
        return f"it resizes images of unknown sizes by {tuple(layer.size)}, neither odd numbers nor powers of two"
    return _bilinear(image, [size * factor for size, factor in zip(image, layer.size, strict=True)])


def meets_positions(size: int | None, made: int | None) -> bool:
    """Whether int8 bilinear resizing meets the positions between pixels exactly along an axis.

    One pixel is repeated. Elsewhere a position off by a part of 1/1024 adds up over the image.
    """
    return size == 1 or (size is not None and made is not None and _POSITIONS * size % made == 0)


def _bilinear(before: Any, after: Any) -> str | None:
    """By LiteRT's resizing where that is exact, else by a product of each axis with the weights of neighbours."""
    largest = max(size * made for size, made in zip(before, after, strict=True))
    if all(map(meets_positions, before, after)) or largest <= _MOST_WEIGHTS:
        return None
    return f"from {tuple(before)} to {tuple(after)} int8 positions would drift: they are parts of 1/1024"


def resize(call: Call) -> str | None:
    """The same of a `Resizing` layer or `keras.ops.image.resize`, to any size."""
    layer, before, after = call.operation, call.tensors[0].shape, call.results[0].shape
    if len(before) != 4 or None in (*before[1:3], *after[1:3]):
        return f"it resizes images of shape {tuple(before)}, whose sizes are not known"
    ratios_stay = before[1] * after[2] == before[2] * after[1]
    cuts = (layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio) and not ratios_stay
    if layer.antialias or cuts:
        return "it smooths, cuts or pads"
    if layer.interpolation == "nearest":
        return None
    if layer.interpolation != "bilinear":
        return f"its interpolation is {layer.interpolation!r}"
    return _bilinear(before[1:3], after[1:3])


def center_crop(call: Call) -> str | None:
    """The same of a `CenterCrop`."""
    before, after = (side[0].shape[-3:-1] for side in (call.tensors, call.results))
    fits = None not in (*before, *after) and all(a >= b for a, b in zip(before, after, strict=True))
    return None if fits else f"it enlarges images of {tuple(before)}, or of unknown sizes, to {tuple(after)}"
