"""keras-lowbit summary: bits, parameters, bytes in the file and multiply-accumulates of every layer of a model.

    keras-lowbit summary q.keras --pack int2
    keras-lowbit summary applications:MobileNetV2 --untrained --json

Bytes are those of the file that `keras-lowbit export` writes with the same flags.
"""

import dataclasses
from typing import Any

from absl import flags

from keras_lowbit.cli.models import define_model, load_model
from keras_lowbit.cli.options import define_file, define_json, file_arguments, show, working
from keras_lowbit.deploy.summary import Summary, summary

FLAGS = flags.FlagValues()
define_json(FLAGS)
define_file(FLAGS)
define_model(FLAGS)
ARGUMENTS = ("MODEL",)


def run(values: Any, model: str) -> int:
    """Prints the summary."""
    arguments = file_arguments(values)
    with working(values):
        found = summary(load_model(model, values), **arguments)
    show(values, found, fields(found))
    return 0


def fields(found: Summary) -> dict[str, Any]:
    """A summary and what follows from it."""
    derived = "parameters macs multiplications_removed overhead_bytes".split()
    return {**dataclasses.asdict(found), **{name: getattr(found, name) for name in derived}}
