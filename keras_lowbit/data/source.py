"""DATA of the command line: a word that names a source becomes batches of what a model takes."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_lowbit.arguments import check_model
from keras_lowbit.data import array_files, folders, named_sets
from keras_lowbit.data.images import Images
from keras_lowbit.data.preprocessing import MODES, found_mode
from keras_lowbit.files import printable

KINDS = (
    "a folder of pictures by class, a folder of pictures, a .npz or .npy file, TFRecord files (image/encoded, "
    "image/class/label), or tfds:NAME[:SPLIT]"
)


@dataclasses.dataclass(frozen=True)
class ModelData:
    """Data for a model.

    dataset: batched.   preprocess: the mode.   about: sentences, what was found and decided.
    classes: name -> number, of the folders or the data set; empty where nothing says. If they are not the model's the data
    have no labels.

    >>> found = klb.data.for_model(model, "photos", preprocess="unit")
    >>> found.preprocess, dict(found.classes)
    ('unit', {'dark': 0, 'light': 1})
    """

    dataset: Any
    preprocess: str
    about: tuple[str, ...]
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def for_model(
    model: Any,
    source: str,
    *,
    preprocess: str = "auto",
    size: tuple[int, int] | None = None,
    data_dir: str | None = None,
    **options: Any,
) -> ModelData:
    """The data that a word names, of the model's input size.

    model: Keras model whose input it is for.
    source: a folder of pictures by class (or without classes), a .npz or .npy file, TFRecord files (a path, a pattern or a
    folder), a folder that tensorflow-datasets wrote, or "tfds:NAME[:SPLIT]", with `data_dir`.
    preprocess: a mode of `MODES`, or "auto": what `found_mode` finds in the model; arrays of floats are taken as they are.
    size: (height, width) for a model that takes any.   options: of `Images`: resize, batch_size, limit, seed, epoch, augment.
    Returns a `ModelData`: the data set, how it was prepared, and the classes.
    Warns where a mode is given and the model says another.
    Raises ValueError where "auto" finds nothing, for data that do not fit the model, and what the sources raise.

    >>> data = klb.data.for_model(model, "photos", preprocess="unit", limit=100)
    >>> next(iter(data.dataset))[0].shape
    TensorShape([4, 8, 8, 3])
    """
    check_model(model, "for_model")
    if source.endswith((".npz", ".npy")):
        return _of_arrays(model, source, size, preprocess, options)
    read = _reader(source, data_dir)  # first: a source that is none is more than one that cannot be prepared
    images, said = _images(model, size, preprocess, options)
    dataset, more, classes = read(images)
    if misfit := _other_classes(model, classes):
        dataset, more = dataset.map(lambda pictures, labels: pictures), (*more, misfit)
    return ModelData(dataset, images.preprocess, (*said, *more), classes)


def _other_classes(model: Any, classes: Mapping[str, int]) -> str:
    """Why class numbers of a source are not those of the model's output; "" where they may be."""
    shapes = [tuple(tensor.shape) for tensor in model.outputs]
    if not classes or len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][-1] in (None, 1):
        return ""
    count, numbered = shapes[0][-1], all(name.isdecimal() for name in classes)
    if max(classes.values()) < count if numbered else len(classes) == count:
        return ""
    some = ", ".join(map(repr, list(classes)[:3]))
    return (
        f"left without labels: which of the model's {count} classes the {len(classes)} of the data are ({some}, ...) nothing "
        "says; folders named by the classes' numbers would"
    )


Read = tuple[Any, tuple[str, ...], dict[str, int]]  # a data set, what is said of it, its classes


def _reader(source: str, data_dir: str | None) -> Callable[[Images], Read]:
    """What reads a source of pictures. OSError or ValueError where there is none."""
    if source.startswith(named_sets.PREFIX):
        name, _, split = source.removeprefix(named_sets.PREFIX).partition(":")
        return lambda images: _named(name, images, split, data_dir)
    if not os.path.isdir(source):
        if os.path.isfile(source) and not folders.looks_like_records(source):
            raise ValueError(f"{printable(source)} is no data. Give {KINDS}.")
        if not os.path.isfile(source) and "*" not in source:
            raise FileNotFoundError(f"no data at {printable(source)!r}. Give {KINDS}")
        folders.record_files(source)
        return lambda images: (folders.tfrecords(source, images), (), {})
    if os.path.exists(os.path.join(source, named_sets.DESCRIBED_BY)):
        return lambda images: _named("", images, "", source)
    return _folder_reader(source)


def _named(name: str, images: Images, split: str, data_dir: str | None) -> Read:
    dataset, split, classes = named_sets.tfds(name, images, split, data_dir)
    return dataset, (f"split {split!r}",), classes


def _folder_reader(source: str) -> Callable[[Images], Read]:
    classes, loose = folders.classes(source), folders.pictures(source)
    if classes and loose:
        raise ValueError(
            f"{printable(source)} has pictures in it, such as {os.path.basename(loose[0])!r}, and folders with pictures, "
            f"such as {next(iter(classes))!r}: it is neither a folder of pictures nor one of classes."
        )
    if classes:
        return lambda images: (folders.folder_by_class(source, images), (f"{len(classes)} classes",), classes)
    if loose:
        return lambda images: (folders.flat_folder(source, images), (), {})
    if any(map(folders.looks_like_records, os.listdir(source))):
        return lambda images: (folders.tfrecords(source, images), (), {})
    raise ValueError(f"{printable(source)} has no pictures ({', '.join(folders.ENDINGS)}) and no TFRecord files in it.")


def _of_arrays(model: Any, source: str, size: Any, preprocess: str, options: Any) -> ModelData:
    inputs, labels = array_files.stored_arrays(source, [tensor.name for tensor in model.inputs])
    if isinstance(inputs, dict) or not _takes_pictures(model):
        _check_rows(model, source, inputs, preprocess)
        if options.get("augment") is not None:
            raise ValueError(f"augment={options['augment']!r} is for pictures; {model.name!r} takes {_shapes(model)}.")
        dataset = array_files.arrays(inputs, labels, Images((1, 1), **options), pictures=False)
        return ModelData(dataset, "none", ("arrays as they are stored",))
    shape, channels = inputs.shape[1:], model.inputs[0].shape[-1]
    if not (len(shape) == 3 and shape[-1] == channels) and not (len(shape) == 2 and channels == 1):
        raise _misfit(model, source, shape)
    said: tuple[str, ...] = ("arrays as they are stored",)
    if preprocess in ("auto", "none") and inputs.dtype != np.uint8:
        images = _sized(model, size, "none", options, shape[:2])
    else:
        images, said = _images(model, size, preprocess, options, shape[:2])
    return ModelData(array_files.arrays(inputs, labels, images, pictures=True), images.preprocess, said)


def _check_rows(model: Any, source: str, inputs: Any, preprocess: str) -> None:
    """ValueError unless the rows of arrays are what the model takes."""
    if preprocess not in ("auto", "none"):
        raise ValueError(f"preprocess={preprocess!r} is for pictures; {model.name!r} takes {_shapes(model)}.")
    given = inputs if isinstance(inputs, dict) else {model.inputs[0].name: inputs}
    for tensor in model.inputs:
        wanted, found = tensor.shape[1:], given[tensor.name].shape[1:] if tensor.name in given else None
        fits = found is not None and len(found) == len(wanted)
        if not fits or any(w not in (None, f) for w, f in zip(wanted, found or (), strict=False)):
            raise _misfit(model, source, found)


def _misfit(model: Any, source: str, shape: Any) -> ValueError:
    return ValueError(f"{printable(source)} holds samples of shape {shape}; {model.name!r} takes {_shapes(model)}.")


def _shapes(model: Any) -> str:
    return ", ".join(f"{tensor.name!r} of shape {tuple(tensor.shape[1:])}" for tensor in model.inputs)


def _takes_pictures(model: Any) -> bool:
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    return len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][-1] in (1, 3)


def _images(
    model: Any, size: Any, preprocess: str, options: Any, own_size: Any = None
) -> tuple[Images, tuple[str, ...]]:
    """How the pictures become the model's input, and how that was decided. own_size: where the model takes any."""
    if not _takes_pictures(model):
        raise ValueError(
            f"Pictures need a model with one input of 1 or 3 channels; {model.name!r} takes {_shapes(model)}."
        )
    mode, said = _mode(model, preprocess)
    return _sized(model, size, mode, options, own_size), said


def _sized(model: Any, size: Any, mode: str, options: Any, own_size: Any) -> Images:
    _, *own, channels = model.inputs[0].shape
    if None in own:
        found = size or own_size
    elif size is not None and tuple(size) != tuple(own):
        raise ValueError(f"size={tuple(size)}, but {model.name!r} takes {_shapes(model)}.")
    else:
        found = own
    if found is None:
        raise ValueError(
            f"{model.name!r} takes pictures of any size. Say which: size=(224, 224), on the command line --input_size."
        )
    return Images(tuple(found), channels, mode, **options)


def _mode(model: Any, preprocess: str) -> tuple[str, tuple[str, ...]]:
    """The mode, and how it was decided. Warns where the model contradicts one that is given."""
    found = found_mode(model)
    if preprocess != "auto":
        if found is not None and preprocess in MODES and found[0] != preprocess:
            given, wanted = (MODES[mode].split(" (")[0] for mode in (preprocess, found[0]))
            warnings.warn(
                f"preprocess={preprocess!r} gives {model.name!r} pixels as {given}, but it seems to want {found[0]!r}, "
                f"{wanted}: {found[1]}. Ranges found on other numbers than the model was trained on are wrong.",
                stacklevel=5,
            )
        return preprocess, (f"preprocess {preprocess!r}, as given",)
    if found is None:
        modes = "; ".join(f"{mode!r}: {meaning}" for mode, meaning in MODES.items())
        raise ValueError(
            f"Nothing in {model.name!r} says which numbers it wants for pixels of 0 to 255. Say how the training data were "
            f"prepared, preprocess=... ({modes})."
        )
    return found[0], (f"preprocess {found[0]!r}: {found[1]}",)
