"""Arrays in .npy and .npz files."""

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from keras_lowbit.data.images import Images
from keras_lowbit.files import FilePath, name_of, printable

# What the inputs in an .npz are called, and the labels beside them.
PAIRS = {"x": "y", "images": "labels", "image": "label", "x_test": "y_test", "x_train": "y_train", "inputs": "labels"}


def stored_arrays(path: FilePath, input_names: Sequence[str] = ()) -> tuple[Any, np.ndarray | None]:
    """(inputs, labels or None) of a .npy or .npz file: one array, or a dict where the file has one for each of `input_names`.

    The inputs of an .npz are its only array, or called as in `PAIRS`. A .npy stays on the disk until a row is read; what
    is in an .npz comes into memory. ValueError for files that are neither, hold Python objects, or have other arrays.
    path: of the file.
    Returns (array or dict of arrays, labels or None).

    >>> np.savez("data.npz", x=images, y=labels)
    >>> inputs, classes = klb.data.stored_arrays("data.npz")
    """
    name = name_of(path)
    try:
        found = _loaded(name)
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{printable(name)} is no .npy or .npz file of plain arrays: {error}") from error
    inputs, labels = _chosen(found, list(input_names), printable(name))
    lengths = {len(array) if array.ndim else 0 for array in (inputs.values() if isinstance(inputs, dict) else [inputs])}
    if labels is not None and {len(labels)} != lengths:
        raise ValueError(f"{printable(name)} holds {len(labels)} labels for {sorted(lengths)} samples.")
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            f"{printable(name)} holds inputs of {sorted(lengths)} samples; expected as many of each, at least one."
        )
    return inputs, labels


def _loaded(name: str) -> dict[str, np.ndarray]:
    with open(name, "rb") as stream:
        start = stream.read(len(MAGIC_PREFIX))
        if start != MAGIC_PREFIX:
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as stored:  # an archive, or an error
                return {key: stored[key] for key in stored.files}
    return {"x": np.lib.format.open_memmap(name, mode="r")}


def _chosen(found: Mapping[str, np.ndarray], names: list[str], path: str) -> tuple[Any, np.ndarray | None]:
    if len(names) > 1 and set(names) <= set(found):
        rest = [found[key] for key in PAIRS.values() if key in found and key not in names]
        return {name: found[name] for name in names}, rest[0] if rest else None
    key = next((key for key in (*names, *PAIRS) if key in found), None)
    key = next(iter(found)) if key is None and len(found) == 1 else key
    if key is None or len(names) > 1:
        wanted = " and ".join(map(repr, names)) if len(names) > 1 else "one of " + ", ".join(map(repr, PAIRS))
        raise ValueError(f"{path} holds the arrays {sorted(found)}; expected {wanted} for the inputs.")
    label = PAIRS.get(key, "labels")
    return found[key], found.get(label, found.get("y"))


def arrays(inputs: Any, labels: np.ndarray | None, images: Images, pictures: bool) -> Any:
    """A tf.data.Dataset of arrays (or a dict of them) and labels, row by row, in the order of `images`.

    inputs: an array `[n, ...]` or a dict of such.   labels: one for each row, or None.   images: an `Images`, which has batch
    size and order.
    pictures: the array holds pictures [n, height, width(, channels)]: resized and prepared as `images` says. Else rows are
    only batched.
    Returns the data set: inputs, or (inputs, labels).

    >>> rows = klb.data.arrays(images, labels, klb.data.Images((8, 8), batch_size=16), pictures=False)
    >>> next(iter(rows))[0].shape
    TensorShape([16, 8, 8, 3])
    """
    import tensorflow as tf

    parts = (inputs,) if labels is None else (inputs, labels)
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs

    def row_of(part: Any, row: int) -> Any:
        return {key: array[row] for key, array in part.items()} if isinstance(part, dict) else part[row]

    def spec_of(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: spec_of(array) for key, array in part.items()}
        return tf.TensorSpec(part.shape[1:], part.dtype)

    def read(seed: Any, pixels: Any, *label: Any) -> Any:
        if not pictures:
            return (pixels, *label)
        return (images.prepared(pixels if inputs.ndim == 4 else pixels[..., None], seed), *label)

    signature = tuple(map(spec_of, parts))
    samples = images.samples(len(first), lambda row: tuple(row_of(part, row) for part in parts), signature)
    return images.batches_of(samples, read)
