"""Sums of products in float32, or float64, against Python's integers, also where they are largest."""

import numpy as np
import pytest

from keras_lowbit.deploy.reference import exact_sums


def wrapped(total):
    return ((total.astype(object) + 2**31) % 2**32 - 2**31).astype(np.int64)


def product(x, weights):
    return wrapped(x.astype(np.int64) @ weights.astype(np.int64))


@pytest.mark.parametrize("depth", [1, 500, 517, 518, 519, 5000])
def test_the_largest_codes_are_summed_exactly(depth):
    """All 255 and -128: from 515 products on a float32 sum is no longer whole; one less in the last place would show."""
    x, weights = np.full((3, depth), 255), np.full((depth, 4), -128)
    x[0, -1], weights[-1, 0] = 254, -127
    np.testing.assert_array_equal(exact_sums.matmul(x, weights), product(x, weights))


def test_sums_beyond_int32_wrap_as_litert_does():
    x, weights = np.full((1, 70_000), 255), np.full((70_000, 2), 127)
    assert 70_000 * 255 * 127 > 2**31
    np.testing.assert_array_equal(exact_sums.matmul(x, weights), product(x, weights))


def test_the_rows_of_images_are_those_of_one_product():
    random = np.random.default_rng(3)
    x, weights = random.integers(-255, 256, (2, 3, 5, 700)), random.integers(-128, 128, (700, 6))
    np.testing.assert_array_equal(exact_sums.matmul(x, weights), product(x, weights))
    assert exact_sums.matmul(x[:, :0], weights).shape == (2, 0, 5, 6)


@pytest.mark.parametrize("largest", [1, 7, 127])
def test_random_products_and_how_many_are_added_at_once(largest):
    random = np.random.default_rng(largest)
    x, weights = random.integers(-255, 256, (9, 3000)), random.integers(-largest, largest + 1, (3000, 5))
    np.testing.assert_array_equal(exact_sums.matmul(x, weights), product(x, weights))
    block = exact_sums.exact_terms(x.astype(np.float32), weights.astype(np.float32))
    worst = max((np.abs(x[:, k : k + block]) @ np.abs(weights[k : k + block])).max() for k in range(0, 3000, block))
    assert worst <= exact_sums.EXACT[np.dtype(np.float32)]
    assert block == 3000 or largest == 127  # small weights need no blocks


def test_the_largest_codes_of_sixteen_bits_are_summed_exactly():
    """Given as float64: products beyond what float32 holds, sums beyond int32."""
    x, weights = np.full((2, 3000), -(2.0**15)), np.full((3000, 4), -127)
    x[0, -1], weights[-1, 0] = 2**15 - 1, -126
    total = exact_sums.matmul(x, weights)
    assert total.dtype == np.int64
    np.testing.assert_array_equal(total, x.astype(np.int64) @ weights.astype(np.int64))
    image, kernel = x[:, :1024].reshape(2, 8, 8, 16), np.full((3, 3, 16, 5), 127)
    found = exact_sums.conv2d(image, kernel, (2, 1), (1, 2), 1)
    np.testing.assert_array_equal(found, by_hand(image, kernel, (2, 1), (1, 2), 1))


def by_hand(image, kernel, strides, dilation, groups):
    """The definition, a pixel at a time."""
    rows, columns, inside, outputs = kernel.shape
    size = [(image.shape[k + 1] - (kernel.shape[k] - 1) * dilation[k] - 1) // strides[k] + 1 for k in (0, 1)]
    total = np.zeros((len(image), *size, outputs), np.int64)
    for i, j, c, o in np.ndindex(rows, columns, inside, outputs):
        source = o // (outputs // groups) * inside + c
        part = image[:, i * dilation[0] :, j * dilation[1] :, source][:, :: strides[0], :: strides[1]]
        total[..., o] += part[:, : size[0], : size[1]].astype(np.int64) * int(kernel[i, j, c, o])
    return total


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("strides", "dilation"), [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 1), (2, 1))])
@pytest.mark.parametrize("chunk", [1, exact_sums.CHUNK], ids=["row by row", "at once"])
def test_convolutions(monkeypatch, groups, strides, dilation, chunk):
    monkeypatch.setattr(exact_sums, "CHUNK", chunk)
    random = np.random.default_rng(groups)
    image, kernel = random.integers(-255, 256, (2, 9, 8, 6)), random.integers(-128, 128, (3, 2, 6 // groups, 12))
    found = exact_sums.conv2d(image, kernel, strides, dilation, groups)
    np.testing.assert_array_equal(found, by_hand(image, kernel, strides, dilation, groups))


def test_depthwise_with_a_multiplier():
    random = np.random.default_rng(0)
    image, kernel = random.integers(-255, 256, (2, 7, 6, 4)), random.integers(-128, 128, (3, 2, 4, 3))
    wanted = by_hand(image, kernel.reshape(3, 2, 1, 12), (2, 1), (1, 2), 4)
    np.testing.assert_array_equal(exact_sums.depthwise(image, kernel, (2, 1), (1, 2)), wanted)
