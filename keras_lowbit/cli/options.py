"""What several commands share: their flags, what they ask of files before they work, and how they show a result."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from keras_lowbit import recipes
from keras_lowbit.figures.canvas import check_picture
from keras_lowbit.files import atomic_write, check_writable, printable, read_whole
from keras_lowbit.tables import plain

flags.disclaim_key_flags()  # --help shows these among the flags of the command that asks for them


def define_json(values: flags.FlagValues) -> None:
    """Defines --json."""
    flags.DEFINE_bool(
        "json", False, "print the result as JSON, and nothing else on standard output", flag_values=values
    )


def define_output(values: flags.FlagValues, what: str) -> None:
    """Defines --output, needed, and --force. what: is written, for the help."""
    flags.DEFINE_string("output", None, what, required=True, flag_values=values)
    flags.DEFINE_bool("force", False, "replace a file that is there already", flag_values=values)


def define_plot(values: flags.FlagValues, what: str) -> None:
    """Defines --plot. what: is drawn, for the help."""
    flags.DEFINE_string("plot", None, f"picture of {what}, .png, .svg or .pdf", flag_values=values)


def check_plot(values: Any) -> None:
    """Before anything else: as `check_output` for --plot, if it is given, and ValueError for an ending that nothing draws."""
    if values.plot:
        check_output(values.plot, values.force)
        check_picture(values.plot)


def define_file(values: flags.FlagValues) -> None:
    """Defines what a .tflite file is like: --io, --pack, --target and --labels."""
    kinds = ["int8", "uint8", "int16", "float32"]
    flags.DEFINE_enum(
        "io",
        None,
        kinds,
        "type of inputs and outputs; float32 takes and gives reals; by default that of the activations",
        flag_values=values,
    )
    packs = ["auto", "int8", "int4", "int2"]
    text = "smallest format of weights; int4 and int2 where codes and LiteRT allow, auto where it is no slower"
    flags.DEFINE_enum("pack", "int8", packs, text, flag_values=values)
    targets = "device: litert, microcontroller, edgetpu, npu-per-tensor, or the path of a JSON"
    flags.DEFINE_string("target", "litert", targets, flag_values=values)
    flags.DEFINE_string(
        "labels", None, "text file with the name of a class on each line, for the file", flag_values=values
    )


def define_recipe(values: flags.FlagValues) -> None:
    """Defines --recipe, --skip, --unroll and --fuse_lstm."""
    text = "its name (keras-lowbit recipes lists them), or the path of a JSON that ends in .json"
    flags.DEFINE_string("recipe", "int8", text, flag_values=values)
    text = "regular expression of layers that stay in float; may be given several times"
    flags.DEFINE_multi_string("skip", [], text, flag_values=values)
    text = "take recurrent layers of up to 64 steps apart: a loop runs in float"
    flags.DEFINE_bool("unroll", False, text, flag_values=values)
    text = "write LSTM layers as LiteRT's integer LSTM, one operator for all steps"
    flags.DEFINE_bool("fuse_lstm", False, text, flag_values=values)


def loops(values: flags.FlagValues) -> dict[str, Any]:
    """What `quantize_model` is to do with recurrent layers."""
    return {"unroll": values.unroll, "fuse_lstm": values.fuse_lstm}


def beside(path: str, ending: str, instead: str | None, taken: str = "") -> str | None:
    """Where the second file of a command goes: beside the first under another ending, or where a flag says; None for "no".

    instead: the flag.   taken: a path that is never chosen, only given.
    """
    if instead is not None:
        return None if instead == "no" else instead
    found = os.path.splitext(path)[0] + ending
    return None if os.path.realpath(found) in map(os.path.realpath, (path, taken)) else found


def file_arguments(values: Any) -> dict[str, Any]:
    """The keyword arguments of `export_litert` that the flags of `define_file` say."""
    found = {"weights": values.pack, "io": values.io, "target": values.target}
    return found if values.labels is None else {**found, "labels": read_labels(values.labels)}


def read_labels(path: str) -> list[str]:
    """The lines of a text file; empty ones at its end do not count. ValueError for what is no UTF-8 text."""
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--labels={printable(path)} is no text in UTF-8: {error}") from error
    return text.rstrip().splitlines()


def recipe_of(text: str) -> recipes.Recipe:
    """A recipe by its name, or from a JSON file (a path that ends in .json). ValueError or OSError."""
    if not text.endswith(".json"):
        return recipes.get(text)
    try:
        return recipes.Recipe.from_json(read_whole(text).decode())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{printable(text)}: {error}") from error


def check_output(path: str, force: bool) -> None:
    """Before anything else: flags.Error for a file that is there already unless `force`, OSError where none can be written."""
    if os.path.lexists(path) and not os.path.isdir(path) and not force:
        raise flags.Error(f"{printable(path)} exists already. Choose another name, or replace it with --force")
    check_writable(path)


def wants_progress(values: Any) -> int:
    """`verbose` of long functions: progress on a terminal, nothing in a file or beside JSON."""
    return int(sys.stdout.isatty() and not values.json)


@contextlib.contextmanager
def working(values: Any) -> Iterator[None]:
    """What libraries print meanwhile goes to standard error, if standard output is for JSON."""
    with contextlib.redirect_stdout(sys.stderr) if values.json else contextlib.nullcontext():
        yield


def command_line(name: str, values: flags.FlagValues, *arguments: str) -> str:
    """The command as a shell takes it: its arguments, and the flags that were given."""
    given = [line for flag in values if values[flag].present for line in values[flag].serialize().splitlines()]
    return shlex.join(["keras-lowbit", name, *arguments, *given])


def say(text: str) -> None:
    """A sentence beside the result, on standard error."""
    print(text, file=sys.stderr, flush=True)


def show(values: Any, text: Any, fields: Mapping[str, Any]) -> None:
    """The result: `text` for people, or `fields` as JSON."""
    print(json.dumps(plain(fields), indent=2) if values.json else text)


def write_output(path: str, content: bytes, force: bool) -> None:
    """Writes a file whole; what has come into being there since `check_output` stays, too."""
    check_output(path, force)
    atomic_write(path, content)
