"""MODEL of the commands: a file that Keras reads, or a network of `keras.applications`."""

import os
import zipfile
from typing import Any

from absl import flags

from keras_lowbit.arguments import nearest_first
from keras_lowbit.files import printable
from keras_lowbit.keras_graph import depth

flags.disclaim_key_flags()
PREFIX = "applications:"
# What Keras raises for files that are damaged, or of something else; NameError is its own slip on damaged folders.
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, NameError, zipfile.BadZipFile)


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
    """A `.keras` or `.h5` file, or a folder that Keras 3 saved. OSError without one, ValueError if Keras does not read it."""
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "config.json")):
        raise ValueError(_of_folder(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"no file {printable(path)!r}. MODEL is a .keras or .h5 file, or {PREFIX}NAME")
    try:
        return depth.read_model(path, compile=False)
    except _REFUSALS as error:
        raise ValueError(f"Keras does not read {printable(path)!r} as a model: {_first_lines(error)}") from error


def _of_folder(path: str) -> str:
    """Why a folder is no MODEL, and what to do, by the files that its writer leaves."""
    name = printable(path)
    if os.path.exists(os.path.join(path, "keras_metadata.pb")):
        return (
            f"{name} is a SavedModel folder of Keras 2, which tf_keras reads. Move it to Keras 3 once: import tf_keras; from "
            f"keras_lowbit.tfmot import to_keras3; to_keras3(tf_keras.models.load_model({path!r})).save('model.keras')"
        )
    if os.path.exists(os.path.join(path, "saved_model.pb")):
        return (
            f"{name} is a SavedModel folder that holds functions and no layers, as model.export writes it: TFSMLayer runs it, "
            "but nothing in it can be quantized. Give the model that it was exported from, saved as .keras"
        )
    return f"{name} is a folder without a model in it. MODEL is a .keras or .h5 file, or {PREFIX}NAME"


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
