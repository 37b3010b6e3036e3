"""Augmentations: what a picture may become, drawn from (seed, epoch, place), from files and arrays alike."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_lowbit import data
from keras_lowbit.data import Images

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(1, 256, (12, 8, 8, 3)).astype(np.uint8)  # none is black


def cifar_of(pixels, pad=4):
    """All pictures that the padding, a crop and a mirror can make of one."""
    framed = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
    size = len(pixels)
    for top, left in itertools.product(range(2 * pad + 1), repeat=2):
        crop = framed[top : top + size, left : left + size]
        yield from (crop.tobytes(), crop[:, ::-1].tobytes())


def test_a_padded_crop_is_one_of_those_that_there_are():
    pixels = PICTURES[0].astype(np.float32)
    known = list(cifar_of(pixels))
    found = [np.asarray(data.padded_crop(pixels, (0, place))).tobytes() for place in range(200)]
    assert set(found) <= set(known)
    assert len(set(found)) > 100  # of 162
    assert found[:5] == [np.asarray(data.padded_crop(pixels, (0, place))).tobytes() for place in range(5)]
    assert {known.index(each) % 2 for each in found} == {0, 1}


def test_a_random_part_has_the_papers_area_and_proportions():
    """The picture holds its own coordinates, so that a part of it tells where it was."""
    rows, columns = np.mgrid[0:128, 0:128].astype(np.float32)
    pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    areas, mirrored = [], 0
    for place in range(150):
        part = np.asarray(data.random_resized_crop(pixels, (4, 4), (3, place)))
        height, width = (np.ptp(part[..., axis]) * 4 / 3 for axis in (0, 1))
        mirrored += part[0, 0, 1] > part[0, -1, 1]
        areas.append(height * width / pixels[..., 0].size)
        assert 0.70 <= width / height <= 1.40  # 3:4 to 4:3, in whole pixels
    assert 0.07 <= min(areas) < 0.2
    assert 0.75 < max(areas) <= 1.02  # near 1 only a square fits
    assert 50 < mirrored < 100


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "flat").mkdir()
    with tf.io.TFRecordWriter(str(folder / "all.tfrecord")) as writer:
        for index, pixels in enumerate(PICTURES):
            encoded = tf.io.encode_png(pixels).numpy()
            (folder / "flat" / f"{index:02}.png").write_bytes(encoded)
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
            example = tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))
            writer.write(example.SerializeToString())
    return folder


@pytest.mark.parametrize("augment", ["cifar", "imagenet"])
def test_an_epoch_is_a_function_of_seed_and_number_from_every_source(places, augment):
    number = [0]

    def epoch(source, **options):
        images = Images((8, 8), batch_size=5, seed=None, epoch=lambda: number[0], augment=augment)
        if source == "array":
            return np.concatenate(list(data.arrays(PICTURES, None, images, pictures=True)))
        return np.concatenate(list(data.flat_folder(places / "flat", images)))

    found = {}
    for number[0] in (0, 1):
        found[number[0]] = epoch("array")
        assert np.array_equal(epoch("array"), found[number[0]])
        assert np.array_equal(epoch("folder"), found[number[0]])
    assert not np.array_equal(*found.values())
    assert found[0].shape == PICTURES.shape
    assert not np.array_equal(np.sort(found[0], axis=0), np.sort(PICTURES.astype(np.float32), axis=0))


def test_without_a_number_every_reading_is_another_epoch_and_the_labels_stay(places):
    images = Images((8, 8), batch_size=5, seed=None, augment="cifar")
    dataset = data.arrays(PICTURES, np.arange(12), images, pictures=True)
    first, second = ([np.concatenate(parts) for parts in zip(*dataset, strict=True)] for _ in range(2))
    assert not np.array_equal(first[0], second[0])
    assert first[1].tolist() == second[1].tolist() == list(range(12))
    for pixels, label in zip(*first, strict=True):
        assert pixels.tobytes() in set(cifar_of(PICTURES[label].astype(np.float32)))
    assert data.batch_count(dataset) == 3
    records = data.tfrecords(places / "all.tfrecord", images)
    assert np.array_equal(np.concatenate(list(records)), first[0])


def test_the_mode_comes_behind_the_borders():
    """Black is -1 for a model that wants -1 to 1."""
    images = Images((8, 8), preprocess="tf", seed=None, augment="cifar")
    found = np.concatenate(list(data.arrays(PICTURES, None, images, pictures=True)))
    assert found.min() == -1.0
    assert np.mean(found == -1.0) > 0.1


def test_an_augmented_training_reads_no_more_than_it_needs(tmp_path):
    """A million pictures on the disk, of which some batches are read: there is no room for a shuffled or cached copy."""
    path = tmp_path / "large.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.uint8, (10**6, 32, 32, 3))
    del stored
    inputs, _ = data.stored_arrays(path)
    read = []

    class Counted:
        """An array that notes which rows are asked for."""

        shape, dtype, ndim = inputs.shape, inputs.dtype, inputs.ndim

        def __len__(self):
            return len(inputs)

        def __getitem__(self, row):
            read.append(row)
            return inputs[row]

    images = Images((32, 32), batch_size=16, epoch=lambda: 0, augment="cifar")
    for batch in data.arrays(Counted(), None, images, pictures=True).take(3):
        assert batch.shape == (16, 32, 32, 3)
    assert 48 <= len(read) < 1000


@pytest.mark.parametrize("wrong", ["cifar10", 3])
def test_an_augmentation_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=f"augment={wrong!r}.*cifar"):
        Images((8, 8), augment=wrong)
