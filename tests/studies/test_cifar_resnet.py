"""The pretrained CIFAR networks: structure, published accuracy, augmentation."""

import keras
import numpy as np
import pytest

from studies.common import cifar_resnet
from studies.common.cifar10 import load_cifar10_split


def test_depth_counts_the_weighted_layers():
    model = cifar_resnet.cifar_resnet(20)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Conv2D") + kinds.count("Dense") == 20
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 269_722
    with pytest.raises(ValueError, match=r"got depth=21\. Use 20, 32, 44 or 56"):
        cifar_resnet.cifar_resnet(21)


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    inputs = keras.Input((8, 6, 4))
    model = keras.Model(inputs, cifar_resnet._option_a(inputs, 8, "test_"))
    images = np.random.default_rng(0).normal(size=(2, 8, 6, 4)).astype(np.float32)
    expected = np.pad(images[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    np.testing.assert_array_equal(model.predict(images, verbose=0), expected)


def test_weights_of_another_depth_are_refused_with_the_names(tmp_path):
    np.savez(tmp_path / "cifar10_resnet20.npz", **{"conv1/kernel": np.zeros((3, 3, 3, 16))})
    with pytest.raises(ValueError, match=r"differ in .*'bn1/beta'"):
        cifar_resnet.pretrained(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "right"), [(20, 1849), (56, 1873)])
def test_pretrained_network_has_its_accuracy_on_the_first_2000_test_images(stored_data, depth, right):
    images, labels = load_cifar10_split("test", stored_data)
    model = cifar_resnet.pretrained(stored_data, depth)
    model.jit_compile = False  # XLA takes longer to compile 56 layers than they take to run
    logits = model.predict(cifar_resnet.normalize(images[:2000]), batch_size=250, verbose=0)
    # One image may flip where another processor adds in another order; all 10,000 give the published 91.73 %.
    assert abs(int(np.sum(logits.argmax(-1) == labels[:2000])) - right) <= 1


def test_augmentation_is_a_crop_of_the_padded_image_perhaps_mirrored():
    images = np.random.default_rng(0).integers(1, 255, (40, 6, 5, 3)).astype(np.uint8)
    result = cifar_resnet.augment(images, np.random.default_rng(1), margin=2)
    mirrored = 0
    for image, got in zip(images, result, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        crops = [padded[y : y + 6, x : x + 5] for y in range(5) for x in range(5)]
        straight = any(np.array_equal(crop, got) for crop in crops)
        assert straight or any(np.array_equal(crop[:, ::-1], got) for crop in crops)
        mirrored += not straight
    assert 10 < mirrored < 30


def test_epochs_differ_and_are_a_function_of_seed_and_epoch():
    images = np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(50)
    first = cifar_resnet.AugmentedImages(images, labels, batch_size=16, seed=5)
    assert first.num_batches == 3
    before = first[0]
    assert before[0].shape == (16, 32, 32, 3)
    first.on_epoch_end()
    resumed = cifar_resnet.AugmentedImages(images, labels, batch_size=16, seed=5, first_epoch=1)
    for got, want in zip(first[2], resumed[2], strict=True):
        np.testing.assert_array_equal(got, want)
    assert not np.array_equal(before[1], first[0][1])
