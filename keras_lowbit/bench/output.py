"""The flags that every benchmark has, and its file: looked at before anything is measured, written at the end."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from keras_lowbit.files import atomic_write, check_writable

flags.disclaim_key_flags()  # --help shows these among the flags of the benchmark that asks for them


def define_output(values: flags.FlagValues) -> None:
    """Defines --output, a file that can be written."""
    flags.DEFINE_string("output", None, "JSON file to write", required=True, flag_values=values)
    check_flag(values, "output", check_writable)


def define_repeats(values: flags.FlagValues, default: int, what: str) -> None:
    """Defines --repeats. what: is measured so often, for the help."""
    flags.DEFINE_integer("repeats", default, f"times each {what} is measured", lower_bound=1, flag_values=values)


def check_flag(values: flags.FlagValues, name: str, accept: Callable[[Any], object]) -> None:
    """Makes what `accept` raises for a flag's value (OSError, ValueError) an error of the command line."""

    def valid(value: Any) -> bool:
        try:
            if value is not None:
                accept(value)
        except (OSError, ValueError) as error:
            raise flags.ValidationError(str(error)) from error
        return True

    flags.register_validator(name, valid, flag_values=values)


def write_report(path: str, report: Mapping[str, Any]) -> None:
    """Writes the figures of a benchmark as JSON."""
    atomic_write(path, (json.dumps(report, indent=1) + "\n").encode())
