"""Multiplications left, by hand and on the ResNet-101 of the papers."""

import keras
import numpy as np
import pytest

import keras_lowbit as klb
from keras_lowbit.deploy.multiplications import multiplications_left
from keras_lowbit.quantizers import Binary, Clustered, Incremental, PowerOfTwo, Stochastic, Ternary, Uniform
from tests.support.lowering_zoo import case

kl = keras.layers
STEM = ((7, 7, 3, 64), 112)


def resnet101_blocks():
    """Kernel and output size of the 103 convolutions behind the stem, 224 px, stride in the first 1x1 (He et al. 2015)."""
    found, inputs, side = [], 64, 56
    for blocks, width, stride in ((3, 64, 1), (4, 128, 2), (23, 256, 2), (3, 512, 2)):
        for block in range(blocks):
            side //= stride if block == 0 else 1
            found += [((1, 1, inputs, width), side), ((3, 3, width, width), side), ((1, 1, width, 4 * width), side)]
            found += [((1, 1, inputs, 4 * width), side)] if block == 0 else []
            inputs = 4 * width
    return found


def removed(layers):
    """Share of multiplications removed, for (quantizer, (kernel shape, side)) pairs."""
    macs = sum(np.prod(shape) * side**2 for _, (shape, side) in layers)
    left = sum(multiplications_left(each, shape, (-1,)) * shape[-1] * side**2 for each, (shape, side) in layers)
    return 100 * (1 - left / macs)


@pytest.mark.parametrize(
    ("size", "groups", "percent"),
    [(4, "kernels", 86.4), (64, "kernels", 99.15), (4, "weights", 75.0), (64, "weights", 98.4)],
)
def test_the_convolution_stack_of_resnet_101(size, groups, percent):
    blocks = resnet101_blocks()
    assert len(blocks) == 103
    quantizer = Clustered(Ternary(), size, groups=groups)
    assert removed([(quantizer, layer) for layer in blocks]) == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(("size", "percent"), [(4, 85.0), (64, 97.6)])
def test_with_the_stem_at_8_bits_it_is_what_the_abstract_says(size, percent):
    layers = [(Uniform(8), STEM), *((Clustered(Ternary(), size), layer) for layer in resnet101_blocks())]
    assert removed(layers) == pytest.approx(percent, abs=0.05)


def test_of_every_quantizer():
    shape = (3, 3, 10, 8)
    for quantizer in (Binary(), Ternary(), Stochastic(Ternary()), Incremental(PowerOfTwo(4))):
        assert multiplications_left(quantizer, shape, (-1,)) == 1
    for quantizer in (None, Uniform(8), Clustered(Uniform(4))):
        assert multiplications_left(quantizer, shape, (-1,)) == 90
    assert multiplications_left(Stochastic(Clustered()), shape, (-1,)) == 3
    assert multiplications_left(Uniform(8), (3, 3, 6, 2), (2, 3)) == 9


def test_summary_by_hand():
    model = case(
        lambda: kl.Conv2D(8, 3, padding="same", name="stem"),
        lambda: kl.Conv2D(6, 3, name="conv"),
        lambda: kl.Conv2DTranspose(4, 2, strides=2, name="up"),
        lambda: kl.GlobalAveragePooling2D(),
        lambda: kl.Dense(5, name="head"),
        shape=(10, 12, 3),
    ).make()
    found = klb.summary(klb.quantize_model(model, "dfp-2w8a-n4")[0])
    rows = {row.path: row for row in found.layers}
    assert rows["stem"].multiplications == rows["stem"].macs == 27 * 8 * 120
    assert rows["conv"].multiplications == 2 * 6 * 8 * 10  # 8 inputs: 2 clusters
    assert rows["up"].macs == 4 * 6 * 4 * 8 * 10
    assert rows["up"].multiplications == rows["up"].macs * 2 // 24  # 6 inputs: 2 clusters of 24 weights
    assert rows["conv"].file_bytes == 432 + 6 * 4  # int8 codes times scales, biases
    assert rows["conv"].multiplications_removed == pytest.approx(1 - 1 / 36)
    macs, left = sum(row.macs for row in found.layers), sum(row.multiplications for row in found.layers)
    assert found.multiplications_removed == pytest.approx(1 - left / macs)
    assert 0 < found.multiplications_removed < 1


def test_variable_sizes_have_no_count():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, kl.Conv2D(4, 3)(image))
    found = klb.summary(klb.quantize_model(model, "dfp-2w8a-n4")[0])
    assert found.multiplications_removed is None
    assert found.layers[0].multiplications_removed is None
