"""MODEL of the commands: a file that Keras reads, or a network of `keras.applications`."""

import os
import zipfile
from typing import Any

from absl import flags

from keras_lowbit.arguments import nearest_first
from keras_lowbit.files import printable

flags.disclaim_key_flags()
PREFIX = "applications:"


def define_model(values: flags.FlagValues) -> None:
    """Defines what MODEL may need besides its name: --untrained, --classes and --input_size."""
    flags.DEFINE_bool("untrained", False, f"random weights for {PREFIX}NAME, which has ImageNet's", flag_values=values)
    text = f"classes of an untrained {PREFIX}NAME"
    flags.DEFINE_integer("classes", None, text, lower_bound=1, flag_values=values)
    text = f"height and width of the images: of {PREFIX}NAME, or of a model that takes any"
    flags.DEFINE_integer("input_size", None, text, lower_bound=1, flag_values=values)


def load_model(text: str, values: Any) -> Any:
    """The model that MODEL names. OSError or ValueError, with what to do, where there is none."""
    if text.startswith(PREFIX):
        return _application(text.removeprefix(PREFIX), values)
    if values.untrained or values.classes:
        raise flags.Error(f"--untrained and --classes are for MODEL={PREFIX}NAME, not for a file")
    return read_model(text)


def read_model(path: str) -> Any:
    """A `.keras` or `.h5` file. OSError if there is none, ValueError if Keras does not read it."""
    import keras

    if os.path.isdir(path):
        raise ValueError(
            f"{printable(path)} is a folder. Keras 3 does not read SavedModel folders: load it with the Keras that wrote it "
            "and save it as .keras or .h5 (keras_lowbit.tfmot.to_keras3 moves a tf_keras model)"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(f"no file {printable(path)!r}. MODEL is a .keras or .h5 file, or {PREFIX}NAME")
    try:
        return keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"Keras does not read {printable(path)!r} as a model: {_first_lines(error)}") from error


def _first_lines(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) < 600 else text[:600] + " ..."


def _application(name: str, values: Any) -> Any:
    import keras

    known = [other for other, value in vars(keras.applications).items() if other[0].isupper() and callable(value)]
    if name not in known:
        raise ValueError(
            f"{PREFIX}{name}: keras.applications has no such network. The most alike first: "
            f"{nearest_first(name, known)}"
        )
    make = getattr(keras.applications, name)
    if values.classes and not values.untrained:
        raise flags.Error(f"--classes={values.classes} needs --untrained: ImageNet's weights are for 1000 classes")
    size = {} if values.input_size is None else {"input_shape": (values.input_size, values.input_size, 3)}
    if values.untrained:
        keras.utils.set_random_seed(0)
        return make(weights=None, classes=values.classes or 1000, **size)
    try:
        return make(weights="imagenet", **size)
    except ValueError:
        raise
    except Exception as error:  # Keras raises a bare Exception where it cannot fetch a file
        raise OSError(
            f"cannot fetch the weights of {name}: {error}. Without a network put them where Keras keeps them "
            "(~/.keras/models), give a .keras file, or --untrained"
        ) from error
