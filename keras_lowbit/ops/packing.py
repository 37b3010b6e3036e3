"""Packed integer weights: the bit and byte order is specified here and nowhere else. NumPy only.

One block holds 64 output channels times one k-block, 4 steps of k.

*ternary*: code c in {0, 1, 2} stands for the weight c - 1 in {-1, 0, +1}. A block is 64 bytes: byte b, two-bit field j
(bits 2j and 2j + 1) belongs to output channel `64 * block + 16 * j + b // 4` and `k = 4 * k_block + b % 4`.
*int8*: a block is 256 bytes: byte `64 * j + b` is the weight of that same channel and k.

The array is uint8 [blocks of output channels, k-blocks, 64 or 256]. k runs over (cluster, kernel row, kernel column,
channel inside the cluster), the channels of a cluster padded up to a multiple of 4. A cluster is `cluster_size`
consecutive input channels over all kernel positions; the last may be shorter; without clusters all input channels are
one. Padding (channels and k beyond the last) holds weight 0: c = 1, or 0 in int8.

Scales are int8 in 0..127, [blocks, clusters, 64], or [blocks, clusters, kernel positions, 64] with one scale for each
kernel position; none at all where every scale is 1. The integer weight is `scale * (c - 1)`. Sums are int32
[64 * blocks]: the sum of all integer weights of a channel; `zero point * sum` is what a kernel takes off once instead of
taking the zero point off every activation. Padding channels hold 0. The groups of a grouped convolution are packed one by
one and follow one another.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_lowbit.numerics.requantization import INT32_MAX

# As custom_ops/core/blocks.h.
BLOCK_CHANNELS, K_BLOCK = 64, 4
CODES_PER_BYTE = 4
FIELD_CHANNELS = BLOCK_CHANNELS // CODES_PER_BYTE  # the channels of one field of a block's bytes
# How the weights of a block follow one another: [channel of a field, k, field] in bytes of four, [field, channel, k].
BLOCK_ORDER = {
    "ternary": (FIELD_CHANNELS, K_BLOCK, CODES_PER_BYTE),
    "int8": (CODES_PER_BYTE, FIELD_CHANNELS, K_BLOCK),
}
BLOCK_BYTES = {"ternary": BLOCK_CHANNELS * K_BLOCK // CODES_PER_BYTE, "int8": BLOCK_CHANNELS * K_BLOCK}
LARGEST_SCALE = 127
LARGEST_INPUT = 255  # |code - zero point| of int8 activations


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kernel is packed, without its bytes: plain numbers that a configuration can hold.

    kind: "ternary" or "int8".   kernel_shape: (rows, columns, input channels of a group, output channels), or (inputs,
    outputs) of a dense layer.   cluster_size: input channels that share a scale; 0: no scales.   per_tap: one scale for
    each kernel position too.   groups: of the convolution.   largest: the largest magnitude of an integer weight.
    Raises ValueError for another kind or shape, and for groups and clusters that do not divide it.

    >>> klb.ops.pack_kernel(np.ones((8, 3), "int8")).layout.kind
    'ternary'
    """

    kind: str
    kernel_shape: tuple[int, ...]
    cluster_size: int = 0
    per_tap: bool = False
    groups: int = 1
    largest: int = LARGEST_SCALE

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel_shape", tuple(int(size) for size in self.kernel_shape))
        sizes, outputs = self.kernel_shape, self.kernel_shape[-1] if self.kernel_shape else 0
        if self.kind not in BLOCK_BYTES or len(sizes) not in (2, 4) or min(sizes) < 1:
            raise ValueError(
                f"layout {self.kind!r} of a kernel {sizes}: expected one of {', '.join(BLOCK_BYTES)} and "
                "[kh, kw, c_in, c_out] or [c_in, c_out], every size at least 1"
            )
        if self.groups < 1 or outputs % self.groups or self.cluster_size < 0 or not 0 <= self.largest <= 128:
            raise ValueError(
                f"layout with groups={self.groups}, cluster_size={self.cluster_size}, largest={self.largest} "
                f"for {outputs} output channels: "
                "expected groups that divide the channels, a cluster size of 0 or more, and a largest weight of 0 to 128"
            )

    @property
    def window(self) -> tuple[int, int, int, int]:
        """(rows, columns, input channels of a group, output channels); a dense layer is a 1x1 convolution."""
        rows, columns, inputs, outputs = (1, 1, *self.kernel_shape)[-4:]
        return rows, columns, inputs, outputs

    @property
    def cluster(self) -> int:
        """Input channels of one cluster; all of the group's where there are no clusters."""
        inputs = self.window[2]
        return min(self.cluster_size or inputs, inputs)

    @property
    def clusters(self) -> int:
        """Clusters of one group's input channels."""
        return -(-self.window[2] // self.cluster)

    @property
    def group_outputs(self) -> int:
        """Output channels of one group."""
        return self.window[3] // self.groups

    @property
    def blocks(self) -> int:
        """Blocks of 64 output channels, of all groups."""
        return self.groups * -(-self.group_outputs // BLOCK_CHANNELS)

    @property
    def k_blocks(self) -> int:
        """k-blocks of all kernel positions and clusters: 4 steps of k each."""
        rows, columns, inputs, _ = self.window
        whole, rest = divmod(inputs, self.cluster)
        return rows * columns * (whole * -(-self.cluster // K_BLOCK) + -(-rest // K_BLOCK))

    @property
    def data_shape(self) -> tuple[int, int, int]:
        """Shape of the packed bytes."""
        return self.blocks, self.k_blocks, BLOCK_BYTES[self.kind]

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Shape of the scales, (0,) where there are none."""
        if not self.cluster_size:
            return (0,)
        taps = (self.window[0] * self.window[1],) if self.per_tap else ()
        return (self.blocks, self.clusters, *taps, BLOCK_CHANNELS)

    @property
    def sums_shape(self) -> tuple[int]:
        """Shape of the sums."""
        return (self.blocks * BLOCK_CHANNELS,)

    @property
    def largest_sum(self) -> int:
        """Bound of `|sum (x - zero point) * w|` over one window, from the largest weight alone."""
        rows, columns, inputs, _ = self.window
        return LARGEST_INPUT * self.largest * rows * columns * inputs

    def k_index(self) -> NDArray[np.int64]:
        """Place in k of every weight of a group: [rows, columns, input channels]."""
        rows, columns, inputs, _ = self.window
        channel = np.arange(inputs)
        cluster, inside = channel // self.cluster, channel % self.cluster
        width = -(-np.minimum(self.cluster, inputs - cluster * self.cluster) // K_BLOCK) * K_BLOCK
        start = cluster * rows * columns * (-(-self.cluster // K_BLOCK) * K_BLOCK)
        return start + np.arange(rows * columns).reshape(rows, columns, 1) * width + inside


@dataclasses.dataclass(frozen=True, eq=False)
class PackedWeights:
    """Packed weights: a layout and its arrays, as NumPy arrays or (inside layers and graphs) as tensors of those shapes.

    layout: a `Layout`.   data: uint8, the packed codes.   scales: int8, of the clusters.   sums: int32, of each output
    channel's weights.
    Raises ValueError for arrays that do not fit the layout.

    >>> klb.ops.pack_kernel(np.ones((256, 64), "int8")).data.nbytes  # two bits a weight
    4096
    """

    layout: Layout
    data: NDArray[np.uint8]
    scales: NDArray[np.int8]
    sums: NDArray[np.int32]

    @property
    def packed_bytes(self) -> int:
        """Bytes of data, scales and sums."""
        return self.data.nbytes + self.scales.nbytes + self.sums.nbytes

    def check(self) -> None:
        """ValueError if an array does not have the shape that the layout says."""
        layout = self.layout
        expected = {"data": layout.data_shape, "scales": layout.scales_shape, "sums": layout.sums_shape}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(
                    f"packed {name} have shape {found}; "
                    f"a kernel {layout.kernel_shape} with cluster_size={layout.cluster_size}, groups={layout.groups} "
                    f"has {shape}: pack it again with pack_ternary or pack_int8"
                )


def pack_ternary(
    codes: ArrayLike, scales: ArrayLike | None = None, cluster_size: int | None = None, groups: int = 1
) -> PackedWeights:
    """Packs ternary codes at two bits each, and the scales of their clusters.

    codes: integers -1, 0 or 1, [kh, kw, c_in / groups, c_out] or [c_in, c_out].   groups: of the convolution.
    scales: integers 0..127, [clusters, c_out], [c_out] or a single one, broadcast, or [kh, kw, clusters, c_out]; None: all 1.
    cluster_size: consecutive input channels that share a scale, all of them by default.   Returns a `PackedWeights`.
    Raises ValueError with the offending values for anything else, and where a sum could leave int32.

    >>> codes, scales = np.ones((3, 3, 8, 16), "int8"), np.full((2, 16), 5, "int8")
    >>> packed = klb.ops.pack_ternary(codes, scales, cluster_size=4)
    >>> klb.ops.unpack(packed).max()  # codes times scales, int8
    np.int8(5)
    """
    codes = _checked_codes(codes, (-1, 1), "put what multiplies them into scales")
    inputs = codes.shape[-2]
    if cluster_size is not None and (not isinstance(cluster_size, (int, np.integer)) or cluster_size < 1):
        raise ValueError(f"cluster_size is {cluster_size!r}; expected a whole number of at least 1, or None")
    if scales is None:
        return _packed(Layout("ternary", codes.shape, groups=groups, largest=1), codes, None)
    size = min(int(cluster_size or inputs), inputs)
    table = _checked_scales(scales, codes.shape, -(-inputs // size))
    layout = Layout("ternary", codes.shape, size, table.shape[0] > 1, groups, int(table.max()))
    return _packed(layout, codes, table)


def pack_int8(kernel: ArrayLike, groups: int = 1) -> PackedWeights:
    """Packs int8 weights -127..127, [kh, kw, c_in / groups, c_out] or [c_in, c_out], one byte each.

    kernel: int8, or integers that fit.   groups: of the convolution.
    Returns a `PackedWeights`.
    ValueError as in `pack_ternary`.

    >>> klb.ops.unpack(klb.ops.pack_int8(np.full((8, 3), 5, "int8"))).max()
    np.int8(5)
    """
    kernel = _checked_codes(kernel, (-LARGEST_SCALE, LARGEST_SCALE), "quantize them to int8")
    largest = int(np.abs(kernel.astype(np.int16)).max())
    return _packed(Layout("int8", kernel.shape, groups=groups, largest=largest), kernel, None)


def pack_kernel(kernel: ArrayLike, groups: int = 1, sizes: tuple[int, ...] = (64, 32, 16)) -> PackedWeights:
    """Packs an int8 kernel the smallest way: ternary where its magnitudes are 0 or one value in every cluster, else int8.

    One cluster of all input channels (one scale per output channel) is tried first, then `sizes` in turn; smaller
    clusters pay more for their scales and padding than two-bit weights save in time.
    kernel: int8, [kh, kw, c_in / groups, c_out] or [c_in, c_out].   groups: of the convolution.
    Returns a `PackedWeights`.

    >>> klb.ops.pack_kernel(np.array([[7, 0], [-7, 7]], "int8")).layout.kind  # one magnitude
    'ternary'
    """
    packed = pack_if_ternary(kernel, groups, sizes)
    return pack_int8(kernel, groups) if packed is None else packed


def pack_if_ternary(kernel: ArrayLike, groups: int = 1, sizes: tuple[int, ...] = (64, 32, 16)) -> PackedWeights | None:
    """As `pack_kernel`; None where that gives int8."""
    kernel = np.asarray(kernel)
    window = np.abs(kernel.reshape(-1, *kernel.shape[-2:]).astype(np.int16))  # [positions, inputs, outputs]
    inputs = kernel.shape[-2]
    if window.max(initial=0) <= 1:
        return pack_ternary(kernel, groups=groups)
    for size in (inputs, *(size for size in sizes if size < inputs)):
        scales = _one_magnitude(window, size)
        if scales is not None and scales.max() <= LARGEST_SCALE:
            return pack_ternary(np.sign(kernel), scales, size, groups)
    return None


def unpack(packed: PackedWeights) -> NDArray[np.int8]:
    """The integer weights `scale * code` as int8, in the shape that was packed.

    packed: from `pack_ternary`, `pack_int8` or `pack_kernel`.
    Returns int8.
    ValueError if the arrays do not fit the layout.

    >>> kernel = np.array([[1, 0], [-1, 1]], "int8")
    >>> bool((klb.ops.unpack(klb.ops.pack_ternary(kernel)) == kernel).all())
    True
    """
    packed.check()
    kernel = unpack_codes(packed).astype(np.int16) * spread_scales(packed)
    return kernel.astype(np.int8).reshape(packed.layout.kernel_shape)


def unpack_codes(packed: PackedWeights) -> NDArray[np.int8]:
    """The codes alone, [rows, columns, input channels, output channels]: -1, 0, 1, or the int8 weights."""
    layout = packed.layout
    data = np.asarray(packed.data)
    if layout.kind == "ternary":
        fields = (data[..., None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3  # [blocks, k-blocks, 64, 4]
        fields = fields.reshape(*data.shape[:2], *BLOCK_ORDER["ternary"]).transpose(1, 3, 0, 4, 2).astype(np.int8) - 1
    else:
        fields = data.view(np.int8).reshape(*data.shape[:2], *BLOCK_ORDER["int8"]).transpose(1, 4, 0, 2, 3)
    by_k = fields.reshape(layout.k_blocks * K_BLOCK, layout.groups, -1)[..., : layout.group_outputs]
    codes = by_k[layout.k_index()]  # [rows, columns, inputs, groups, outputs of a group]
    return codes.reshape(layout.window)


def spread_scales(packed: PackedWeights) -> NDArray[np.int8]:
    """The scale of every weight, broadcastable to [rows, columns, input channels, output channels]."""
    layout = packed.layout
    rows, columns, inputs, outputs = layout.window
    if not layout.cluster_size:
        return np.ones((1, 1, 1, 1), np.int8)
    taps = (rows, columns) if layout.per_tap else (1, 1)
    scales = np.asarray(packed.scales).reshape(layout.groups, -1, layout.clusters, *taps, BLOCK_CHANNELS)
    scales = scales.transpose(3, 4, 2, 0, 1, 5)  # [rows, columns, clusters, groups, blocks, 64]
    scales = scales.reshape(*taps, layout.clusters, layout.groups, -1)[..., : layout.group_outputs]
    return scales.reshape(*taps, layout.clusters, outputs)[:, :, np.arange(inputs) // layout.cluster]


def _packed(layout: Layout, codes: np.ndarray, scales: np.ndarray | None) -> PackedWeights:
    """codes: int8 in the layout's kernel shape.   scales: [positions or 1, clusters, output channels]."""
    window = codes.reshape(layout.window)
    pack = _ternary_bytes if layout.kind == "ternary" else _int8_bytes
    packed = PackedWeights(layout, pack(layout, _by_k(layout, window)), np.zeros(0, np.int8), np.zeros(0, np.int32))
    if scales is not None:
        taps = scales.shape[0]
        by_group = _pad_last(scales.reshape(taps, layout.clusters, layout.groups, -1))  # [.., groups, blocks, 64]
        by_group = by_group.transpose(2, 3, 1, 0, 4).astype(np.int8)  # [groups, blocks, clusters, taps, 64]
        packed = dataclasses.replace(packed, scales=by_group.reshape(layout.scales_shape))
    weights = window.astype(np.int32) * spread_scales(packed)
    sums = weights.sum(axis=(0, 1, 2))
    _check_sums(layout, np.maximum(weights, 0).sum(axis=(0, 1, 2)), sums)
    sums = _pad_last(sums.reshape(layout.groups, -1)).reshape(-1)
    return dataclasses.replace(packed, sums=sums.astype(np.int32))


def _check_sums(layout: Layout, positive: np.ndarray, sums: np.ndarray) -> None:
    """positive: the sum of a channel's weights above 0.   sums: of all. The zero point decides which side counts most."""
    reach = LARGEST_INPUT * np.maximum(positive, positive - sums)
    if reach.max() > INT32_MAX:
        raise ValueError(
            f"channel {reach.argmax()} of a kernel {layout.kernel_shape} can sum to {reach.max()}, "
            f"more than int32 holds ({INT32_MAX}): use smaller scales, or split the input channels over two layers"
        )


def _by_k(layout: Layout, window: np.ndarray) -> NDArray[np.int8]:
    """[k, blocks * 64] codes in the order of k, zeros in the padding."""
    by_k = np.zeros((layout.k_blocks * K_BLOCK, layout.groups, layout.group_outputs), np.int8)
    by_k[layout.k_index().reshape(-1)] = window.reshape(-1, layout.groups, layout.group_outputs)
    return _pad_last(by_k).reshape(layout.k_blocks * K_BLOCK, -1)


def _ternary_bytes(layout: Layout, by_k: np.ndarray) -> NDArray[np.uint8]:
    fields = _by_field(layout, (by_k + 1).astype(np.uint8)).transpose(
        2, 0, 4, 1, 3
    )  # [block, k-block, channel, k, field]
    shifted = fields << np.arange(0, 8, 2, dtype=np.uint8)
    return np.bitwise_or.reduce(shifted, axis=-1).astype(np.uint8).reshape(layout.data_shape)


def _int8_bytes(layout: Layout, by_k: np.ndarray) -> NDArray[np.uint8]:
    fields = _by_field(layout, by_k).transpose(2, 0, 3, 4, 1)
    return np.ascontiguousarray(fields).view(np.uint8).reshape(layout.data_shape)


def _by_field(layout: Layout, by_k: np.ndarray) -> np.ndarray:
    """[k, blocks * 64] as [k-block, k, block, field, channel of a field]."""
    return by_k.reshape(layout.k_blocks, K_BLOCK, layout.blocks, CODES_PER_BYTE, FIELD_CHANNELS)


def _pad_last(values: np.ndarray) -> np.ndarray:
    """[..., channels] as [..., blocks, 64], zeros at the end."""
    edges = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % BLOCK_CHANNELS)]
    return np.pad(values, edges).reshape(*values.shape[:-1], -1, BLOCK_CHANNELS)


def _one_magnitude(window: np.ndarray, size: int) -> np.ndarray | None:
    """[clusters, outputs]: the one magnitude of each cluster of [positions, inputs, outputs]; None if one has two."""
    positions, inputs, outputs = window.shape
    clusters = np.pad(window, ((0, 0), (0, -inputs % size), (0, 0))).reshape(positions, -1, size, outputs)
    largest = clusters.max(axis=(0, 2))
    return largest if ((clusters == 0) | (clusters == largest[:, None])).all() else None


def _checked_codes(codes: ArrayLike, limits: tuple[int, int], remedy: str) -> NDArray[np.int8]:
    array, (low, high) = np.asarray(codes), limits
    if array.ndim not in (2, 4) or 0 in array.shape:
        raise ValueError(
            f"codes have shape {array.shape}; "
            "expected [kh, kw, c_in, c_out] of a convolution or [c_in, c_out] of a dense layer, every size at least 1"
        )
    wrong = ~((array >= low) & (array <= high) & (array == np.trunc(array)))
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} of {array.size} codes do not fit, for example {array[wrong].flat[0]}; "
            f"expected whole numbers from {low} to {high}: {remedy}"
        )
    return array.astype(np.int8)


def _checked_scales(scales: ArrayLike, kernel_shape: tuple[int, ...], clusters: int) -> NDArray[np.int8]:
    """[positions or 1, clusters, output channels]."""
    array, outputs = np.asarray(scales), kernel_shape[-1]
    expected = (*kernel_shape[:-2], clusters, outputs) if array.ndim > 2 else (clusters, outputs)
    fits = array.ndim <= len(expected) and all(
        have in (1, want) for have, want in zip(array.shape[::-1], expected[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"scales have shape {array.shape}; "
            f"expected [clusters, c_out] = {(clusters, outputs)}, [c_out], a single number, or [kh, kw, clusters, c_out]: "
            "a cluster is cluster_size consecutive input channels"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"scales are {array.dtype}; expected integers 0..{LARGEST_SCALE}: a real factor belongs to the output's scale"
        )
    if not (array.min() >= 0 and array.max() <= LARGEST_SCALE):
        raise ValueError(
            f"scales reach from {array.min()} to {array.max()}; expected 0..{LARGEST_SCALE}: the sign belongs to the codes"
        )
    return np.broadcast_to(array, expected).reshape(-1, clusters, outputs).astype(np.int8)
