"""Packing: every code comes back, every bit is where the specification says, and what does not fit is refused in words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_lowbit import ops
from keras_lowbit.ops.packing import Layout


@st.composite
def kernels(draw):
    """(codes, scales or None, cluster size or None, groups)."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inputs, outputs = draw(st.integers(1, 19)), groups * draw(st.sampled_from([1, 3, 16, 63, 64, 65, 130]))
    window = draw(st.sampled_from([(), (1, 1), (3, 3), (2, 4)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(-1, 2, (*window, inputs, outputs)).astype(np.int8)
    size = draw(st.integers(1, 20)) if draw(st.booleans()) else None
    clusters = -(-inputs // min(size or inputs, inputs))
    shape = draw(st.sampled_from([None, (clusters, outputs), (outputs,), (), (*window, clusters, outputs)]))
    scales = None if shape is None else rng.integers(0, 128, shape)
    return codes, scales, size, groups


def multiplied(codes, scales, size):
    """codes times the scale of their cluster, by loops over clusters."""
    kernel = codes.astype(np.int64)
    if scales is None:
        return kernel
    inputs, outputs = codes.shape[-2:]
    size = min(size or inputs, inputs)
    clusters = -(-inputs // size)
    scales = np.asarray(scales)
    table = np.broadcast_to(scales, (*codes.shape[:-2], clusters, outputs))
    for channel in range(inputs):
        kernel[..., channel, :] *= table[..., channel // size, :]
    return kernel


@given(kernels())
def test_unpack_gives_codes_times_scales(given_):
    codes, scales, size, groups = given_
    packed = ops.pack_ternary(codes, scales, size, groups)
    packed.check()
    expected = multiplied(codes, scales, size)
    np.testing.assert_array_equal(ops.unpack(packed), expected)
    sums = expected.reshape(-1, codes.shape[-1]).sum(0).reshape(groups, -1)
    got = packed.sums.reshape(groups, -1)
    np.testing.assert_array_equal(got[:, : sums.shape[1]], sums)
    assert not got[:, sums.shape[1] :].any()


@given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 7), (1, 64), (3, 3, 6, 65), (2, 1, 4, 12)]))
def test_int8_comes_back(seed, shape):
    kernel = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)
    np.testing.assert_array_equal(ops.unpack(ops.pack_int8(kernel)), kernel)


def test_every_bit_is_where_the_specification_says():
    """One weight at a time, placed by the words of the specification."""
    rows, columns, inputs, outputs, size = 2, 2, 7, 70, 3
    rng = np.random.default_rng(0)
    for _ in range(200):
        i, j, channel, output = (int(rng.integers(n)) for n in (rows, columns, inputs, outputs))
        code = int(rng.choice([-1, 1]))
        codes = np.zeros((rows, columns, inputs, outputs), np.int8)
        codes[i, j, channel, output] = code
        cluster, inside = divmod(channel, size)
        width = 4  # 3 channels, or the 1 channel of the last cluster, padded to 4
        k = cluster * rows * columns * 4 + (i * columns + j) * width + inside
        expected = np.full((2, 12, 64), 0b01010101, np.uint8)
        block, field, byte = output // 64, output % 64 // 16, output % 16 * 4 + k % 4
        expected[block, k // 4, byte] ^= (0b01 ^ (code + 1)) << 2 * field
        np.testing.assert_array_equal(ops.pack_ternary(codes, 1, size).data, expected)


def test_int8_bytes_are_where_the_specification_says():
    kernel = np.zeros((10, 70), np.int8)
    kernel[9, 69] = -5
    data = ops.pack_int8(kernel).data.view(np.int8)
    assert data.shape == (2, 3, 256)
    assert data[1, 2, 64 * (5 // 16) + 5 % 16 * 4 + 9 % 4] == -5
    assert np.count_nonzero(data) == 1


def test_a_sixteenth_of_float():
    packed = ops.pack_ternary(np.zeros((3, 3, 256, 256), np.int8))
    assert packed.data.nbytes * 16 == 3 * 3 * 256 * 256 * 4
    assert packed.packed_bytes - packed.data.nbytes == 256 * 4


def test_pack_kernel_finds_what_a_kernel_is():
    rng = np.random.default_rng(1)
    signs = rng.integers(-1, 2, (1, 1, 64, 8)).astype(np.int8)
    assert ops.pack_kernel(signs).layout.cluster_size == 0
    per_channel = ops.pack_kernel(signs * np.arange(1, 9, dtype=np.int8))
    assert (per_channel.layout.kind, per_channel.layout.cluster_size) == ("ternary", 64)
    clustered = (signs.reshape(4, 16, 8) * rng.integers(1, 128, (4, 1, 8))).astype(np.int8).reshape(1, 1, 64, 8)
    assert ops.pack_kernel(clustered).layout.cluster_size == 16
    plain = rng.integers(-127, 128, (1, 1, 64, 8)).astype(np.int8)
    assert ops.pack_kernel(plain).layout.kind == "int8"
    for kernel in (signs, clustered, plain):
        np.testing.assert_array_equal(ops.unpack(ops.pack_kernel(kernel)), kernel)


def test_int32_is_exceeded_by_the_real_sums_alone():
    """66,311 weights of 127 and one of 7: times 255 the last sum that int32 holds, whatever the zero point."""
    column = np.r_[np.full(66_311, 127), 7]
    wide = np.stack([column, -column, np.where(np.arange(len(column)) % 2, 127, -127)], axis=1)
    np.testing.assert_array_equal(ops.unpack(ops.pack_int8(wide)), wide)
    for channel in (0, 1):
        more = wide.copy()
        more[-1, channel] += 1 - 2 * channel
        with pytest.raises(ValueError, match=rf"^channel {channel} of .*66312, 3.* can sum to 2147483775, more"):
            ops.pack_int8(more)


ONE = np.ones((4, 4), np.int8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ops.pack_ternary(ONE * 2), "16 of 16 codes do not fit, for example 2"),
        (lambda: ops.pack_ternary(ONE * 0.5), "whole numbers from -1 to 1"),
        (lambda: ops.pack_ternary(ONE * np.nan), "16 of 16 codes do not fit"),
        (lambda: ops.pack_ternary(np.ones((3, 4, 4), np.int8)), r"codes have shape \(3, 4, 4\)"),
        (lambda: ops.pack_ternary(np.ones((4, 0), np.int8)), r"every size at least 1"),
        (lambda: ops.pack_ternary(ONE, 128), "from 128 to 128; expected 0..127"),
        (lambda: ops.pack_ternary(ONE, -1), "the sign belongs to the codes"),
        (lambda: ops.pack_ternary(ONE, 0.5), "scales are float64; expected integers"),
        (lambda: ops.pack_ternary(ONE, np.ones((3, 4), int), 2), r"expected \[clusters, c_out\] = \(2, 4\)"),
        (lambda: ops.pack_ternary(ONE, 1, 0), "cluster_size is 0"),
        (lambda: ops.pack_ternary(ONE, groups=3), "groups=3"),
        (lambda: ops.pack_ternary(np.ones((70000, 1), np.int8), 127), "more than int32 holds"),
        (lambda: ops.pack_int8(ONE * -128), "from -127 to 127"),
        (lambda: Layout("base3", (4, 4)), "'base3'"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_arrays_that_do_not_fit_their_layout_are_refused():
    packed = ops.pack_ternary(ONE)
    broken = ops.PackedWeights(packed.layout, packed.data[:, :0], packed.scales, packed.sums)
    with pytest.raises(ValueError, match=r"packed data have shape \(1, 0, 64\).* has \(1, 1, 64\)"):
        ops.unpack(broken)
