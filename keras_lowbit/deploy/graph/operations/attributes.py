"""What the attributes of a node may be: one value of each kind, in plain JSON, as files hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # LiteRT's sizes are int32


class Attribute(NamedTuple):
    """expected: in words, for messages.   fits: whether a value is one."""

    expected: str
    fits: Callable[[Any], bool]


def whole(least: int) -> Attribute:
    """A whole number."""
    return Attribute(f"a whole number of at least {least}", lambda value: _is_whole(value, least))


def wholes(least: int, count: int | None = None) -> Attribute:
    """A list of whole numbers. count: how many."""
    words = f"{'whole numbers' if count is None else f'{count} whole numbers'} of at least {least}"
    return Attribute(words, lambda value: _is_list(value, lambda entry: _is_whole(entry, least), count))


def one_of(*values: str | None, advice: str = "") -> Attribute:
    """One of some words, or None."""
    return Attribute(
        " or ".join(map(repr, values)) + advice, lambda value: isinstance(value, str | None) and value in values
    )


WHOLE = Attribute("a whole number that int32 holds", lambda value: _is_whole(value, -LARGEST - 1))
FLAG = Attribute("true or false", lambda value: isinstance(value, bool))
NUMBER = Attribute("a number that float32 holds", lambda value: type(value) in (int, float) and abs(value) < 2.0**128)
PAIRS = Attribute(
    "one (before, after) pair >= 0 for each axis after the batch",
    lambda value: _is_list(value, lambda pair: _is_list(pair, lambda entry: _is_whole(entry, 0), 2)),
)
CONTENT = Attribute("bytes", lambda value: isinstance(value, bytes))
PADDING = one_of("same", "valid", advice="; the builder turns explicit paddings into a pad node")
ACTIVATION = one_of(None, "relu", "relu6", advice="; add any other as its own node")


def check_attributes(known: Mapping[str, Attribute], given: Mapping[str, Any], where: str) -> None:
    """ValueError unless every known attribute is given, fits, and no other is."""
    if missing := [key for key in known if key not in given]:
        raise ValueError(f"{where} has incomplete attributes {_shown(dict(given))}: {', '.join(missing)} missing")
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"{where} has the attribute {unknown[0]!r}: expected {', '.join(known) or 'none'}")
    for key, attribute in known.items():
        if not attribute.fits(given[key]):
            raise ValueError(f"{where} has {key} {_shown(given[key])}: expected {attribute.expected}")


def _shown(value: Any) -> str:
    return repr(value)[:200]


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST


def _is_list(value: Any, fits: Callable[[Any], bool], count: int | None = None) -> bool:
    return isinstance(value, list | tuple) and count in (None, len(value)) and all(map(fits, value))
