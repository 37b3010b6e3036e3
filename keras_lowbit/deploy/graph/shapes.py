"""Output shapes of the integer operations, with the words for what does not fit.

Shapes have the batch axis first, None. Windows follow TensorFlow: "same" gives `ceil(in / stride)`, "valid"
gives `floor((in - reach) / stride) + 1` with `reach = (kernel - 1) * dilation + 1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shape = tuple[int | None, ...]
Attributes = Mapping[str, Any]


def infer_shape(op: str, attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    """Shape of the output of `op` on inputs of these shapes. ValueError with the values if they do not
    fit."""
    return _RULES.get(op, _unchanged)(attributes, shapes)


def windows(size: int, kernel: int, stride: int, padding: str, dilation: int = 1) -> int:
    """How many windows fit into `size`. ValueError if none does."""
    reach = (kernel - 1) * dilation + 1
    count = -(-size // stride) if padding == "same" else (size - reach) // stride + 1
    if count < 1:
        raise ValueError(
            f"a window of {reach} (kernel {kernel}, dilation {dilation}) does not fit into size "
            f"{size} "
            "with padding 'valid'; pad first or use padding 'same'"
        )
    return count


def deconvolved(size: int, kernel: int, stride: int, padding: str) -> int:
    """Output size of a transposed convolution when none is asked for, as Keras has it."""
    return size * stride if padding == "same" else size * stride + max(kernel - stride, 0)


def _need_rank(shape: Shape, rank: int, what: str) -> None:
    if len(shape) != rank:
        raise ValueError(f"{what} needs {rank} axes, got shape {shape}")


def _image(shape: Shape, what: str) -> tuple[int, int, int]:
    _need_rank(shape, 4, what)
    return shape[1], shape[2], shape[3]  # type: ignore[return-value]


def _unchanged(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    return shapes[0]


def _conv2d(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    height, width, channels = _image(shapes[0], "conv2d input")
    kernel, groups = shapes[1], attributes["groups"]
    _need_rank(kernel, 4, "conv2d kernel [KH,KW,IC/groups,OC]")
    if kernel[2] * groups != channels or kernel[3] % groups:
        raise ValueError(
            f"kernel {kernel} with groups={groups} does not fit {channels} input channels: "
            "expected [KH, KW, IC/groups, OC] with OC divisible by groups"
        )
    return (None, *_window_sizes(attributes, (height, width), kernel), kernel[3])


def _depthwise(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    height, width, channels = _image(shapes[0], "depthwise_conv2d input")
    kernel = shapes[1]
    _need_rank(kernel, 4, "depthwise kernel [KH,KW,C,multiplier]")
    if kernel[2] != channels:
        raise ValueError(
            f"depthwise kernel {kernel} does not fit {channels} input channels: expected [KH, KW, C, multiplier]"
        )
    return (None, *_window_sizes(attributes, (height, width), kernel), channels * kernel[3])  # type: ignore[operator]


def _window_sizes(attributes: Attributes, image: tuple[int, int], kernel: Shape) -> tuple[int, ...]:
    strides, padding, dilation = (attributes[key] for key in ("strides", "padding", "dilation"))
    return tuple(windows(image[i], kernel[i] or 0, strides[i], padding, dilation[i]) for i in (0, 1))


def _transpose_conv(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    image = _image(shapes[0], "transpose_conv input")
    kernel = shapes[1]
    _need_rank(kernel, 4, "transpose_conv kernel [KH,KW,OC,IC]")
    if kernel[3] != image[2]:
        raise ValueError(f"kernel {kernel} does not fit {image[2]} input channels: expected [KH, KW, OC, IC]")
    strides, padding, size = attributes["strides"], attributes["padding"], attributes["output_shape"]
    for i in (0, 1):
        back = windows(size[i], kernel[i], strides[i], padding)  # type: ignore[arg-type]
        if back != image[i]:
            raise ValueError(
                f"output_shape {tuple(size)} does not fit: a {padding!r} convolution of it with "
                "kernel "
                f"{kernel[:2]} and strides {tuple(strides)} has size {back} on axis {i + 1}, "
                f"the input has {image[i]}"
            )
    return (None, size[0], size[1], kernel[2])


def _fully_connected(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    _need_rank(shapes[1], 2, "fully_connected kernel [IC,OC]")
    if len(shapes[0]) < 2 or shapes[0][-1] != shapes[1][0]:
        raise ValueError(f"kernel {shapes[1]} does not fit the last axis of input {shapes[0]}: expected [IC, OC]")
    return (*shapes[0][:-1], shapes[1][1])


def _elementwise(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    first, second = shapes
    batched = [s for s in shapes if s and s[0] is None]
    rank = max(len(first), len(second))
    if not batched or rank > 4 or any(len(s) != rank for s in batched):
        raise ValueError(
            f"shapes {first} and {second} do not broadcast: activations need the same number of "
            "axes (at most 4), "
            "and a constant at most as many"
        )
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    if any(s[0] not in (None, 1) for s in padded):
        raise ValueError(f"shapes {first} and {second} do not broadcast: a constant has size 1 on the batch axis")
    return (None, *(_broadcast(a, b, shapes) for a, b in zip(padded[0][1:], padded[1][1:], strict=True)))


def _broadcast(a: int | None, b: int | None, shapes: Sequence[Shape]) -> int:
    if a is None or b is None or (a != b and 1 not in (a, b)):
        raise ValueError(f"shapes {shapes[0]} and {shapes[1]} do not broadcast: axes of {a} and {b}")
    return b if a == 1 else a


def _concatenation(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    axis, first = attributes["axis"], shapes[0]
    if not 1 <= axis < len(first):
        raise ValueError(f"axis {axis} does not fit shape {first}: expected 1 to {len(first) - 1} (0 is the batch)")
    if any(s[:axis] + s[axis + 1 :] != first[:axis] + first[axis + 1 :] or len(s) != len(first) for s in shapes):
        raise ValueError(f"shapes {list(shapes)} differ beyond axis {axis}")
    return (*first[:axis], sum(s[axis] for s in shapes), *first[axis + 1 :])  # type: ignore[misc]


def _pool(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    image = _image(shapes[0], "pooling input")
    pool, strides = attributes["pool_size"], attributes["strides"]
    sizes = (windows(image[i], pool[i], strides[i], attributes["padding"]) for i in (0, 1))
    return (None, *sizes, image[2])


def _mean(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    shape, axes = shapes[0], attributes["axes"]
    if not axes or len(set(axes)) != len(axes) or not all(1 <= a < len(shape) for a in axes):
        raise ValueError(
            f"axes {list(axes)} do not fit shape {shape}: expected different numbers from 1 to {len(shape) - 1}"
        )
    kept = ((i, 1 if i in axes else d) for i, d in enumerate(shape))
    return tuple(d for i, d in kept if attributes["keepdims"] or i not in axes)


def _pad(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    shape, paddings = shapes[0], attributes["paddings"]
    if len(paddings) != len(shape) - 1 or any(len(p) != 2 or min(p) < 0 for p in paddings):
        raise ValueError(
            f"paddings {paddings} do not fit shape {shape}: expected one (before, after) pair "
            ">= 0 for each of the "
            f"{len(shape) - 1} axes after the batch"
        )
    return (None, *(d + p[0] + p[1] for d, p in zip(shape[1:], paddings, strict=True)))


def _reshape(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    target, have = tuple(attributes["shape"]), _count(shapes[0][1:])
    if min(target, default=1) < 1 or _count(target) != have:
        raise ValueError(
            f"cannot reshape {shapes[0]} ({have} elements) to {target} ({_count(target)} elements), batch aside"
        )
    return (None, *target)


def _count(shape: Sequence[int | None]) -> int:
    count = 1
    for size in shape:
        count *= size or 0
    return count


def _transpose(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    perm, shape = list(attributes["perm"]), shapes[0]
    if sorted(perm) != list(range(len(shape))) or perm[0] != 0:
        raise ValueError(f"perm {perm} does not fit shape {shape}: expected every axis once, 0 (the batch) first")
    return tuple(shape[p] for p in perm)


def _strided_slice(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    shape = shapes[0]
    parts = list(zip(attributes["begin"], attributes["end"], attributes["strides"], strict=True))
    fits = len(parts) == len(shape) - 1 and all(
        s > 0 and 0 <= b < e <= d for (b, e, s), d in zip(parts, shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"begin {attributes['begin']}, end {attributes['end']}, strides "
            f"{attributes['strides']} do not fit "
            f"shape {shape}: expected 0 <= begin < end <= size and strides > 0 for each axis "
            "after the batch"
        )
    return (None, *(-(-(e - b) // s) for b, e, s in parts))


def _resize(attributes: Attributes, shapes: Sequence[Shape]) -> Shape:
    channels = _image(shapes[0], "resize input")[2]
    size = tuple(attributes["size"])
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size {size} is not a (height, width) of at least 1")
    return (None, *size, channels)


_RULES: dict[str, Callable[[Attributes, Sequence[Shape]], Shape]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "transpose_conv": _transpose_conv,
    "fully_connected": _fully_connected,
    "add": _elementwise,
    "sub": _elementwise,
    "mul": _elementwise,
    "concatenation": _concatenation,
    "max_pool2d": _pool,
    "average_pool2d": _pool,
    "mean": _mean,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "strided_slice": _strided_slice,
    "resize_nearest": _resize,
    "resize_bilinear": _resize,
}
