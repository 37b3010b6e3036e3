"""Checks of arguments: what was given, what fits and what to do, in one sentence. Every part of the library asks here."""

import difflib
import numbers
import os
from collections.abc import Callable, Iterable
from typing import Any

INT32_MAX = 2**31 - 1


def check_model(model: Any, caller: str) -> None:
    """TypeError unless it is a Keras 3 model."""
    import keras  # slow to load

    if not isinstance(model, keras.Model):
        raise TypeError(f"{caller} takes a Keras 3 model, got {shown(model)}: {model_remedy(model)}.")


def check_layer(value: Any) -> None:
    """TypeError unless it is a Keras 3 model, or a layer of one."""
    import keras  # slow to load

    if not isinstance(value, keras.layers.Layer):
        raise TypeError(f"A Keras 3 model is needed, got {shown(value)}: {model_remedy(value)}.")


def model_remedy(value: Any) -> str:
    """What to do with a value that is given for a model."""
    if isinstance(value, str | bytes | os.PathLike):
        return "load it with keras.saving.load_model(path)"
    if type(value).__module__.startswith(("tf_keras", "keras.engine", "keras.src.engine")):
        return "move it to Keras 3 with keras_lowbit.tfmot.to_keras3(model)"
    return "give the model itself"


def check_whole(owner: str, name: str, value: Any, low: int = 1, high: int = INT32_MAX) -> int:
    """`value` as an int. TypeError for what is no whole number, ValueError outside ``[low, high]``."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and low <= int(value) <= high:
        return int(value)
    span = f"of {low} or more" if high >= INT32_MAX and not (whole and int(value) > high) else f"from {low} to {high}"
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    raise (ValueError if number else TypeError)(f"{owner} got {name}={shown(value)}; give a whole number {span}.")


def check_real(owner: str, name: str, value: Any, span: str, fits: Callable[[Any], bool]) -> None:
    """TypeError for what is no real number, ValueError unless it `fits`. span: what fits, in words."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and fits(value)):
        raise (ValueError if number else TypeError)(f"{owner} got {name}={shown(value)}; give a number {span}.")


def check_seed(owner: str, seed: Any) -> None:
    """Whole numbers from 0 to 2^31 - 1, and None where a random one is taken."""
    if seed is not None:
        check_whole(owner, "seed", seed, low=0)


def check_flag(owner: str, name: str, value: Any) -> None:
    """TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner} got {name}={shown(value)}; give True or False.")


def check_path(caller: str, path: Any) -> None:
    """TypeError unless it is a path: str, bytes or os.PathLike."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"{caller} got path={shown(path)}; give the name of a file, such as 'model.tflite'.")


def patterns(name: str, value: Any) -> list[str]:
    """Regular expressions, given as one or as several. TypeError for anything that is none."""
    found = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    for pattern in found:
        if not isinstance(pattern, str):
            layer = getattr(pattern, "name", None)
            hint = f"{name}=[{layer!r}]" if isinstance(layer, str) else f"{name}=['conv1', 'block_2/.*']"
            raise TypeError(
                f"{name} takes names or paths of layers, regular expressions included, got {shown(pattern)}. Write {hint}."
            )
    return found


def nearest_first(word: str, known: Iterable[str]) -> str:
    """The known words, with commas between them: those that begin with the word, then the most alike first."""

    def likeness(candidate: str) -> tuple[bool, float]:
        found, wanted = candidate.lower(), word.lower()
        return bool(wanted) and found.startswith(wanted), difflib.SequenceMatcher(None, wanted, found).ratio()

    return ", ".join(sorted(sorted(known), key=likeness, reverse=True))


def shown(value: Any) -> str:
    """A value as a message shows it: numbers and short texts as they are, of other things the kind."""
    if value is None or isinstance(value, numbers.Number | str | bytes | os.PathLike):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return type(value).__name__ + (f" {value.name!r}" if isinstance(getattr(value, "name", None), str) else "")
