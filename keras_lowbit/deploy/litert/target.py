"""What a device takes, as data: the files of `targets`, and whoever's own.

A target says which LiteRT operators there are and in which forms, how weights are stored, of which types the ends may be, and
whether anything may run in float. `weight_formats` chooses by it, `target_check` holds a file against it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_lowbit.arguments import nearest_first, shown
from keras_lowbit.files import FilePath, name_of, read_whole
from keras_lowbit.sealed import strict_json

FORMAT_VERSION = 1
FOLDER = Path(__file__).with_name("targets")
WEIGHTS = ("int2", "int4", "int8")  # formats of weights, smallest first
Limits = Mapping[str, Any]
# Limits of an operator: what kind of value each has. `target_check` says what they mean.
LIMITS: Mapping[str, type] = {
    "weights": list,
    "activations": list,
    "values": bool,
    "fused_activation": bool,
    "equal_dilation": bool,
    "equal_ranges": bool,
    "fixed_point": bool,
    "unit_strides": bool,
    "strides": int,
    "filter_widths": list,
    "multiplier": int,
    "axes": int,
    "rank": int,
    "inputs": int,
    "elements": int,
    "side": int,
    "channel_multiple": int,
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a device takes. The keys of a target's JSON are these fields.

    name: of the target, in reports and errors.
    about, sources: for people.   operators: LiteRT operator -> its limits.   left_out: operator -> why it is not among them,
    where one would look for it.   others: whether operators that are not listed are taken too, without limits.
    strict: whether export refuses what does not fit unless told otherwise.   floats: whether operations may run in float.
    granularity: of the scales of weights.   activations: types of their codes.   ends: types of inputs and outputs.
    any_batch: whether the batch may be open.
    batch_size, axes, size_bytes: the largest batch, number of innermost axes that may be longer than 1, and file; None for any.

    >>> with open("tiny.json", "w") as file:
    ...     json.dump({"format_version": 1, "name": "tiny", "about": "one operator", "operators": {"MEAN": {}}}, file)
    >>> klb.export_litert(quantized, "q.tflite", target="tiny.json", strict=False).target
    'tiny'
    """

    name: str
    about: str
    operators: Mapping[str, Limits]
    sources: tuple[str, ...] = ()
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    others: bool = False
    strict: bool = True
    floats: bool = False
    granularity: tuple[str, ...] = ("channel", "tensor")
    activations: tuple[str, ...] = ("int8",)
    ends: tuple[str, ...] = ("int8",)
    any_batch: bool = False
    batch_size: int | None = None
    axes: int | None = None
    size_bytes: int | None = None

    def takes(self, operator: str) -> bool:
        """Whether the operator is there in some form."""
        return operator in self.operators or (self.others and operator not in self.left_out)

    def weights_of(self, operator: str) -> tuple[str, ...]:
        """The formats of weights that an operator takes, smallest first; none if the operator is not there."""
        taken = self.operators.get(operator, {}).get("weights", ("int8",))
        return tuple(kind for kind in WEIGHTS if kind in taken) if self.takes(operator) else ()

    def takers_of(self, kind: str) -> tuple[str, ...]:
        """The operators that take weights of a format."""
        return tuple(name for name in self.operators if kind in self.operators[name].get("weights", ()))


@functools.cache
def named_target(name: str) -> Target:
    """The target of that name. ValueError, with the names there are, for another one."""
    names = sorted(path.stem for path in FOLDER.glob("*.json"))
    if name not in names:
        raise ValueError(
            f"target={shown(name)}: expected {nearest_first(name, names)}, or the path of a JSON that describes a device"
        )
    return read_target(FOLDER / f"{name}.json")


def target_of(given: str | FilePath | Target) -> Target:
    """A target by its name, from a JSON (a path that ends in .json), or as it is. ValueError or FileNotFoundError."""
    if isinstance(given, Target):
        return given
    if isinstance(given, str) and not given.endswith(".json"):
        return named_target(given)
    if isinstance(given, str | bytes | Path):
        return read_target(given)
    raise ValueError(f"target={shown(given)}: expected a name such as 'microcontroller', or the path of a JSON")


def read_target(path: FilePath) -> Target:
    """The target that a JSON describes. FileNotFoundError, or ValueError that says what is wrong with it."""
    try:
        content = read_whole(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No target at {name_of(path)!r}. Those of the library are in {str(FOLDER)!r}."
        ) from error
    try:
        found = strict_json(content)
        if found.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError(f"format_version is not {FORMAT_VERSION}")
        _check(found)
        return Target(**{key: _frozen(value) for key, value in found.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{name_of(path)!r} describes no target ({type(error).__name__}: {error}). "
            f"The files in {str(FOLDER)!r} are examples."
        ) from error


def _check(found: Mapping[str, Any]) -> None:
    """ValueError for fields that are missing or of other types."""
    fields = {field.name: field.type for field in dataclasses.fields(Target)}
    if unknown := [key for key in found if key not in fields]:
        raise ValueError(f"unknown {', '.join(map(repr, unknown))}, expected {', '.join(fields)}")
    if missing := [key for key in ("name", "about", "operators") if key not in found]:
        raise ValueError(f"it has no {missing[0]!r}")
    for key, value in found.items():
        if not _FITS[str(fields[key])](value):
            raise ValueError(f"{key} is {shown(value)}")
    for operator, limits in found["operators"].items():
        for key, value in limits.items():
            if key not in LIMITS or type(value) is not LIMITS[key]:
                raise ValueError(f"{operator} has {key!r}: {shown(value)}; expected some of {', '.join(LIMITS)}")
        if unknown := [kind for kind in limits.get("weights", ()) if kind not in WEIGHTS]:
            raise ValueError(f"{operator} has weights {unknown}: expected some of {', '.join(WEIGHTS)}")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _of(kind: type) -> Any:
    return lambda value: isinstance(value, dict) and all(isinstance(each, kind) for each in value.values())


# By the type of the field.
_FITS: Mapping[str, Any] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int | None": lambda value: value is None or (type(value) is int and value > 0),
    "tuple[str, ...]": _texts,
    "Mapping[str, str]": _of(str),
    "Mapping[str, Limits]": _of(dict),
}


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(each) for key, each in value.items()})
    return tuple(value) if isinstance(value, list) else value
