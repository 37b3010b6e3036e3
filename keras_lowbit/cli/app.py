"""Finds the command, reads its flags, runs it.

A command is a module with a docstring (its help, with an example), `FLAGS` (an absl `FlagValues` of its own, so importing
a command changes no other command's flags), `ARGUMENTS` if it has some (the names of what stands beside the flags, those in
brackets may be left out, one with dots at its end may come several times), `SEVERAL` if flags take several numbers
(`--threads 1 2`), and `run(flags, *arguments) -> exit status`. A group is a table of commands. To add one: the module, a line
in a table, a test.
"""

import contextlib
import copy
import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from absl import flags

from keras_lowbit.data.batching import words_of


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
    "applications": Command(
        "keras_lowbit.bench.applications", "which networks of keras.applications become integers alone"
    ),
    "verify": Command("keras_lowbit.bench.verify", "time of converting, exporting and verifying large networks"),
    "clusters": Command("keras_lowbit.bench.clusters", "time and memory of clustering the weights of a ResNet-101"),
    "kernels": Command("keras_lowbit.bench.kernels", "single layers: compiled ops, TensorFlow and LiteRT"),
    "packed": Command("keras_lowbit.bench.packed", "the latency table that weights='auto' reads"),
    "runtime": Command("keras_lowbit.bench.runtime", "a whole ResNet-50: integer runtime, TensorFlow and LiteRT"),
    "train_step": Command("keras_lowbit.bench.train_step", "training steps: Keras 3 and TFMOT, quantized and float"),
}
COMMANDS: dict[str, Entry] = {
    "recipes": Command("keras_lowbit.cli.recipes", "list the recipes, or show one as JSON"),
    "inspect": Command(
        "keras_lowbit.cli.inspect", "what a recipe would do to a model, layer by layer, and the file's size"
    ),
    "convert": Command(
        "keras_lowbit.cli.convert", "from a float model and a folder of images to a verified .tflite file"
    ),
    "train": Command("keras_lowbit.cli.train", "quantize a float model by a recipe and train it, stage by stage"),
    "export": Command("keras_lowbit.cli.export", "write a quantized model as a .tflite file"),
    "verify": Command("keras_lowbit.cli.verify", "is a .tflite file what the quantized model is?"),
    "compare": Command("keras_lowbit.cli.compare", "two models or files side by side: agreement, error, size, latency"),
    "benchmark": Command("keras_lowbit.cli.benchmark", "latency of .tflite files, on this machine or on a phone"),
    "sensitivity": Command("keras_lowbit.cli.sensitivity", "what quantizing each layer does to the logits"),
    "assign-bits": Command("keras_lowbit.cli.assign_bits", "a recipe of bits by layer, for a size or an accuracy"),
    "summary": Command(
        "keras_lowbit.cli.summary", "bits, bytes and multiply-accumulates of every layer, and the file's size"
    ),
    "bench": Group(BENCH, "measure this machine; every benchmark writes a JSON file"),
    "demo": Command(
        "keras_lowbit.cli.demo", "train, quantize, export and verify a small network on real handwritten digits"
    ),
    "doctor": Command("keras_lowbit.cli.doctor", "show whether the compiled ops run here, and why not"),
}
HELP = ("-h", "--help", "help")
VERBOSE = "--verbose"  # of every command; keras_lowbit_command looks for it too


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `keras-lowbit`; argv as `sys.argv`, with the program's name first. Returns the exit status.

    0: done; 1: the command ran and found something wrong; 2: the command line or the input is wrong (the reason is on
    standard error).
    """
    name = "keras-lowbit"
    entry: Entry = Group(COMMANDS, "")
    arguments = list(sys.argv if argv is None else argv)[1:]
    verbose = VERBOSE in arguments
    arguments = [argument for argument in arguments if argument != VERBOSE]
    while isinstance(entry, Group):
        if not arguments or arguments[0] in HELP:
            print(_usage(name, entry))
            return 0 if arguments else 2
        chosen, *arguments = arguments
        if chosen not in entry.commands:
            print(f"{name}: unknown command {chosen!r}.\n\n{_usage(name, entry)}", file=sys.stderr)
            return 2
        name, entry = f"{name} {chosen}", entry.commands[chosen]
    return _run(name, importlib.import_module(entry.module), arguments, verbose)


def _run(name: str, command: Any, arguments: list[str], verbose: bool) -> int:
    values = copy.deepcopy(command.FLAGS)  # flags keep what they are given: a second call starts anew
    values.set_gnu_getopt(True)  # flags may stand behind arguments
    wanted = getattr(command, "ARGUMENTS", ())
    if "-h" in arguments or "--help" in arguments:
        usage = " ".join([name, *wanted, "[flags]"])
        print(f"{command.__doc__}\nusage: {usage}\n\nFlags:\n{values.get_help(include_special_flags=False)}")
        print(f"  {VERBOSE}: show TensorFlow's own messages, and where an error was raised")
        return 0
    try:
        given = values([name, *_each(arguments, getattr(command, "SEVERAL", ()))])[1:]
        _check_count(wanted, given)
        with _plain_warnings(name):
            status = command.run(values, *given)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not isinstance(error, _REFUSALS) and not _of_tensorflow(error):
            raise
        if verbose:
            traceback.print_exc()
        reason = words_of(error) if _of_tensorflow(error) else re.sub(r"^\[Errno \d+\] ", "", str(error))
        print(f"{name}: {reason}\n{name} --help shows the flags.", file=sys.stderr)
        return 2


_REFUSALS = (flags.Error, OSError, ImportError, ValueError, TypeError)


def _of_tensorflow(error: Exception) -> bool:
    """Whether TensorFlow raised it while it ran: about data, such as a picture that is none or a label out of range."""
    errors = getattr(sys.modules.get("tensorflow"), "errors", None)
    return errors is not None and isinstance(error, errors.OpError)


def _each(arguments: Sequence[str], several: Sequence[str]) -> list[str]:
    """`--threads 1 2` as `--threads 1 --threads 2`, for the flags of that kind: absl's take one value each time."""
    found, flag = list[str](), ""
    for argument in arguments:
        if not argument.isdecimal():
            name = argument.split("=")[0]
            flag = name if name in {f"--{each}" for each in several} else ""
        elif flag and found[-1] != flag:
            found.append(flag)
        found.append(argument)
    return found


def _check_count(wanted: Sequence[str], given: Sequence[str]) -> None:
    least = sum(not word.startswith("[") for word in wanted)
    if len(given) > len(wanted) and not (wanted and wanted[-1].endswith("...")):
        raise flags.Error(f"unexpected {' '.join(given[len(wanted) :])!r}")
    if len(given) < least:
        raise flags.Error(f"expected {' '.join(wanted)}, got {' '.join(given) or 'nothing'}")


@contextlib.contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Warnings as sentences, without the line of source that raised them."""

    def show(message: Any, *about: Any, **more: Any) -> None:
        print(f"{name}: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _usage(name: str, group: Group) -> str:
    width = max(map(len, group.commands))
    rows = "\n".join(f"  {command:<{width}}  {entry.purpose}" for command, entry in group.commands.items())
    return f"usage: {name} <command> [flags]\n\ncommands:\n{rows}\n\n{name} <command> --help shows its flags."
