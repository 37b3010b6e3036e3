"""Data sets of tensorflow-datasets, downloaded ones and folders that it wrote."""

import os
from typing import Any

from keras_lowbit.data.images import Images
from keras_lowbit.files import printable

PREFIX = "tfds:"
DESCRIBED_BY = "features.json"  # in every folder that tensorflow-datasets wrote


def tfds(name: str, images: Images, split: str = "", data_dir: str | None = None) -> tuple[Any, str, dict[str, int]]:
    """(a tf.data.Dataset of (pictures, labels), the split, name -> number of the classes) of a data set by its name.

    images: an `Images`: size, preparation, order.
    name: as for `tfds.load`; "" for a folder that says what it is.   split: as "test" or "train[:500]"; by default "test",
    "validation" or "train", the first there is.   data_dir: where tensorflow-datasets keeps its data sets, or the folder of
    one; nothing is downloaded if it is there.
    Pictures are decoded here, in the order of the files. Raises ImportError without tensorflow-datasets, ValueError for data
    sets without pictures and splits that there are not, OSError where nothing can be downloaded.
    Returns (data set, split, classes).

    >>> try:
    ...     pictures, split, classes = klb.data.tfds("no_such_set", klb.data.Images((32, 32)), data_dir=".")
    ... except OSError as error:
    ...     print(error)
    there is no data set 'no_such_set' in '.', and it could not be made: ...
    """
    builder = _builder(name, data_dir)
    features = builder.info.features
    if "image" not in features:
        raise ValueError(
            f"The data set {builder.info.full_name} has the features {sorted(features)}; expected 'image'."
        )
    known = list(builder.info.splits)
    split = split or next((each for each in ("test", "validation", "train") if each in known), known[0])
    import tensorflow_datasets

    skip = {"image": tensorflow_datasets.decode.SkipDecoding()}
    try:
        samples = builder.as_dataset(split=split, shuffle_files=False, decoders=skip)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{builder.info.full_name} has no split {split!r}; it has {', '.join(known)}") from error
    labelled, about = "label" in features, f"a picture of {builder.info.full_name}"

    def sample(found: Any) -> Any:
        return (found["image"], about, *([found["label"]] if labelled else []))

    names = getattr(features["label"], "names", None) if labelled else None
    classes = {name: number for number, name in enumerate(names or [])}
    return images.encoded_batches(samples.map(sample)), split, classes


def _builder(name: str, data_dir: str | None) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError("tfds: data need tensorflow-datasets: pip install 'keras_lowbit[data]'.") from error
    if data_dir is not None and not os.path.isdir(data_dir):
        raise FileNotFoundError(f"no folder {printable(data_dir)!r}")
    if data_dir is not None and os.path.exists(os.path.join(data_dir, DESCRIBED_BY)):
        return tensorflow_datasets.builder_from_directory(data_dir)
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:  # of the network, the disk, or a name that is none: each of its own kind
        where = "" if data_dir is None else f" in {printable(data_dir)!r}"
        raise OSError(f"there is no data set {name!r}{where}, and it could not be made: {_first(error)}") from error
    return builder


def _first(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
