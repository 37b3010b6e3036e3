"""Reference kernels that keep the grid: pad, reshape, transpose, slice, concatenate, resize."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keras_lowbit.deploy.reference.call import NodeCall, kernel
from keras_lowbit.numerics import requantization as fp


@kernel("concatenation")
def concatenation(call: NodeCall) -> np.ndarray:
    """The inputs one after the other on `axis`; all share one grid."""
    return np.concatenate(call.arrays, axis=call.attributes["axis"])


@kernel("pad")
def pad(call: NodeCall) -> np.ndarray:
    """Zero points (real 0) around the image."""
    zero = call.inputs[0].zero_point
    pairs = [tuple(p) for p in call.attributes["paddings"]]
    return np.pad(call.arrays[0], [(0, 0), *pairs], constant_values=zero)


@kernel("reshape")
def reshape(call: NodeCall) -> np.ndarray:
    """The same codes in another shape; the batch axis stays."""
    return call.arrays[0].reshape(call.arrays[0].shape[0], *call.attributes["shape"])


@kernel("transpose")
def transpose(call: NodeCall) -> np.ndarray:
    """Axes in the order of `perm`."""
    return np.ascontiguousarray(call.arrays[0].transpose(call.attributes["perm"]))


@kernel("strided_slice")
def strided_slice(call: NodeCall) -> np.ndarray:
    """`x[:, begin:end:stride, ...]`; one triple for each axis after the batch."""
    triples = zip(call.attributes["begin"], call.attributes["end"], call.attributes["strides"], strict=True)
    return np.ascontiguousarray(call.arrays[0][(slice(None), *(slice(b, e, s) for b, e, s in triples))])


@kernel("gather")
def gather(call: NodeCall) -> np.ndarray:
    """The places `indices` of `axis`."""
    return np.take(call.arrays[0], call.attributes["indices"], call.attributes["axis"])


@kernel("embedding")
def embedding(call: NodeCall) -> np.ndarray:
    """Row by row of the table."""
    ids, table = call.arrays
    if ids.size and not (ids.min() >= 0 and ids.max() < len(table)):
        least, most = ids.min(), ids.max()
        raise ValueError(
            f"ids from {least} to {most} are not in the table, whose rows are ids from 0 to {len(table) - 1}"
        )
    return table[ids]


@kernel("argmax")
def argmax(call: NodeCall) -> np.ndarray:
    """Place of the largest code, the first of several."""
    return call.arrays[0].argmax(axis=call.attributes["axis"]).astype(np.int32)


@kernel("argmin")
def argmin(call: NodeCall) -> np.ndarray:
    """Place of the smallest code, the first of several."""
    return call.arrays[0].argmin(axis=call.attributes["axis"]).astype(np.int32)


@kernel("top_k")
def top_k(call: NodeCall) -> list[np.ndarray]:
    """The k largest codes of the last axis and their places; of equal codes the first ones come first."""
    codes = call.arrays[0]
    places = np.argsort(-codes.astype(np.int32), axis=-1, kind="stable")[..., : call.attributes["k"]]
    return [np.take_along_axis(codes, places, axis=-1), places.astype(np.int32)]


@kernel("resize_nearest")
def resize_nearest(call: NodeCall) -> np.ndarray:
    """Copies the nearest pixel; float32 positions, `floor((i + 0.5) * in / out)` with half-pixel centres."""
    image = call.arrays[0]
    for axis, size in zip((1, 2), call.attributes["size"], strict=True):
        image = np.take(image, nearest_pixels(image.shape[axis], size, call), axis=axis)
    return image


@kernel("resize_bilinear")
def resize_bilinear(call: NodeCall) -> NDArray[np.int8]:
    """Weighs four pixels; positions and weights in steps of 1/1024; halves are rounded away from zero."""
    image = call.arrays[0].astype(np.int64)
    rows, columns = (linear_pixels(image.shape[k + 1], call.attributes["size"][k], call) for k in (0, 1))
    total = np.zeros((), np.int64)
    for row, row_weight in rows:
        for column, column_weight in columns:
            weight = row_weight[:, None, None] * column_weight[:, None]
            total = total + image[:, row][:, :, column] * weight
    return fp.divide_toward_zero(total + np.where(total > 0, 1 << 19, -(1 << 19)), 1 << 20).astype(call.output.dtype)


def nearest_pixels(size: int, out_size: int, call: NodeCall) -> NDArray[np.int64]:
    """For each output pixel of one axis: the input pixel that it copies."""
    aligned = bool(call.attributes.get("align_corners", False))
    corner = int(aligned and out_size > 1)
    scale = np.float32(size - corner) / np.float32(out_size - corner)
    position = (np.arange(out_size, dtype=np.float32) + np.float32(0.5 * _half_pixel(call))) * scale
    whole = fp.round_half_away(position) if aligned else np.floor(position)
    return np.minimum(whole.astype(np.int64), size - 1)


def linear_pixels(size: int, out_size: int, call: NodeCall) -> list[tuple[np.ndarray, np.ndarray]]:
    """For one axis: (lower pixels, their weights) and (upper pixels, their weights), weights in 1/1024."""
    corner = int(bool(call.attributes.get("align_corners", False)) and out_size > 1)
    scale = (1024 * (size - corner) + (out_size - corner) // 2) // (out_size - corner)
    position = np.arange(out_size) * scale + (scale // 2 - 512 if _half_pixel(call) else 0)
    lower = np.maximum(fp.divide_toward_zero(position, 1024), 0)
    upper = np.minimum(fp.divide_toward_zero(position + 1023, 1024), size - 1)
    fraction = position - 1024 * lower
    return [(np.minimum(lower, size - 1), 1024 - fraction), (upper, fraction)]


def _half_pixel(call: NodeCall) -> bool:
    return bool(call.attributes.get("half_pixel_centers", True))
