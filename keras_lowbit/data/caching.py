"""A data set that is decoded once."""

import os
import tempfile
import weakref
from typing import Any

from keras_lowbit.data.batching import labelled_batches
from keras_lowbit.files import FilePath, name_of


def cached(dataset: Any, folder: FilePath | None = None) -> Any:
    """The same batches from files: `dataset` is read once, here, and every reading of the result comes from the disk.

    For data that are read often, as calibration, corrections, tuning and `verify` do, where decoding pictures takes the time. A
    few batches are in memory. The order is that of this reading, so sets that give each epoch another one, or augment, are not
    for it.
    dataset: a finite tf.data.Dataset of batches.   folder: where the files are, below it in a folder of their own that goes
    with the result, or with the process (a killed one leaves it); by default the system's for temporary files. They take 4
    bytes for each number.
    Returns a tf.data.Dataset.
    Raises what reading raises; OSError for a folder that is not there; TypeError for what is no tf.data.Dataset.

    >>> given = klb.data.for_model(model, "photos", preprocess="unit")
    >>> batches = klb.data.cached(given.dataset)
    """
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"cached takes a tf.data.Dataset, got {type(dataset).__name__}. Arrays are in memory already.")
    place = tempfile.TemporaryDirectory(prefix="keras_lowbit-", dir=None if folder is None else name_of(folder))
    try:
        kept = dataset.cache(os.path.join(place.name, "batches"))
        for _ in labelled_batches(kept):
            pass
    except BaseException:
        place.cleanup()
        raise
    weakref.finalize(kept, place.cleanup)  # what is made of it holds it
    return kept.prefetch(2)
