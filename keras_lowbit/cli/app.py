"""Finds the command, reads its flags, runs it.

A command is a module with a docstring (its help, with an example), `FLAGS` (an absl `FlagValues` of its own, so importing
a command changes no other command's flags) and `run(flags) -> exit status`. A group is a table of commands. To add one:
the module, a line in a table, a test.
"""

import copy
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from absl import flags


class Command(NamedTuple):
    """A line of a table. purpose: for the usage of its group."""

    module: str
    purpose: str


class Group(NamedTuple):
    """A command with commands of its own, as `keras-lowbit bench`."""

    commands: Mapping[str, "Entry"]
    purpose: str


Entry: TypeAlias = Command | Group

BENCH: dict[str, Entry] = {
    "verify": Command("keras_lowbit.bench.verify", "time of converting, exporting and verifying large networks"),
    "clusters": Command("keras_lowbit.bench.clusters", "time and memory of clustering the weights of a ResNet-101"),
    "kernels": Command("keras_lowbit.bench.kernels", "single layers: compiled ops, TensorFlow and LiteRT"),
    "packed": Command("keras_lowbit.bench.packed", "the latency table that weights='auto' reads"),
    "runtime": Command("keras_lowbit.bench.runtime", "a whole ResNet-50: integer runtime, TensorFlow and LiteRT"),
    "train_step": Command("keras_lowbit.bench.train_step", "training steps: Keras 3 and TFMOT, quantized and float"),
}
COMMANDS: dict[str, Entry] = {
    "bench": Group(BENCH, "measure this machine; every benchmark writes a JSON file"),
    "demo": Command(
        "keras_lowbit.cli.demo", "train, quantize, export and verify a small network on real handwritten digits"
    ),
    "doctor": Command("keras_lowbit.cli.doctor", "show whether the compiled ops run here, and why not"),
}
HELP = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `keras-lowbit`; argv as `sys.argv`, with the program's name first. Returns the exit status.

    0: done; 1: the command ran and found something wrong; 2: the command line or the input is wrong (the reason is on
    standard error).
    """
    name = "keras-lowbit"
    entry: Entry = Group(COMMANDS, "")
    arguments = list(sys.argv if argv is None else argv)[1:]
    while isinstance(entry, Group):
        if not arguments or arguments[0] in HELP:
            print(_usage(name, entry))
            return 0 if arguments else 2
        chosen, *arguments = arguments
        if chosen not in entry.commands:
            print(f"{name}: unknown command {chosen!r}.\n\n{_usage(name, entry)}", file=sys.stderr)
            return 2
        name, entry = f"{name} {chosen}", entry.commands[chosen]
    return _run(name, importlib.import_module(entry.module), arguments)


def _run(name, command, arguments) -> int:
    values = copy.deepcopy(command.FLAGS)  # flags keep what they are given: a second call starts anew
    if "-h" in arguments or "--help" in arguments:
        print(f"{command.__doc__}\nFlags:\n{values.get_help(include_special_flags=False)}")
        return 0
    try:
        left_over = values([name, *arguments])[1:]
        if left_over:
            raise flags.Error(f"unexpected {' '.join(left_over)!r}")
        return command.run(values)
    except (flags.Error, OSError, ImportError) as error:
        print(f"{name}: {error}\n{name} --help shows the flags.", file=sys.stderr)
        return 2


def _usage(name: str, group: Group) -> str:
    width = max(map(len, group.commands))
    rows = "\n".join(f"  {command:<{width}}  {entry.purpose}" for command, entry in group.commands.items())
    return f"usage: {name} <command> [flags]\n\ncommands:\n{rows}\n\n{name} <command> --help shows its flags."
