"""Option names and values of format version 1: refused where someone types them, upgraded where a file holds them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

#: Quantizer -> its argument in version 1 -> its argument today.
FORMER_ARGUMENTS: dict[str, dict[str, str]] = {
    "adjustable_threshold": {"start": "calibration"},
    "binary": {"scope": "granularity"},
    "clustered": {"mode": "calibration", "exponent": "granularity"},
    "dynamic_fixed_point": {"scope": "granularity"},
    "learned_step": {"start": "calibration"},
    "power_of_two": {"scope": "granularity"},
    "ternary": {"scope": "granularity", "scale_scope": "scale_granularity", "optimal": "calibration"},
}
#: Value in version 1 -> value today, of the arguments below. True and False are those of ``Ternary(optimal=)``.
FORMER_VALUES: dict[Any, str] = {
    "filter": "channel",
    "layer": "tensor",
    "optimal": "mse",
    True: "mse",
    False: "mean",
}
_WITH_FORMER_VALUES = ("granularity", "scale_granularity", "calibration")

P = ParamSpec("P")
R = TypeVar("R")


def upgrade(config: Any, version: int) -> Any:
    """Plain values of format `version` in today's words: quantizer dicts, nested ones and those in lists included."""
    if version >= 2:
        return config
    if isinstance(config, list | tuple):
        return [upgrade(part, version) for part in config]
    if not isinstance(config, Mapping):
        return config
    names = FORMER_ARGUMENTS.get(str(config.get("name")), {})
    found = {names.get(key, key): upgrade(value, version) for key, value in config.items()}
    return found | {key: todays_value(found[key]) for key in _WITH_FORMER_VALUES if key in found}


def todays_value(value: Any) -> Any:
    """Today's word for a value of version 1; any other value as it is."""
    return FORMER_VALUES.get(value, value) if isinstance(value, str | bool) else value


def refuse(owner: str, given: Mapping[str, Any], write: Mapping[str, str]) -> None:
    """Raise a TypeError that says what to write if an argument of before is among those `given`.

    write: former name -> today's spelling, with ``{}`` where the value goes: ``"calibration={}"``.
    """
    for name in (name for name in given if name in write):
        value = todays_value(given[name])
        shown = repr(value) if value is None or isinstance(value, str | int | float) else "..."
        raise TypeError(f"{owner} has no argument {name}= any more; write {write[name].format(shown)}.")


def former_arguments(**write: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: the function refuses keyword arguments that it had before; see `refuse`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            refuse(function.__name__, kwargs, write)
            return function(*args, **kwargs)

        return call

    return decorate
