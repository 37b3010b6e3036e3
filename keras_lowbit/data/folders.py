"""Pictures in folders, and in TFRecord files."""

import glob
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lowbit.data.images import Images
from keras_lowbit.files import FilePath, name_of, printable

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def classes(folder: FilePath) -> dict[str, int]:
    """Name -> class number of the subfolders with pictures in them.

    The number that the name is, where all names are numbers ("0", "1", ..., "10"); else the place in sorted order.
    folder: of subfolders.
    Returns a dict; empty where no subfolder has pictures.

    >>> klb.data.classes("photos")
    {'dark': 0, 'light': 1}
    """
    root = name_of(folder)
    subfolders = (name for name in _listed(root) if os.path.isdir(os.path.join(root, name)))
    names = [name for name in subfolders if pictures(os.path.join(root, name))]
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in sorted(names, key=int)}
    return {name: place for place, name in enumerate(names)}


def pictures(folder: FilePath) -> list[str]:
    """The paths of the pictures right in a folder, sorted by name."""
    root = name_of(folder)
    return [os.path.join(root, name) for name in _listed(root) if name.lower().endswith(ENDINGS)]


def folder_by_class(folder: FilePath, images: Images) -> Any:
    """A tf.data.Dataset of (pictures, class numbers) from a folder with a subfolder for each class, see `classes`.

    folder: of subfolders.   images: an `Images`: size, preparation, order.
    Returns batches of (float32 [batch, height, width, channels], int32 [batch]).
    Raises ValueError for a folder without such subfolders.

    >>> pictures = klb.data.folder_by_class("photos", klb.data.Images((8, 8), preprocess="unit"))
    >>> next(iter(pictures))[0].shape
    TensorShape([4, 8, 8, 3])
    """
    root, numbers = name_of(folder), classes(folder)
    if not numbers:
        raise ValueError(f"{printable(root)} has no subfolder with pictures ({', '.join(ENDINGS)}) in it.")
    paths = [pictures(os.path.join(root, name)) for name in numbers]
    labels = np.repeat(list(numbers.values()), list(map(len, paths)))
    return _of_files([path for part in paths for path in part], labels, images)


def flat_folder(folder: FilePath, images: Images) -> Any:
    """A tf.data.Dataset of the pictures right in a folder, without labels. ValueError if there are none.

    folder: of pictures.   images: an `Images`: size, preparation, order.
    Returns batches of float32 [batch, height, width, channels].

    >>> pictures = klb.data.flat_folder("photos/dark", klb.data.Images((8, 8)))
    """
    if not (paths := pictures(folder)):
        raise ValueError(f"{printable(folder)} has no pictures ({', '.join(ENDINGS)}) in it.")
    return _of_files(paths, None, images)


def _of_files(paths: Sequence[str], labels: np.ndarray | None, images: Images) -> Any:
    import tensorflow as tf

    names = [os.fsencode(path) for path in paths]
    signature = (tf.TensorSpec((), tf.string), *([] if labels is None else [tf.TensorSpec((), tf.int64)]))

    def sample(row: int) -> tuple[Any, ...]:
        return (names[row],) if labels is None else (names[row], int(labels[row]))

    samples = images.samples(len(names), sample, signature)
    return images.encoded_batches(samples.map(lambda name, *label: (tf.io.read_file(name), name, *label)))


def record_files(pattern: FilePath) -> list[str]:
    """The files of a path, a pattern (train-*) or a folder of TFRecord files, sorted. FileNotFoundError if there are none."""
    text = name_of(pattern)
    if os.path.isdir(text):
        found = [os.path.join(text, name) for name in _listed(text) if looks_like_records(name)]
    else:
        found = [text] if os.path.isfile(text) else sorted(filter(os.path.isfile, glob.glob(text)))
    if not found:
        raise FileNotFoundError(f"no TFRecord file {printable(text)!r}")
    return found


def looks_like_records(name: str) -> bool:
    """Whether a file is called as TFRecord files are."""
    return bool(re.search(r"tfrecords?\b|tfrecord-|-\d{5}-of-\d{5}$", os.path.basename(name)))


def tfrecords(pattern: FilePath, images: Images) -> Any:
    """A tf.data.Dataset of (pictures, classes) from TFRecord files of tf.train.Example, in the files' order.

    Their features are "image/encoded" and "image/class/label", which may be missing everywhere: then there are no labels.
    Labels are as stored: many ImageNet files count from 1.
    pattern: a path, a pattern such as "train-*", or a folder.   images: an `Images`: size, preparation, order.
    Returns batches of (pictures, class numbers), or of pictures alone.
    Raises FileNotFoundError, and ValueError for what are no such records.

    >>> picture = tf.io.read_file(klb.data.folders.pictures("photos/dark")[0]).numpy()
    >>> feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture]))}
    >>> with tf.io.TFRecordWriter("pictures.tfrecord") as file:
    ...     file.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    >>> pictures = klb.data.tfrecords("pictures.tfrecord", klb.data.Images((8, 8)))
    """
    import tensorflow as tf

    paths = record_files(pattern)
    labelled = _has_labels(paths[0])
    features: dict[str, Any] = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}
    if labelled:
        features["image/class/label"] = tf.io.FixedLenFeature((), tf.int64)

    def sample(place: Any, record: Any) -> Any:
        found = tf.io.parse_single_example(record, features)
        name = tf.strings.join(["record ", tf.strings.as_string(place), f" of {printable(pattern)}"])
        return (found["image/encoded"], name, *([found["image/class/label"]] if labelled else []))

    return images.encoded_batches(tf.data.TFRecordDataset(paths).enumerate().map(sample))


def _has_labels(path: str) -> bool:
    """Whether the first record has a label. ValueError if it has no picture, or the file no record."""
    import tensorflow as tf

    try:
        record = next(iter(tf.data.TFRecordDataset(path).take(1)), None)
        if record is None:
            raise ValueError(f"{printable(path)} holds no record.")
        found = tf.train.Example.FromString(record.numpy()).features.feature
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
        raise ValueError(f"{printable(path)} is no TFRecord file, or a damaged one: {error.message}") from error
    except ValueError:
        raise
    except Exception as error:  # protobuf's DecodeError, of whichever implementation is installed
        raise ValueError(f"The records of {printable(path)} are no tf.train.Example: {error}") from error
    if "image/encoded" not in found:
        raise ValueError(
            f"The records of {printable(path)} have the features {sorted(found)}; expected 'image/encoded' and "
            "'image/class/label'."
        )
    return "image/class/label" in found


def _listed(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
